"""The nodes of an ONNX file, without the package onnx, which inference does not require.

An ONNX file is one protobuf message. A message is a list of fields. Each has a number, a type, and an integer or a
length with as many bytes (protobuf.dev, Encoding). Field numbers are those of onnx.proto. Weights are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}
MODEL_GRAPH, MODEL_METADATA, MODEL_FUNCTION = 7, 14, 25
GRAPH_NODE, GRAPH_OUTPUT, FUNCTION_NODE = 1, 12, 7
NODE_INPUT, NODE_OUTPUT, NODE_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_GRAPHS = (6, 11)
VALUE_NAME = 1
ENTRY_KEY, ENTRY_VALUE = 1, 2
CHOICES = ("ArgMax", "Split")
"""How graphs choose a label: the largest of the logits, or comparisons of the maps that they are split into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operation of a graph."""

    type: str
    inputs: tuple[str, ...]
    """Names of tensors; an optional input that is left out is empty or missing."""
    outputs: tuple[str, ...]


def write_bytes(number: int, content: bytes) -> bytes:
    """Encode a field of bytes, text or a message.

    >>> write_bytes(1, b"ab").hex()
    '0a026162'
    """
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def write_integer(number: int, value: int) -> bytes:
    """Encode a field of an integer that is not negative.

    >>> write_integer(2, 300).hex()
    '10ac02'
    """
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def has_transpose_bias(model: bytes) -> bool:
    """Return whether a ConvTranspose of a model, or of a graph inside it, has a bias.

    Raises
    ------
    ValueError
        The bytes are not protobuf.
    """
    return any(
        node.type == "ConvTranspose" and len(node.inputs) > 2 and node.inputs[2] for node in iterate_nodes(model)
    )


def iterate_nodes(model: bytes) -> Iterator[Node]:
    """Yield all nodes of a model: of its graph, of the graphs inside it, and of its functions.

    Raises
    ------
    ValueError
        The bytes are not protobuf.
    """
    functions = _messages(memoryview(model), MODEL_FUNCTION)
    nodes = [*_graph_nodes(model), *(node for one in functions for node in _messages(one, FUNCTION_NODE))]
    while nodes:
        node = nodes.pop()
        yield read_node(node)
        for attribute in _messages(node, NODE_ATTRIBUTE):
            nodes += [inner for number in ATTRIBUTE_GRAPHS for graph in _messages(attribute, number)
                      for inner in _messages(graph, GRAPH_NODE)]  # fmt: skip


def find_logits(model: bytes) -> str | None:
    """Return the name of the logits that the output ``label`` is chosen from, or None.

    They are the input of the nearest ArgMax or Split on the way back from the label.

    Raises
    ------
    ValueError
        The bytes are not protobuf.
    """
    makers = {name: node for node in map(read_node, _graph_nodes(model)) for name in node.outputs}
    names, seen = ["label"], set()
    for name in names:  # grows
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.type in CHOICES:
            return node.inputs[0]
        names += node.inputs
    return None


def add_output(model: bytes, name: str) -> bytes:
    """Return a model with one of its tensors as an output, too.

    Protobuf merges a message that occurs twice, so the graph's new output is appended.
    """
    graphs = _messages(memoryview(model), MODEL_GRAPH)
    if any(name in _texts(output, VALUE_NAME) for graph in graphs for output in _messages(graph, GRAPH_OUTPUT)):
        return model
    return model + write_bytes(MODEL_GRAPH, write_bytes(GRAPH_OUTPUT, write_bytes(VALUE_NAME, name.encode())))


def read_metadata(model: bytes, key: str) -> str | None:
    """Return an entry of a model's metadata, or None.

    Raises
    ------
    ValueError
        The bytes are not protobuf, or the entry is not text.

    >>> entry = write_bytes(ENTRY_KEY, b"author") + write_bytes(ENTRY_VALUE, b"us")
    >>> read_metadata(write_bytes(MODEL_METADATA, entry), "author")
    'us'
    """
    for entry in _messages(memoryview(model), MODEL_METADATA):
        if key in _texts(entry, ENTRY_KEY):
            return "".join(_texts(entry, ENTRY_VALUE))
    return None


def read_node(node: memoryview) -> Node:
    """Return a node."""
    return Node(
        type="".join(_texts(node, NODE_TYPE)),
        inputs=tuple(_texts(node, NODE_INPUT)),
        outputs=tuple(_texts(node, NODE_OUTPUT)),
    )


def _graph_nodes(model: bytes) -> list[memoryview]:
    graphs = _messages(memoryview(model), MODEL_GRAPH)
    return [node for graph in graphs for node in _messages(graph, GRAPH_NODE)]


def _texts(message: memoryview, number: int) -> list[str]:
    return [bytes(text).decode() for text in _messages(message, number)]


def _messages(message: memoryview, number: int) -> list[memoryview]:
    """Return the contents of the fields of a number."""
    return [content for found, content in _fields(message) if found == number]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield numbers and contents of fields; numbers and other values of fixed width are skipped."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == VARINT:
            _, position = _read_varint(message, position)
            continue
        length = WIDTHS.get(kind)
        if kind == BYTES:
            length, position = _read_varint(message, position)
        if length is None or position + length > len(message):
            raise ValueError("is not a protobuf message")
        if kind == BYTES:
            yield tag >> 3, message[position : position + length]
        position += length


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return an integer and the position behind it."""
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    raise ValueError("is not a protobuf message")
