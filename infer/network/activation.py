"""The last activation of a foreign network whose TOML says that its output is logits; the graph decides, not the TOML.

A Softmax over the classes is left out, because its input is the logits. Other ends that give probabilities are refused:
after a Sigmoid, several classes may be true of one pixel, so the largest is no label.
"""

from collections.abc import Mapping
from typing import Any

from slicemill.common.errors import ModelError

UNCHANGED = ("Identity", "Cast", "Dropout")
"""Operations that keep each number."""
MOVED = (
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Upsample", "Slice", "Split", "Pad",
    "Gather", "Clip",
)  # fmt: skip
"""Operations whose results are probabilities where their inputs are."""
SIGMOIDS = ("Sigmoid", "HardSigmoid")
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
CLASS_AXES = (1, -3)
"""The axis of the classes in [b, class, y, x]."""
WAY_OUT = {
    "Sigmoid": 'Several classes may be true of one pixel. Export a network that chooses the label (output = "label").',
    "Softmax": "Export the network without it.",
}


def find_network_logits(network: Any, output: str) -> str:
    """Return the name of a network's logits: of its output, or of the input of the Softmax that makes it.

    Raises
    ------
    ModelError
        The output is probabilities, and not by a Softmax over the classes as its last operation.
    """
    if network.functions:
        from onnx import inliner

        inlined = inliner.inline_local_functions(network)
        if _find_logits(inlined, output) != output:
            raise ModelError(f"ends in a Softmax inside a function. {WAY_OUT['Softmax']}")
        return output
    return _find_logits(network, output)


def _find_logits(network: Any, output: str) -> str:
    makers = {name: node for node in network.graph.node for name in node.output if name}
    name = output
    while (node := makers.get(name)) is not None and node.op_type in UNCHANGED:
        name = node.input[0]
    if node is not None and node.op_type == "LogSoftmax" and _axis(node) in CLASS_AXES:
        return output  # they are logits, too
    if node is not None and node.op_type == "Softmax" and _axis(node) in CLASS_AXES:
        return str(node.input[0])
    if found := _find_activation(makers, name):
        kind = "Sigmoid" if "Sigmoid" in found else "Softmax"
        raise ModelError(f"ends in {found}, so its output is not the logits that the TOML says. {WAY_OUT[kind]}")
    return output


def _axis(node: Any) -> int:
    """Return the axis of a Softmax; by default it is the last."""
    return next((int(one.i) for one in node.attribute if one.name == "axis"), -1)


def _find_activation(makers: Mapping[str, Any], output: str) -> str | None:
    """Return the operation that makes the output probabilities, or None."""
    names, seen = [output], set()
    for name in names:  # grows
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in (*SIGMOIDS, *SOFTMAXES):
            return str(node.op_type)
        if node.op_type == "Div" and _is_softmax(makers, node):
            return "Softmax, written as Exp and Div"
        if node.op_type in (*UNCHANGED, *MOVED):
            names += node.input
        elif node.op_type in ("Reciprocal", "Div") and _is_sigmoid(makers, node):
            return "Sigmoid, written as Exp"
    return None


def _is_softmax(makers: Mapping[str, Any], node: Any) -> bool:
    """Return whether a Div divides exponentials by their sum."""
    above, below = (makers.get(name) for name in node.input)
    return (
        above is not None
        and below is not None
        and above.op_type == "Exp"
        and below.op_type == "ReduceSum"
        and below.input[0] == node.input[0]
    )


def _is_sigmoid(makers: Mapping[str, Any], node: Any) -> bool:
    """Return whether a Reciprocal or Div has one plus an exponential below its line."""
    below = makers.get(node.input[-1])
    return (
        below is not None
        and below.op_type == "Add"
        and any(maker is not None and maker.op_type == "Exp" for maker in map(makers.get, below.input))
    )
