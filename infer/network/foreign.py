"""Networks of others: an ONNX file without our metadata, and a TOML of its name beside it that says what it takes and gives.

    labels = {liver = 1, tumor = 2}   # classes 1, 2, ... in order of value; class 0 is background
    window_hu = [-200, 300]           # HU are clipped to it, then (HU - mean) / std
    mean = 50.0
    std = 250.0
    output = "logits"                 # [b, class, y, x]; or "label": [b, y, x] or [b, 1, y, x], values of the labels
    size = [512, 512]                 # needed where the file leaves height and width open
    context = 3                       # channels: slices from the one below to the one above; 1 where absent

The network is put between a head and a tail of our own, in memory: what runs is a model file of our contract (README), so the
rest of `infer` knows no difference. The input is float32 or float16, [b, context, y, x] (NCHW).
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slicemill.common.errors import InputError, ModelError
from slicemill.ct.labels import Labels, make_labels
from slicemill.store.model_card import parse_postprocess_rules

CONTRACT = 1
"""The contract of the file that is made."""
CONTEXTS = (1, 3, 5, 7)
MAX_HU, MIN_STD = 1e6, 1e-6
"""HU; what lies beyond makes slices of nothing but 0, inf or nan in float32, or soon does."""
MIN_OPSET = 13
"""Since then ReduceSum and Softmax take one axis, as here; newer ones are declared compatible by ONNX."""
NO_VALUE = 256
"""A number that no uint8 is."""
OURS = "slicemill"
PREFIX = "network/"


def is_number(value: object) -> bool:
    """Return whether a value of TOML is a number that a CT can have, which nan, inf and true are not."""
    return type(value) in (int, float) and -MAX_HU <= value <= MAX_HU  # type: ignore[operator]


def is_side(value: object) -> bool:
    """Return whether a value of TOML is a number of pixels."""
    return type(value) is int and value > 0


def is_pair(value: object, fits: Callable[[object], bool]) -> bool:
    """Return whether a value of TOML is two values that fit."""
    return isinstance(value, tuple) and len(value) == 2 and all(fits(one) for one in value)


RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "labels",
        lambda it: isinstance(it, dict) and all(type(value) is int for value in it.values()),
        "expected names with whole numbers, like {liver = 1, tumor = 2}",
    ),
    ("window_hu", lambda it: is_pair(it, is_number) and it[0] < it[1], "expected two numbers of HU, the lower first"),
    ("mean", is_number, f"expected a number of HU, of at most {MAX_HU:g}"),
    ("std", lambda it: is_number(it) and it >= MIN_STD, f"must be more than 0, {MIN_STD:g} to {MAX_HU:g} HU"),
    ("output", lambda it: it in ("logits", "label"), "choose logits or label"),
    ("context", lambda it: type(it) is int and it in CONTEXTS, f"choose one of {', '.join(map(str, CONTEXTS))}"),
    ("size", lambda it: it is None or is_pair(it, is_side), "expected height and width"),
    ("spacing_mm context_spacing_mm", lambda it: it is None or (is_number(it) and it > 0), "expected a number of mm"),
    ("organ tumor input_name output_name", lambda it: it is None or isinstance(it, str), "expected a name in quotes"),
)
"""Settings, what their values must be, and how that is said."""


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """What the TOML says."""

    labels: dict[str, int]
    window_hu: tuple[float, float]
    mean: float
    """HU."""
    std: float
    """HU."""
    output: Literal["logits", "label"]
    size: tuple[int, int] | None = None
    """Height and width, where the file leaves them open."""
    context: int = 1
    context_spacing_mm: float | None = None
    spacing_mm: float | None = None
    organ: str | None = None
    tumor: str | None = None
    input_name: str | None = None
    output_name: str | None = None
    """Which output, where the network has several; the first where absent."""
    postprocess: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without the network."""
        for names, fits, expected in RULES:
            for name in names.split():
                if not fits(value := getattr(self, name)):
                    raise ModelError(f"{name} = {value!r}: {expected}.")
        parse_postprocess_rules(self.postprocess)


def card_beside(model: Path) -> Path | None:
    """Return the TOML of a model's name beside it, or None."""
    path = model.with_suffix(".toml")
    return path if path.is_file() and path != model else None


def read_card(path: Path) -> NetworkDescription:
    """Read the TOML.

    Raises
    ------
    ModelError
        It is no TOML, a setting is unknown, missing or unfit.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(set(given) - set(NetworkDescription.__dataclass_fields__))
        if unknown:
            raise ModelError(
                f"{unknown[0]} is no setting; there are {', '.join(NetworkDescription.__dataclass_fields__)}."
            )
        fitting: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        return NetworkDescription(**fitting)
    except InputError as error:
        raise ModelError(f"{path}: {error}") from error
    except (OSError, ValueError, TypeError) as error:
        said = str(error).removeprefix("Card.__init__() ").replace("keyword-only argument", "setting")
        raise ModelError(
            f"{path}: does not say what the network takes and gives ({said}); the README shows an example."
        ) from error


def wrapped(content: bytes, model: Path, card_path: Path) -> bytes:
    """Return a model file of our contract around a network's own; one that is of the contract already as it is.

    Raises
    ------
    ModelError
        The bytes are no ONNX model, or do not fit what the TOML says.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            f"{model}: a network without our metadata needs the package onnx; pip install onnx."
        ) from error
    try:
        network = onnx.load_from_string(content)
    except Exception as error:  # protobuf raises types of its own
        raise ModelError(f"{model}: is not an ONNX model ({first_line(error)}).") from error
    if any(entry.key == OURS for entry in network.metadata_props):
        return content
    if not network.graph.node:
        raise ModelError(f"{model}: is not an ONNX model (it holds no network).")
    try:
        card = read_card(card_path)
        try:
            labels = make_labels(card.labels, card.organ, card.tumor)
        except InputError as error:
            raise ModelError(f"{card_path}: {error}") from error
        return bytes(_Wrapper(onnx, network, card, labels).model().SerializeToString())
    except InputError as error:
        raise (
            error if str(card_path) in str(error) else ModelError(f"{model}: {error} ({card_path.name} says so.)")
        ) from error


def unknown_of(labels: Labels) -> int:
    """Return the value that stands for what a network gives and no label has: the smallest that is free.

    >>> unknown_of(make_labels({"liver": 1, "tumor": 3}))
    2

    Raises
    ------
    ModelError
        Every value has a label.
    """
    free = set(range(1, NO_VALUE)) - set(labels.values.values())
    if not free:
        raise ModelError("output = label: at most 254 labels; 255 leave no value to tell what is none of them.")
    return min(free)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Wrapper:
    """The pieces of the graph that goes around a network."""

    def __init__(self, onnx: Any, network: Any, card: NetworkDescription, labels: Labels) -> None:
        self.onnx = onnx
        self.network = onnx.compose.add_prefix(network, PREFIX)
        self.card = card
        self.labels = labels
        opset = max((entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx")), default=None)
        if opset is None or opset < MIN_OPSET:
            raise ModelError(f"is of opset {opset}; export it with opset_version={MIN_OPSET} or more.")
        weights = {entry.name for entry in self.network.graph.initializer}
        inputs = [entry for entry in self.network.graph.input if entry.name not in weights]
        self.given = _chosen(inputs, card.input_name, "input")
        self.result = _chosen(list(self.network.graph.output), card.output_name, "output", first=True)
        self.kind = self.given.type.tensor_type.elem_type
        self.size = self._size()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def _size(self) -> tuple[int, int]:
        types = self.onnx.TensorProto
        if self.kind not in (types.FLOAT, types.FLOAT16):
            raise ModelError("its input must be float32 or float16 [b, context, y, x].")
        shape = _shape(self.given)
        if len(shape) != 4:
            raise ModelError(f"its input has the shape {shape}; expected four axes, [b, context, y, x].")
        if shape[0] not in (None, 1):
            raise ModelError(f"takes exactly {shape[0]} slices at a time; export it with an open batch axis.")
        if shape[1] not in (None, self.card.context):
            raise ModelError(f"takes {shape[1]} channels, but context = {self.card.context}.")
        asked = self.card.size or (None, None)
        height, width = shape[2] or asked[0], shape[3] or asked[1]
        if height is None or width is None:
            raise ModelError("leaves height and width open; add a size = [512, 512] that its levels can halve.")
        if asked != (None, None) and tuple(asked) != (height, width):
            raise ModelError(f"takes slices of {height}x{width}, but size = {list(asked)}.")
        return height, width

    def model(self) -> Any:
        """Return the whole model."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        height, width = self.size
        image = helper.make_tensor_value_info("image", types.INT16, ["n", height, width])
        inputs = [image]
        if self.card.context > 1:
            inputs.append(helper.make_tensor_value_info("neighbors", types.INT32, ["b", self.card.context]))
        self._head()
        self.nodes += self.network.graph.node
        outputs = [helper.make_tensor_value_info("label", types.UINT8, ["b", height, width])]
        outputs += self._tail()
        graph = helper.make_graph(
            self.nodes, "foreign", inputs, outputs, [*self.network.graph.initializer, *self.constants]
        )
        model = helper.make_model(
            graph, opset_imports=list(self.network.opset_import), functions=list(self.network.functions)
        )
        model.ir_version = self.network.ir_version
        helper.set_model_props(model, {OURS: json.dumps(self._metadata())})
        return model

    def _head(self) -> None:
        card = self.card
        last = self._add("Cast", "image", to=self.onnx.TensorProto.FLOAT)
        last = self._add("Clip", last, *(self._constant(np.float32(limit)) for limit in card.window_hu))
        last = self._add("Sub", last, self._constant(np.float32(card.mean)))
        last = self._add("Div", last, self._constant(np.float32(card.std)))
        windows = (
            ("Gather", last, "neighbors") if card.context > 1 else ("Unsqueeze", last, self._constant(np.array([1])))
        )
        last = self._add(*windows)
        self._add("Cast", last, to=self.kind, out=self.given.name)

    def _tail(self) -> list[Any]:
        """Add the nodes from the network's result to ``label``, and return the other outputs."""
        helper, types, (height, width) = self.onnx.helper, self.onnx.TensorProto, self.size
        shape = _shape(self.result)
        if self.card.output == "label":
            if len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] not in (None, 1)):
                raise ModelError(f"its output has the shape {shape}; labels are [b, y, x] or [b, 1, y, x].")
            squeezed = self.result.name
            if len(shape) == 4:
                squeezed = self._add("Squeeze", squeezed, self._constant(np.array([1])))
            self._known(squeezed)
            return []
        classes = len(self.labels.values) + 1
        if len(shape) != 4 or shape[1] not in (None, classes):
            raise ModelError(
                f"its output has the shape {shape}; logits of background and {classes - 1} labels are [b, {classes}, y, x]."
            )
        logits = self._add("Cast", self.result.name, to=types.FLOAT)
        best = self._add("ArgMax", logits, axis=1, keepdims=0)
        self._add("Gather", self._constant(self.labels.table()), best, axis=0, out="label")
        share = self._add("Softmax", logits, axis=1, out="probability")
        outputs = [helper.make_tensor_value_info(share, types.FLOAT, ["b", classes, height, width])]
        if (value := self.labels.tumor_value()) is not None:
            index = self.labels.table().tolist().index(value)
            one = self._add("Gather", share, self._constant(np.array(index)), axis=1)
            scaled = self._add(
                "Add", self._add("Mul", one, self._constant(np.float32(255))), self._constant(np.float32(0.5))
            )
            self._add("Cast", scaled, to=types.UINT8, out="tumor")
            outputs.append(helper.make_tensor_value_info("tumor", types.UINT8, ["b", height, width]))
        return outputs

    def _known(self, values: str) -> None:
        """Add the nodes from the network's values to ``label``: what is no label, a fraction or nan too, becomes `unknown_of`."""
        table = np.full(NO_VALUE + 1, unknown_of(self.labels), dtype=np.uint8)
        table[self.labels.table()] = self.labels.table()
        number = self._add("Cast", values, to=self.onnx.TensorProto.FLOAT)
        low, high = self._constant(np.float32(0)), self._constant(np.float32(NO_VALUE - 1))
        inside = self._add("And", self._add("GreaterOrEqual", number, low), self._add("LessOrEqual", number, high))
        fits = self._add("And", inside, self._add("Equal", number, self._add("Floor", number)))
        index = self._add("Where", fits, number, self._constant(np.float32(NO_VALUE)))
        row = self._add("Cast", index, to=self.onnx.TensorProto.INT32)
        self._add("Gather", self._constant(table), row, axis=0, out="label")

    def _metadata(self) -> dict[str, Any]:
        card = self.card
        return {
            "contract": CONTRACT,
            "input": "int16",
            "precision": "fp16" if self.kind == self.onnx.TensorProto.FLOAT16 else "fp32",
            "foreign": asdict(card),
            "window_hu": list(card.window_hu),
            "context": card.context,
            "context_spacing_mm": card.context_spacing_mm,
            "spacing_mm": card.spacing_mm,
            "postprocess": card.postprocess,
            "unknown": unknown_of(self.labels) if card.output == "label" else None,
            "one_slice": _shape(self.given)[0] == 1,
            **self.labels.as_json(),
        }

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name


def _chosen(entries: Sequence[Any], name: str | None, role: str, *, first: bool = False) -> Any:
    names = [entry.name.removeprefix(PREFIX) for entry in entries]
    if name is None and (len(entries) == 1 or (first and entries)):
        return entries[0]
    if name not in names:
        raise ModelError(f"has the {role}s {', '.join(names) or 'none'}; name one of them as {role}_name.")
    return entries[names.index(name)]


def _shape(entry: Any) -> list[int | None]:
    """Return the extents of an input or output, None where they are open."""
    return [axis.dim_value or None for axis in entry.type.tensor_type.shape.dim]
