"""Tiny ONNX networks: foreign ones with a TOML, and a model of the contract."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slicemill.common.documents import to_document
from slicemill.infer.network.foreign import wrap_network
from slicemill.store.training_scans import TRAINING_SCANS_KEY

SIDE = 16
CARD = 'labels = {tumor = 1}\nwindow_hu = [-1000, 1000]\nmean = 0\nstd = 1\noutput = "logits"\n'


def tensor(value, name, kind=np.float32):
    return numpy_helper.from_array(np.array(value, kind), name)


def add_ending(nodes, more=(), *, classes=2, functions=(), opset=17):
    """Return a network whose logits "z" are 0 and HU - threshold, followed by nodes from "z" to "y"."""
    start = [
        helper.make_node("Sub", ["x", "threshold"], ["above"]),
        helper.make_node("Mul", ["above", "scale"], ["one"]),
        helper.make_node("Mul", ["x", "zero"], ["none"]),
        helper.make_node("Concat", ["none", "one"], ["z"], axis=1),
    ]
    graph = helper.make_graph(
        [*start, *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", classes, SIDE, SIDE])],
        [tensor(0, "zero"), *more],
    )
    domains = {function.domain: 1 for function in functions} | {"": opset}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def constants(threshold, scale):
    return [tensor(threshold, "threshold"), tensor(scale, "scale")]


def write_threshold(path, threshold=30.0, scale=0.1, card=CARD, nodes=None, more=()):
    """Write a foreign network that labels voxels above a threshold, and its TOML."""
    nodes = nodes or [helper.make_node("Identity", ["z"], ["y"])]
    path.write_bytes(add_ending(nodes, [*constants(threshold, scale), *more]).SerializeToString())
    path.with_suffix(".toml").write_text(card)
    return path


def change_training_scans(path, out, scans=None):
    """Copy a model with another description of its training scans, or without one."""
    model = onnx.load(path)
    for entry in [entry for entry in model.metadata_props if entry.key == TRAINING_SCANS_KEY]:
        model.metadata_props.remove(entry)
    if scans is not None:
        model.metadata_props.add(key=TRAINING_SCANS_KEY, value=json.dumps(to_document(scans)))
    onnx.save(model, out)
    return out


def write_described(path, scans):
    """Write a model that labels voxels above 30 HU as tumor, with a description of its training scans."""
    bare = write_threshold(path.with_name("bare.onnx"))
    path.write_bytes(wrap_network(bare.read_bytes(), bare, bare.with_suffix(".toml")))
    return change_training_scans(path, path, scans)


def write_model(path, labels, nodes=(), label_from="image", more=(), functions=()):
    """Write a model of the contract: label 1 above 30 HU, with the given labels in its metadata."""
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Cast", [label_from], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Greater", ["float", "threshold"], ["above"]),
            helper.make_node("Cast", ["above"], ["label"], to=TensorProto.UINT8),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.INT16, ["n", SIDE, SIDE])],
        [helper.make_tensor_value_info("label", TensorProto.UINT8, ["n", SIDE, SIDE])],
        [tensor(30, "threshold"), *more],
    )
    domains = {function.domain: 1 for function in functions} | {"": 17}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)
    card = {
        "contract": 1, "input": "int16", "labels": labels, "organ": None, "tumor": None, "window_hu": [-200, 300],
        "context": 1, "context_spacing_mm": None, "spacing_mm": None, "postprocess": {}, "precision": "fp32",
    }  # fmt: skip
    helper.set_model_props(model, {"slicemill": json.dumps(card)})
    onnx.save(model, path)
    return path


CROP_CARD = {"kind": "crops", "contract": 1, "crop_mm": 48.0, "spacing_mm": 1.0, "window_hu": [-1000, 400]}


def write_classifier(path, *, card=None, malignancy=False, side=48, kind=TensorProto.INT16, batch="n", bias=0.0):
    """Write a model of kind crops: `nodule` grows with the mean HU of the middle 8 mm, 0.5 at -400 HU plus `bias`."""
    outputs = ["nodule", *(["malignancy"] if malignancy else [])]
    nodes = [
        helper.make_node("Cast", ["crop"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["float", "from", "to", "axes"], ["middle"]),
        helper.make_node("ReduceMean", ["middle"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["mean", "threshold"], ["above"]),
        helper.make_node("Mul", ["above", "scale"], ["logit"]),
        *(helper.make_node("Sigmoid", ["logit"], [name]) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("crop", kind, [batch, side, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch]) for name in outputs],
        [
            *constants(-400.0 + bias, 0.01),
            tensor([side // 2 - 4] * 3, "from", np.int64),
            tensor([side // 2 + 4] * 3, "to", np.int64),
            tensor([1, 2, 3], "axes", np.int64),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if card is not False:
        model.metadata_props.add(key="slicemill", value=json.dumps(card or CROP_CARD))
    path.write_bytes(model.SerializeToString())
    return path


LUNG_SIDE = 64


def write_lung_model(path, *, tumor="nodule"):
    """Write a segmentation model: lung below -500 HU, nodule above -300; its probability is 0.5 at -300 HU."""
    float_, uint8 = TensorProto.FLOAT, TensorProto.UINT8
    nodes = [
        helper.make_node("Cast", ["image"], ["hu"], to=float_),
        helper.make_node("Less", ["hu", "air"], ["is_lung"]),
        helper.make_node("Greater", ["hu", "dense"], ["is_nodule"]),
        helper.make_node("Cast", ["is_lung"], ["lung"], to=float_),
        helper.make_node("Cast", ["is_nodule"], ["one"], to=float_),
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Add", ["lung", "two"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["label"], to=uint8),
        helper.make_node("Sub", ["hu", "dense"], ["above"]),
        helper.make_node("Mul", ["above", "scale"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["share"]),
        helper.make_node("Mul", ["share", "most"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["tumor"], to=uint8),
    ]
    shape = ["n", LUNG_SIDE, LUNG_SIDE]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.INT16, shape)],
        [helper.make_tensor_value_info(name, uint8, shape) for name in ("label", "tumor")],
        [tensor(-500, "air"), tensor(-300, "dense"), tensor(0.01, "scale"), tensor(255, "most"), tensor(0.5, "half")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card = {
        "contract": 1, "input": "int16", "labels": {"lung": 1, "nodule": 2}, "organ": "lung", "tumor": tumor,
        "window_hu": [-1000, 400], "context": 1, "context_spacing_mm": None, "spacing_mm": None,
        "postprocess": {"largest_organ": True, "min_lesion_ml": 0.05}, "precision": "fp32",
    }  # fmt: skip
    helper.set_model_props(model, {"slicemill": json.dumps(card)})
    path.write_bytes(model.SerializeToString())
    return path
