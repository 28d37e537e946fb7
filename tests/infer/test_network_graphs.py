"""What the graph of a network decides, whatever its metadata or TOML says: label values, activations, loops."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from slicemill.common.errors import ModelError
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.network.model import open_model
from slicemill.infer.run.pipeline import infer
from slicemill.infer.single import segment_volume
from slicemill.infer.slices.assembly import find_undeclared
from tests.infer.networks import SIDE, add_ending, constants, tensor, write_model, write_threshold

node = helper.make_node


@given(arrays(np.uint8, (3, 4, 4)), st.sets(st.integers(1, 255), max_size=6))
def test_undeclared_values_are_those_that_numpy_does_not_find(label, values):
    known = np.array([0, *values], np.uint8)
    strange = [np.setdiff1d(section, known).tolist() for section in label]
    assert find_undeclared(label, known) == next((found for found in strange if found), [])


@pytest.mark.parametrize("labels", [{"liver": 5}, {"liver": 2, "tumor": 3}])
def test_a_value_that_the_metadata_do_not_declare_fails_the_scan(labels, tmp_path):
    opened = open_model(write_model(tmp_path / "m.onnx", labels), "cpu")
    for name, hu in (("with", 50), ("without", 0)):
        write_nifti(tmp_path / "in" / f"{name}-1.nii", np.full((2, SIDE, SIDE), hu, np.int16), (3.0, 1.0, 1.0), "LPS")
    jobs = gather([tmp_path / "in"])[0]
    outcomes = {one.name: one for one in infer(opened, jobs, tmp_path / "out").outcomes}
    assert outcomes["without-1.nii"].status == "done"
    assert outcomes["with-1.nii"].status == "failed"
    assert "the network outputs the value 1; the labels of the model's metadata have only 0, " in (
        outcomes["with-1.nii"].reason
    )
    loaded = load_scan(next(job for job in jobs if job.name == "with-1.nii"))
    with pytest.raises(ModelError, match="outputs the value 1"):
        segment_volume(opened, loaded.volume, loaded.grid.spacing_mm)


def run(path):
    image = np.arange(-100, 100, 200 / SIDE**2).astype(np.int16)[: SIDE**2].reshape(1, SIDE, SIDE)
    return open_model(path, "cpu").run(image, np.zeros((1, 1), np.int32), ("label", "tumor", "probability"))


LOGITS = {
    "nothing": [node("Identity", ["z"], ["y"])],
    "softmax": [node("Softmax", ["z"], ["y"], axis=1)],
    "softmax from the end": [node("Softmax", ["z"], ["y"], axis=-3)],
    "softmax, cast": [node("Softmax", ["z"], ["p"], axis=1), node("Cast", ["p"], ["y"], to=TensorProto.FLOAT)],
    "log softmax": [node("LogSoftmax", ["z"], ["y"], axis=1)],
    "a sigmoid within": [
        node("Sigmoid", ["z"], ["s"]), node("Mul", ["s", "zero"], ["n"]), node("Add", ["z", "n"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("ending", LOGITS)
def test_a_softmax_over_the_classes_is_no_second_softmax(ending, tmp_path):
    expected = run(write_threshold(tmp_path / "plain.onnx"))
    found = run(write_threshold(tmp_path / "net.onnx", nodes=LOGITS[ending]))
    assert np.array_equal(found.label, expected.label)
    assert np.abs(found.maps - expected.maps).max() < 1e-5
    assert np.abs(found.tumor.astype(int) - expected.tumor).max() <= 1
    assert expected.maps.min() < 0.01  # probabilities of probabilities are never so small


SAME = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
PROBABILITIES = {
    "Sigmoid": [node("Sigmoid", ["z"], ["y"])],
    "HardSigmoid": [node("HardSigmoid", ["z"], ["y"])],
    "Sigmoid of one class": [
        node("Split", ["z"], ["u", "v"], axis=1), node("Sigmoid", ["v"], ["s"]), node("Sub", ["one_", "s"], ["r"]),
        node("Concat", ["r", "s"], ["y"], axis=1),
    ],
    "Softmax over rows": [node("Softmax", ["z"], ["y"], axis=2)],
    "Softmax over columns by default": [node("Softmax", ["z"], ["y"])],
    "Softmax, resized": [node("Softmax", ["z"], ["p"], axis=1), node("Resize", ["p", "", "scales"], ["y"], **SAME)],
    "Softmax, written out": [
        node("Exp", ["z"], ["e"]), node("ReduceSum", ["e", "axis"], ["s"]), node("Div", ["e", "s"], ["y"]),
    ],
    "Sigmoid, written out": [
        node("Neg", ["z"], ["m"]), node("Exp", ["m"], ["e"]), node("Add", ["e", "one_"], ["d"]),
        node("Reciprocal", ["d"], ["y"]),
    ],
}  # fmt: skip
MORE = [tensor(1, "one_"), tensor([1, 1, 1, 1], "scales"), tensor([1], "axis", np.int64)]


@pytest.mark.parametrize("ending", PROBABILITIES)
def test_other_probabilities_are_not_taken_for_logits(ending, tmp_path):
    path = write_threshold(tmp_path / "net.onnx", nodes=PROBABILITIES[ending], more=MORE)
    with pytest.raises(ModelError, match=f"net.onnx: ends in {ending.split()[0].strip(',')}.*not the logits"):
        open_model(path, "cpu")


def test_a_softmax_inside_a_function_is_found(tmp_path):
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "End", ["a"], ["b"], [node("Softmax", ["a"], ["b"], axis=1)], imports)
    path = write_threshold(tmp_path / "net.onnx")
    ending = [node("End", ["z"], ["y"], domain="own")]
    path.write_bytes(add_ending(ending, constants(30, 0.1), functions=[function]).SerializeToString())
    with pytest.raises(ModelError, match="net.onnx: ends in a Softmax inside a function"):
        open_model(path, "cpu")


def loop(source, result):
    body = helper.make_graph(
        [node("Identity", ["c"], ["c2"]), node("Identity", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT16, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.INT16, None),
        ],
    )
    return node("Loop", ["trips", "condition", source], [result], body=body)


@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_a_loop_is_refused_before_it_runs(place, tmp_path):
    more = [tensor(2**62, "trips", np.int64), tensor(True, "condition", bool)]
    nodes, functions = [loop("image", "looped")], []
    if place == "branch":
        value = helper.make_tensor_value_info("inner", TensorProto.INT16, None)
        branch = helper.make_graph([loop("image", "inner")], "branch", [], [value])
        nodes = [node("If", ["condition"], ["looped"], then_branch=branch, else_branch=branch)]
    if place == "function":
        constants_ = [
            node("Constant", [], ["trips"], value=more[0]), node("Constant", [], ["condition"], value=more[1])
        ]  # fmt: skip
        body = [*constants_, loop("a", "b")]
        functions = [helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])]
        nodes = [node("F", ["image"], ["looped"], domain="own")]
    path = write_model(tmp_path / "m.onnx", {"liver": 1}, nodes, "looped", more, functions)
    assert onnx.load(path).graph.node
    with pytest.raises(ModelError, match="m.onnx: has a Loop, which may never end"):
        open_model(path, "cpu")


@pytest.mark.parametrize("text", [b'"precision"', b"label"])
def test_a_text_of_a_model_that_is_not_utf_8_is_damage_in_one_line(text, tmp_path):
    write_model(tmp_path / "m.onnx", {"tumor": 1})
    content = (tmp_path / "m.onnx").read_bytes()
    assert text in content
    (tmp_path / "m.onnx").write_bytes(content.replace(text, b"\xd2" * len(text)))
    with pytest.raises(ModelError, match=r"m\.onnx: .*(UTF-8|utf-8|ONNX model)"):
        open_model(tmp_path / "m.onnx", "cpu")
