"""Weights in a file beside the network: read from its folder by a plain name, and checked."""

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from slicemill.common.errors import ModelError
from slicemill.infer.network.external_weights import read_weights_beside
from slicemill.infer.network.model import open_model
from slicemill.train.export.onnx_graph import quiet_exporter
from tests.infer.networks import CARD, SIDE, write_model, write_threshold

WEIGHTS = "net.onnx.data"


def move_out(path, name=WEIGHTS):
    """Move all weights of a network into one file beside it."""
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)


@pytest.fixture
def network(tmp_path):
    path = write_threshold(tmp_path / "net.onnx")
    move_out(path)
    assert (tmp_path / WEIGHTS).stat().st_size > 0
    return path


def change(path, **entries):
    """Change the entries of the first external tensor."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL)
    for key, value in entries.items():
        found = [entry for entry in tensor.external_data if entry.key == key] or [tensor.external_data.add(key=key)]
        found[0].value = value
    path.write_bytes(model.SerializeToString())


def label(path):
    image = np.arange(SIDE**2, dtype=np.int16).reshape(1, SIDE, SIDE)
    return open_model(path, "cpu").run(image, np.zeros((1, 1), np.int32)).label


def test_a_network_as_torch_writes_it_labels_as_torch_does(tmp_path):
    torch.manual_seed(3)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 40, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(40, 2, 3, padding=1)
    ).eval()
    path = tmp_path / "net.onnx"
    with quiet_exporter():
        shapes = ({0: torch.export.Dim("b")},)
        torch.onnx.export(network, (torch.zeros(2, 1, SIDE, SIDE),), path, dynamo=True, dynamic_shapes=shapes)
    assert (tmp_path / WEIGHTS).exists()
    path.with_suffix(".toml").write_text(CARD)
    image = np.random.default_rng(0).integers(-900, 900, (2, SIDE, SIDE), dtype=np.int16)
    found = open_model(path, "cpu").run(image, np.array([[0], [1]], np.int32)).label
    with torch.no_grad():
        expected = network(torch.from_numpy(image[:, None].astype(np.float32))).argmax(1).numpy()
    assert 0 < expected.mean() < 1
    assert np.mean(found != expected) < 1e-3


def test_weights_beside_are_the_same_as_within_and_belong_to_the_models_hash(network, tmp_path):
    inside = write_threshold(tmp_path / "inside.onnx")
    assert np.array_equal(label(network), label(inside))
    assert open_model(network, "cpu").info.sha256 == open_model(inside, "cpu").info.sha256
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content.replace(np.float32(30).tobytes(), np.float32(90).tobytes()))
    assert label(network).sum() == label(inside).sum() - 60


def test_weights_in_attributes_functions_and_branches_are_read(tmp_path):
    value = numpy_helper.from_array(np.full(300, 7, np.float32), "value")
    onnx.external_data_helper.set_external_data(value, WEIGHTS, offset=0, length=1200)
    (tmp_path / WEIGHTS).write_bytes(value.raw_data)
    value.ClearField("raw_data")
    constant = helper.make_node("Constant", [], ["c"], value=value)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [300])])
    choice = helper.make_node("If", ["q"], ["d"], then_branch=branch, else_branch=branch)
    function = helper.make_function("own", "F", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    graph = helper.make_graph([constant, choice], "g", [], [])
    model = helper.make_model(graph, functions=[function])
    found = onnx.load_from_string(read_weights_beside(model.SerializeToString(), tmp_path / "net.onnx"))
    (then, other) = (attribute.g.node[0] for attribute in found.graph.node[1].attribute)
    for node in (found.graph.node[0], then, other, found.functions[0].node[0]):
        assert np.array_equal(numpy_helper.to_array(node.attribute[0].t), np.full(300, 7, np.float32))


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_types_that_numpy_lacks_have_their_size(kind, tmp_path):
    size = 3 if kind in (TensorProto.INT4, TensorProto.UINT4) else 10 if kind == TensorProto.BFLOAT16 else 5
    tensor = TensorProto(name="w", data_type=kind, dims=[5], raw_data=bytes(range(size)))
    onnx.external_data_helper.set_external_data(tensor, WEIGHTS)
    (tmp_path / WEIGHTS).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    found = onnx.load_from_string(read_weights_beside(model.SerializeToString(), tmp_path / "net.onnx"))
    assert found.graph.initializer[0].raw_data == bytes(range(size))


@pytest.mark.parametrize("name", ["../net.onnx.data", "/etc/passwd", "sub/w", "sub\\w", "..", ".", "", "C:w", "a\0b"])
def test_only_a_plain_name_is_read(name, network, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w").write_bytes(bytes(100))
    change(network, location=name)
    with pytest.raises(ModelError, match="stores weights in .*only files in the folder of the model are read"):
        open_model(network, "cpu")


def test_a_link_out_of_the_folder_is_not_followed_and_one_within_is(network, tmp_path):
    expected = label(network)
    (tmp_path / WEIGHTS).rename(tmp_path / "w")
    (tmp_path / WEIGHTS).symlink_to("w")
    assert np.array_equal(label(network), expected)
    (tmp_path / "out").mkdir()
    (tmp_path / "w").rename(tmp_path / "out" / "w")
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).symlink_to("out/w")
    with pytest.raises(ModelError, match=r"net.onnx: its weights net.onnx.data are a link out of the folder"):
        open_model(network, "cpu")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "8"}, r"are 8 bytes, but their shape and type need 4"),
        ({"length": "-4"}, "length '-4' must be numbers of bytes"),
        ({"offset": "x"}, "offset 'x' and length '4' must be numbers"),
        ({"offset": "9" * 5000}, "must be numbers of bytes"),
        ({"offset": str(10**14)}, "end at byte 100,000,000,000,004, but the file has .* bytes; it is cut off"),
    ],
)
def test_places_in_the_file_are_checked(entries, message, network):
    change(network, **entries)
    with pytest.raises(ModelError, match=f"net.onnx: its weights '.*' in net.onnx.data: .*{message}"):
        open_model(network, "cpu")


@pytest.mark.parametrize(
    ("dims", "message"), [([-1, 4], "have a negative shape"), ([1 << 40], "take more than 2 GB"), ([2], "need 8")]
)
def test_shapes_are_checked_before_memory_is_taken(dims, message, network):
    model = onnx.load(network, load_external_data=False)
    model.graph.initializer[0].dims[:] = dims
    network.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=message):
        open_model(network, "cpu")


def test_a_type_without_a_size_is_refused(network):
    model = onnx.load(network, load_external_data=False)
    for kind in (TensorProto.STRING, 99):
        model.graph.initializer[0].data_type = kind
        network.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=f"have an unknown type, {kind}"):
            open_model(network, "cpu")


def test_missing_cut_off_and_odd_files_are_named(network, tmp_path):
    weights = tmp_path / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"but the file has .*; it is cut off"):
        open_model(network, "cpu")
    weights.unlink()
    with pytest.raises(ModelError, match=r"its weights are in net.onnx.data, which cannot be read .No such file"):
        open_model(network, "cpu")
    os.mkfifo(weights)
    with pytest.raises(ModelError, match="are not a regular file"):
        open_model(network, "cpu")
    weights.unlink()
    weights.mkdir()
    with pytest.raises(ModelError, match="are not a regular file"):
        open_model(network, "cpu")


def test_a_model_of_the_contract_may_have_weights_beside_it_too(tmp_path):
    path = write_model(tmp_path / "m.onnx", {"liver": 1})
    expected = label(path)
    move_out(path, "m.bin")
    assert np.array_equal(label(path), expected)
    assert expected.sum() == SIDE**2 - 31
