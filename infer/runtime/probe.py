"""Probe: tiny networks that show whether a provider runs, not only whether it starts.

onnxruntime opens cuDNN at the first convolution (its pull request 29252), so a session starts without it. A probe has a
convolution and a transposed convolution with a bias, as a U-Net has.
"""

import math
from typing import Any

import numpy as np

from slicemill.infer.runtime.onnx_file import write_bytes, write_integer

FLOAT, INTEGERS = 1, 7
"""Types of tensors and attributes in onnx.proto."""
CHANNELS, SIDE = 8, 8


def make_probe(*, bias_apart: bool) -> bytes:
    """Return an ONNX model, opset 17, of a Conv and a ConvTranspose with bias: x float[1, 3, 8, 8], y [1, 8, 16, 16].

    Parameters
    ----------
    bias_apart
        Whether the bias of the ConvTranspose is an Add, as in the flavors for GPUs.
    """
    transposed = ("c", "v", *(() if bias_apart else ("b",)))
    nodes = [
        _node("Conv", ("x", "w", "b"), "c", pads=(1, 1, 1, 1)),
        _node("ConvTranspose", transposed, "t" if bias_apart else "y", strides=(2, 2)),
        *([_node("Add", ("t", "a"), "y")] if bias_apart else []),
    ]
    weights = [_zeros("w", CHANNELS, 3, 3, 3), _zeros("b", CHANNELS), _zeros("v", CHANNELS, CHANNELS, 2, 2)]
    graph = [
        *(write_bytes(1, node) for node in nodes),
        write_bytes(2, b"probe"),
        *(write_bytes(5, tensor) for tensor in [*weights, *([_zeros("a", 1, CHANNELS, 1, 1)] if bias_apart else [])]),
        write_bytes(11, _value("x", 1, 3, SIDE, SIDE)),
        write_bytes(12, _value("y", 1, CHANNELS, 2 * SIDE, 2 * SIDE)),
    ]
    opset = write_bytes(1, b"") + write_integer(2, 17)
    return write_integer(1, 8) + write_bytes(7, b"".join(graph)) + write_bytes(8, opset)


def run_probe(session: Any) -> None:
    """Run a session of a probe once; it raises what the runtime raises."""
    session.run(["y"], {"x": np.zeros((1, 3, SIDE, SIDE), np.float32)})


def _node(type_: str, inputs: tuple[str, ...], output: str, **attributes: tuple[int, ...]) -> bytes:
    encoded = [
        write_bytes(1, name.encode())
        + b"".join(write_integer(8, value) for value in values)
        + write_integer(20, INTEGERS)
        for name, values in attributes.items()
    ]
    return b"".join(
        [
            *(write_bytes(1, name.encode()) for name in inputs),
            write_bytes(2, output.encode()),
            write_bytes(4, type_.encode()),
            *(write_bytes(5, attribute) for attribute in encoded),
        ]
    )


def _zeros(name: str, *shape: int) -> bytes:
    sides = b"".join(write_integer(1, side) for side in shape)
    return sides + write_integer(2, FLOAT) + write_bytes(8, name.encode()) + write_bytes(9, bytes(4 * math.prod(shape)))


def _value(name: str, *shape: int) -> bytes:
    sides = b"".join(write_bytes(1, write_integer(1, side)) for side in shape)
    tensor = write_integer(1, FLOAT) + write_bytes(2, sides)
    return write_bytes(1, name.encode()) + write_bytes(2, write_bytes(1, tensor))
