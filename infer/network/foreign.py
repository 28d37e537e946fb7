"""Foreign networks: ONNX files without slicemill's metadata, described by a TOML (`infer.network.description`).

The network is wrapped, in memory, into a model file of the contract: nodes before it cut, clip and normalize the
slices, nodes after it choose the label. So the rest of `infer` treats it like any other model. Its input is float32 or
float16, [b, context, y, x].
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.common.documents import to_document
from slicemill.common.errors import InputError, ModelError
from slicemill.common.extras import describe_install, explain_import
from slicemill.ct.labels import Labels
from slicemill.infer.network.activation import find_network_logits
from slicemill.infer.network.description import NetworkDescription, read_description
from slicemill.infer.runtime.messages import find_cause
from slicemill.store.model_card import METADATA_KEY, ModelCard

MIN_OPSET = 13
"""Since then Squeeze and Unsqueeze take their axes as an input, as here; newer opsets are compatible."""
NO_VALUE = 256
"""A number above every uint8."""
PREFIX = "network/"
KEYS = (
    "contract", "input", "precision", "foreign", "window_hu", "context", "context_spacing_mm", "spacing_mm",
    "postprocess", "unknown", "one_slice", "labels", "organ", "tumor",
)  # fmt: skip
"""Metadata of a wrapped network. Their order is part of the model's hash, by which finished scans are recognized."""


def wrap_network(content: bytes, model: Path, description: Path) -> bytes:
    """Wrap a foreign network into a model file of the contract; a file with slicemill metadata is returned unchanged.

    Raises
    ------
    ModelError
        The bytes are not an ONNX model, or do not fit the description.
    """
    missing = f"a network without slicemill's metadata needs the package onnx. {describe_install('train')}."
    with explain_import("onnx", ModelError(missing, where=model)):
        import onnx
    try:
        network = onnx.load_from_string(content)
    except Exception as error:  # protobuf raises its own types
        raise ModelError(f"{model}: is not an ONNX model ({find_cause(error)}).") from error
    if any(entry.key == METADATA_KEY for entry in network.metadata_props):
        return content
    if not network.graph.node:
        raise ModelError(f"{model}: is not an ONNX model (it contains no network).")
    described, labels = read_description(description)
    try:
        return bytes(_Wrapper(onnx, network, described, labels).model().SerializeToString())
    except InputError as error:
        raise ModelError(f"{model}: {error} (The network is described by {description.name}.)") from error


def find_free_label_value(labels: Labels) -> int:
    """Return the smallest value that no label has. It marks network outputs that are not labels.

    >>> from slicemill.ct.labels import make_labels
    >>> find_free_label_value(make_labels({"liver": 1, "tumor": 3}))
    2

    Raises
    ------
    ModelError
        Every value has a label.
    """
    free = set(range(1, NO_VALUE)) - set(labels.values.values())
    if not free:
        raise ModelError("output = label: at most 254 labels; leave one label value unused; it marks unknown output.")
    return min(free)


class _Wrapper:
    """The nodes around a network."""

    def __init__(self, onnx: Any, network: Any, described: NetworkDescription, labels: Labels) -> None:
        self.onnx = onnx
        self.network = onnx.compose.add_prefix(network, PREFIX)
        self.described = described
        self.labels = labels
        opset = max((entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx")), default=None)
        if opset is None or opset < MIN_OPSET:
            raise ModelError(f"is of opset {opset}; export it with opset_version={MIN_OPSET} or more.")
        weights = {entry.name for entry in self.network.graph.initializer}
        inputs = [entry for entry in self.network.graph.input if entry.name not in weights]
        self.input = _choose(inputs, described.input_name, "input")
        self.output = _choose(list(self.network.graph.output), described.output_name, "output", first=True)
        self.logits = self.output.name
        if described.output == "logits":
            self.logits = find_network_logits(self.network, self.output.name)
        self.dtype = self.input.type.tensor_type.elem_type
        self.size = self._slice_size()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def _slice_size(self) -> tuple[int, int]:
        types = self.onnx.TensorProto
        if self.dtype not in (types.FLOAT, types.FLOAT16):
            raise ModelError("its input must be float32 or float16 [b, context, y, x].")
        shape = _shape(self.input)
        if len(shape) != 4:
            raise ModelError(f"its input has the shape {shape}; expected four axes, [b, context, y, x].")
        if shape[0] not in (None, 1):
            raise ModelError(f"takes exactly {shape[0]} slices at a time; export it with an open batch axis.")
        if shape[1] not in (None, self.described.context):
            raise ModelError(f"takes {shape[1]} channels, but context = {self.described.context}.")
        stated = self.described.size or (None, None)
        height, width = shape[2] or stated[0], shape[3] or stated[1]
        if height is None or width is None:
            raise ModelError(
                "leaves height and width open; add size = [512, 512], or another size that its levels can halve."
            )
        if stated not in ((None, None), (height, width)):
            raise ModelError(f"takes slices of {height}x{width}, but size = {list(stated)}.")
        return height, width

    def model(self) -> Any:
        """Return the model around the network."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        height, width = self.size
        inputs = [helper.make_tensor_value_info("image", types.INT16, ["n", height, width])]
        if self.described.context > 1:
            inputs.append(helper.make_tensor_value_info("neighbors", types.INT32, ["b", self.described.context]))
        self._add_head()
        self.nodes += self.network.graph.node
        outputs = [helper.make_tensor_value_info("label", types.UINT8, ["b", height, width])]
        outputs += self._add_label_tail() if self.described.output == "label" else self._add_logits_tail()
        graph = helper.make_graph(
            self.nodes, "foreign", inputs, outputs, [*self.network.graph.initializer, *self.constants]
        )
        model = helper.make_model(
            graph, opset_imports=list(self.network.opset_import), functions=list(self.network.functions)
        )
        model.ir_version = self.network.ir_version
        helper.set_model_props(model, {METADATA_KEY: json.dumps(self._metadata())})
        return model

    def _add_head(self) -> None:
        """Add the nodes from ``image`` to the network's input: clip, normalize, gather the context slices, cast."""
        described = self.described
        last = self._add("Cast", "image", to=self.onnx.TensorProto.FLOAT)
        last = self._add("Clip", last, *(self._constant(np.float32(limit)) for limit in described.window_hu))
        last = self._add("Sub", last, self._constant(np.float32(described.mean)))
        last = self._add("Div", last, self._constant(np.float32(described.std)))
        channels = ["neighbors"] if described.context > 1 else [self._constant(np.array([1]))]
        last = self._add("Gather" if described.context > 1 else "Unsqueeze", last, *channels)
        self._add("Cast", last, to=self.dtype, out=self.input.name)

    def _add_label_tail(self) -> list[Any]:
        """Add the nodes from the network's values to ``label``.

        A value without a label, also a fraction or nan, becomes `find_free_label_value`.
        """
        shape = _shape(self.output)
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] not in (None, 1)):
            raise ModelError(f"its output has the shape {shape}; labels are [b, y, x] or [b, 1, y, x].")
        values = self.output.name
        if len(shape) == 4:
            values = self._add("Squeeze", values, self._constant(np.array([1])))
        table = np.full(NO_VALUE + 1, find_free_label_value(self.labels), dtype=np.uint8)
        table[self.labels.table()] = self.labels.table()
        number = self._add("Cast", values, to=self.onnx.TensorProto.FLOAT)
        low, high = self._constant(np.float32(0)), self._constant(np.float32(NO_VALUE - 1))
        inside = self._add("And", self._add("GreaterOrEqual", number, low), self._add("LessOrEqual", number, high))
        fits = self._add("And", inside, self._add("Equal", number, self._add("Floor", number)))
        index = self._add("Where", fits, number, self._constant(np.float32(NO_VALUE)))
        row = self._add("Cast", index, to=self.onnx.TensorProto.INT32)
        self._add("Gather", self._constant(table), row, axis=0, out="label")
        return []

    def _add_logits_tail(self) -> list[Any]:
        """Add the nodes from the network's logits to the outputs, and return those other than ``label``."""
        helper, types, (height, width) = self.onnx.helper, self.onnx.TensorProto, self.size
        shape = _shape(self.output)
        classes = len(self.labels.values) + 1
        if len(shape) != 4 or shape[1] not in (None, classes):
            raise ModelError(
                f"its output has the shape {shape}; logits of background and {classes - 1} labels are "
                f"[b, {classes}, y, x]."
            )
        logits = self._add("Cast", self.logits, to=types.FLOAT)
        best = self._add("ArgMax", logits, axis=1, keepdims=0)
        self._add("Gather", self._constant(self.labels.table()), best, axis=0, out="label")
        share = self._add("Softmax", logits, axis=1, out="probability")
        outputs = [helper.make_tensor_value_info(share, types.FLOAT, ["b", classes, height, width])]
        if (value := self.labels.tumor_value()) is not None:
            index = self.labels.table().tolist().index(value)
            one = self._add("Gather", share, self._constant(np.array(index)), axis=1)
            scaled = self._add("Mul", one, self._constant(np.float32(255)))
            rounded = self._add("Add", scaled, self._constant(np.float32(0.5)))
            self._add("Cast", rounded, to=types.UINT8, out="tumor")
            outputs.append(helper.make_tensor_value_info("tumor", types.UINT8, ["b", height, width]))
        return outputs

    def _metadata(self) -> dict[str, Any]:
        described, labels = self.described, self.labels
        document = ModelCard(
            labels=dict(labels.values),
            organ=labels.organ,
            tumor=labels.tumor,
            window_hu=described.window_hu,
            context=described.context,
            context_spacing_mm=described.context_spacing_mm,
            spacing_mm=described.spacing_mm,
            input="int16",
            precision="fp16" if self.dtype == self.onnx.TensorProto.FLOAT16 else "fp32",
            postprocess=described.postprocess,
            foreign=to_document(described),
            unknown=find_free_label_value(labels) if described.output == "label" else None,
            one_slice=_shape(self.input)[0] == 1,
        ).as_json()
        return {key: document.get(key) for key in KEYS}

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = out or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name


def _choose(entries: Sequence[Any], name: str | None, role: str, *, first: bool = False) -> Any:
    names = [entry.name.removeprefix(PREFIX) for entry in entries]
    if name is None and (len(entries) == 1 or (first and entries)):
        return entries[0]
    if name not in names:
        raise ModelError(f"has the {role}s {', '.join(names) or 'none'}; name one of them as {role}_name.")
    return entries[names.index(name)]


def _shape(entry: Any) -> list[int | None]:
    """Return the shape of an input or output, None for open axes."""
    return [axis.dim_value or None for axis in entry.type.tensor_type.shape.dim]
