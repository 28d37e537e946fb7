"""An ONNX file of contract 1, opened: what it says of itself, and slices in, labels out."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, ModelError
from slicemill.ct.labels import labels_from_json
from slicemill.infer.network.foreign import card_beside, wrapped
from slicemill.infer.runtime.capacity import capacity_of, shapes_of
from slicemill.infer.runtime.providers import Provider, listed, make_session, runtime
from slicemill.infer.runtime.tensorrt import Builder, engine_folder, engine_options, gpu_name, tensorrt_version
from slicemill.store.model_card import (
    BYTES_SUFFIX,
    CONTEXTS,
    CONTRACT,
    INPUTS,
    MAX_MM,
    MAX_SIDE,
    SHARED_KEYS,
    ModelCard,
    network_name,
    parse_postprocess_rules,
)

EXTERNAL_DATA = b"\x0a\x08location"
"""How protobuf writes the key of a tensor that lies in another file, mostly; `slicemill.infer.runtime.providers`
follows no such path however it is written."""
MAX_GATE_DIFFERENCE = 0.005
"""Share of label pixels in which a provider may differ from the CPU on real slices (design notes, RUNTIME section 4)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a network says of a batch."""

    label: npt.NDArray[np.uint8]
    """uint8[b, H, W], label values."""
    tumor: npt.NDArray[np.uint8] | None = None
    """uint8[b, H, W], 255 times the probability of tumor; None where it was not asked for."""
    maps: npt.NDArray[np.floating] | None = None
    """float[b, k, H, W], the probabilities of the classes; None where they were not asked for."""


class Model:
    """A session with its contract."""

    def __init__(self, path: Path, content: bytes, provider: Provider, device: int = 0, batch: int = 0) -> None:
        self.path = path
        self.device = device
        """Number of the GPU; the CPU is 0."""
        self.batch = batch
        """Slices in a batch, as asked for; TensorRT's engine is built for it."""
        self.gated = False
        """Whether its labels were compared with the CPU's on a scan (`slicemill.infer.parity_check`)."""
        self._content = content
        sha256 = hashlib.sha256(content).hexdigest()
        self._more: dict[str, str] = {}
        if provider == "tensorrt":
            info = read_info(make_session(content, path, "cpu")[0], path, sha256)
            self._more = told_tensorrt(info, device, batch)
        self.session, self.provider, self.reason = make_session(content, path, provider, device, self._more)
        self.info = read_info(self.session, path, sha256)

    def rebuild(self) -> None:
        """Make the session anew on the same provider, after its device failed.

        Raises
        ------
        ProviderError
            The provider does not start any more.
        """
        self.session, _, _ = make_session(self._content, self.path, self.provider, self.device, self._more)

    def feed(self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs for slices int16[n, H, W], HU, and windows int32[b, c]; with c = 1 the rows are those to label."""
        given = (
            image if self.info.input == "int16" else image.view(np.uint8).reshape(len(image), 1, *image.shape[1:], 2)
        )
        return {"image": given, "neighbors": neighbors} if self.info.context > 1 else {"image": given}

    def run(
        self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32], wanted: Sequence[str] = ("label",)
    ) -> Answer:
        """Label slices.

        Parameters
        ----------
        image
            int16[n, H, W], HU.
        neighbors
            int32[b, c]: for each slice to label, the indices in `image` of its window.
        wanted
            Names of outputs.
        """
        return answered(dict(zip(wanted, self.session.run(list(wanted), self.feed(image, neighbors)), strict=True)))


def answered(outputs: Mapping[str, npt.NDArray[Any]]) -> Answer:
    """Return outputs of the graph as an answer."""
    return Answer(outputs["label"], outputs.get("tumor"), outputs.get("probability"))


def told_tensorrt(info: ModelCard, device: int, batch: int) -> dict[str, str]:
    """Return what TensorRT is told of a model: its one batch shape, and the folder of its engine.

    Raises
    ------
    ProviderError
        TensorRT, or the GPU, is not there.
    """
    builder = Builder(gpu=gpu_name(device), onnxruntime=runtime().__version__, tensorrt=tensorrt_version())
    shapes = shapes_of(info, capacity_of(info, "tensorrt", batch))
    return engine_options(shapes, engine_folder(Path.home(), builder, info.sha256, shapes))


def file_for(path: Path, provider: str) -> Path:
    """Return the file that a provider takes of a model: TensorRT its `byte_flavor`, the others the one that was named."""
    return byte_flavor(path) if provider == "tensorrt" else path


def byte_flavor(path: Path) -> Path:
    """Return the file that TensorRT takes: this one when it takes pairs of bytes, else the one beside it of the same training.

    Raises
    ------
    ModelError
        There is none, or it is another network.
    """
    given = open_model(path, "cpu").info
    if given.input == "bytes":
        return path
    found = path.with_name(network_name(path) + BYTES_SUFFIX)
    if not found.exists():
        raise ModelError(
            f"{path}: takes int16, a type that TensorRT does not have, and {found.name} is not beside it; "
            "write it with `slicemill export --bytes`, or use --provider cuda."
        )
    taken = open_model(found, "cpu").info
    differing = [name for name in SHARED_KEYS if given.metadata.get(name) != taken.metadata.get(name)]
    if taken.input != "bytes" or taken.size != given.size or differing:
        what = ", ".join(differing) or "input or size"
        raise ModelError(
            f"{found}: is not the network of {path.name} with bytes for input (other {what}); export both again."
        )
    return found


def open_model(path: Path, provider: Provider = "auto", device: int = 0, batch: int = 0) -> Model:
    """Open a model file on a provider, and there on a device of that number; TensorRT's engine is built for one `batch`.

    Raises
    ------
    ModelError
        It is no slicemill model of this contract.
    UsageError
        There is no such provider, or the CPU, which was asked for, has no such device.
    ProviderError
        The provider does not run here.
    """
    if provider == "tensorrt":
        listed(provider)
        path = file_for(path, provider)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}.") from error
    if EXTERNAL_DATA in content:
        raise ModelError(
            f"{path}: keeps weights in other files; only a model in one file is opened. Export it again with slicemill export."
        )
    if (card := card_beside(path)) is not None:
        content = wrapped(content, path, card)
    return Model(path, content, provider, device, batch)


def read_info(session: Any, path: Path, sha256: str) -> ModelCard:
    """Read and check the metadata of a session."""
    text = session.get_modelmeta().custom_metadata_map.get("slicemill")
    if text is None:
        raise ModelError(
            f"{path}: carries no slicemill metadata; make the model with `slicemill export`, or say in {path.with_suffix('.toml').name} "
            "beside it what the network takes and gives (README, Networks of others)."
        )
    try:
        metadata = json.loads(text)
        contract, kind = metadata.get("contract"), metadata.get("input")
        if contract != CONTRACT or kind not in INPUTS:
            raise ModelError(
                f"{path}: is of contract {contract}, input {kind}; this version runs contract {CONTRACT}, "
                f"input {' or '.join(INPUTS)}. Export it again."
            )
        shapes = {given.name: given.shape for given in session.get_inputs()}
        types = {item.name: item.type for item in [*session.get_inputs(), *session.get_outputs()]}
        context = int(metadata["context"])
        expected = {
            "image": f"tensor({INPUTS[kind]})",
            "label": "tensor(uint8)",
            **({"neighbors": "tensor(int32)"} if context > 1 else {}),
            **({"tumor": "tensor(uint8)"} if "tumor" in types else {}),
        }
        if (
            context not in CONTEXTS
            or any(types.get(name) != kind for name, kind in expected.items())
            or (context == 1 and "neighbors" in shapes)
        ):
            raise ModelError(
                f"{path}: its inputs and outputs {types} do not fit context {context} of contract {CONTRACT}."
            )
        height, width = (int(extent) for extent in shapes["image"][1 if kind == "int16" else 2 :][:2])
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ModelError(f"{path}: takes slices of {height}x{width}; a side may have 1 to {MAX_SIDE} pixels.")
        return ModelCard(
            name=path.name,
            sha256=sha256,
            labels=labels_from_json(metadata),
            context=context,
            context_spacing_mm=_millimeters(metadata, "context_spacing_mm", path),
            spacing_mm=_millimeters(metadata, "spacing_mm", path),
            size=(height, width),
            input=kind,
            gives_tumor="tumor" in types,
            probability_dtype=_probability_dtype(types, path),
            one_slice=metadata.get("one_slice") is True,
            unknown=_unknown(metadata, path),
            rules=parse_postprocess_rules(metadata["postprocess"]),
            metadata=metadata,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise error if str(path) in str(error) else ModelError(f"{path}: {error}") from error
        raise ModelError(f"{path}: its slicemill metadata is incomplete ({error!r}); export it again.") from error


def _probability_dtype(types: dict[str, str], path: Path) -> str | None:
    known = {None: None, "tensor(float)": "float32", "tensor(float16)": "float16"}
    kind = types.get("probability")
    if kind not in known:
        raise ModelError(f"{path}: its output probability is a {kind}; it must be of float32 or float16.")
    return known[kind]


def _unknown(metadata: dict[str, Any], path: Path) -> int | None:
    value = metadata.get("unknown")
    if value is not None and (type(value) is not int or value in labels_from_json(metadata).table()):
        raise ModelError(f"{path}: its unknown is {value!r}; it must be a value that no label has.")
    return value


def _millimeters(metadata: dict[str, Any], key: str, path: Path) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value <= MAX_MM:
        raise ModelError(f"{path}: its {key} is {value!r}; a distance lies in 0 to {MAX_MM:g} mm. Export it again.")
    return float(value)


def compare(model: Model, label: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> float:
    """Compare a model's labels with those of the CPU and return the share of pixels that differ.

    Raises
    ------
    ModelError
        More than MAX_GATE_DIFFERENCE of the label pixels differ.
    """
    share = float(np.count_nonzero(label != expected)) / label.size
    if share > MAX_GATE_DIFFERENCE:
        raise ModelError(
            f"{model.info.name}: labels on {model.provider} differ from those on the CPU in {share:.2%} of the pixels "
            f"(limit {MAX_GATE_DIFFERENCE:.1%}); nothing was segmented. Use --provider cpu and report the versions that `slicemill doctor` prints."
        )
    return share
