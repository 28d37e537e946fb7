"""The work of a graph, counted by hand; TensorRT's rules are tested on exported files (`tests.train.test_export`)."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from slicemill.train.export.audit import gflop_a_slice


def test_the_work_is_that_of_the_convolutions(tmp_path):
    """Counted by hand: a 3x3 convolution, a doubling one and a 1x1, on 8x8 pixels."""
    weights = {"a": (4, 3, 3, 3), "b": (4, 5, 2, 2), "c": (6, 5, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["y", "b"], ["z"], strides=[2, 2]),
        helper.make_node("Conv", ["z", "c"], ["w"]),
    ]
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 6, 16, 16])],
        [helper.make_tensor(name, TensorProto.FLOAT, dims, np.zeros(dims).ravel()) for name, dims in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    by_hand = 2 * (64 * 3 * 4 * 9 + 64 * 4 * 5 * 4 + 256 * 5 * 6)
    assert gflop_a_slice(tmp_path / "m.onnx") == by_hand / 1e9
