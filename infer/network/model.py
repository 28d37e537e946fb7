"""An opened model file of contract 1: its card, and a session that turns slices into labels."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ModelError, ProviderError
from slicemill.infer.network.bfloat16 import choose_bfloat16
from slicemill.infer.network.description import description_path
from slicemill.infer.network.external_weights import read_weights_beside
from slicemill.infer.network.foreign import wrap_network
from slicemill.infer.runtime.capacity import batch_capacity, count_lanes, input_shapes
from slicemill.infer.runtime.onnx_file import add_output, find_logits, iterate_nodes
from slicemill.infer.runtime.providers import Provider, import_onnxruntime, make_session, require_listed
from slicemill.infer.runtime.tensorrt import Builder, engine_folder, engine_options, gpu_name, tensorrt_version
from slicemill.store.model_card import (
    CONTEXTS,
    CONTRACT,
    INPUT_TYPES,
    MAX_SIDE,
    METADATA_KEY,
    SHARED_KEYS,
    TENSORRT_SUFFIX,
    ModelCard,
    ModelInfo,
    decode_metadata,
    network_name,
)
from slicemill.store.training_scans import TRAINING_SCANS_KEY, decode_training_scans

PROBABILITY_TYPES = {None: None, "tensor(float)": "float32", "tensor(float16)": "float16"}


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """Outputs of a network for one batch."""

    label: npt.NDArray[np.uint8]
    """uint8[b, H, W], label values."""
    tumor: npt.NDArray[np.uint8] | None = None
    """uint8[b, H, W], 255 times the probability of tumor; None where it was not requested."""
    maps: npt.NDArray[np.floating] | None = None
    """float[b, k, H, W], probabilities of the classes; None where they were not requested."""
    in_place: bool = False
    """Whether all outputs were written to the arrays that the caller offered for them."""


class Model:
    """A session and the card of its file."""

    def __init__(
        self, path: Path, content: bytes, provider: Provider, device: int = 0, batch: int = 0, lanes: int = 0
    ) -> None:
        self.path = path
        self.device = device
        """Number of the GPU; the CPU is 0."""
        self.batch = batch
        """Requested slices in a batch, 0 for the default; TensorRT's engine is built for it."""
        self.rebuilt = 0
        """How often its session was made again."""
        self.parity_checked = False
        """Whether its labels were compared with the CPU's on a scan (`slicemill.infer.parity_check`)."""
        self._content = content
        sha256 = hashlib.sha256(content).hexdigest()
        self._provider_options: dict[str, str] = {}
        if provider == "tensorrt":
            info = read_model_info(make_session(content, path, "cpu")[0], path, sha256)
            self._provider_options = tensorrt_options(info, device, batch)
        self._session, self.provider, self.reason = make_session(
            content, path, provider, device, self._provider_options
        )
        self.lanes = lanes or count_lanes(self.provider)
        """Batches in progress at once."""
        self.info = read_model_info(self.session, path, sha256)

    @property
    def session(self) -> Any:
        """Return the session.

        Raises
        ------
        ProviderError
            The device failed, and no new session could be made.
        """
        if self._session is None:
            raise ProviderError(f"{self.provider}: the device failed.")
        return self._session

    @session.setter
    def session(self, session: Any) -> None:
        self._session = session

    def on_device(self, device: int) -> "Model":
        """Return the same model on another device of its provider."""
        return Model(self.path, self._content, self.provider, device, self.batch, self.lanes)

    def rebuild(self) -> None:
        """Make a new session on the same provider, after its device failed; drop the old one first, with its memory.

        Raises
        ------
        ProviderError
            The provider no longer runs. That is so after most errors of CUDA: they last as long as the process.
        """
        self._session = None
        self._session, _, _ = make_session(self._content, self.path, self.provider, self.device, self._provider_options)
        self.rebuilt += 1

    def feed(self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs.

        Parameters
        ----------
        image
            int16[n, H, W], HU. Without context slices, these are the slices to label.
        neighbors
            int32[b, c]: for each slice to label, the rows of `image` that are its context.
        """
        as_bytes = self.info.input == "bytes"
        voxels = image.view(np.uint8).reshape(len(image), 1, *image.shape[1:], 2) if as_bytes else image
        return {"image": voxels, "neighbors": neighbors} if self.info.context > 1 else {"image": voxels}

    def run(
        self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32], outputs: Sequence[str] = ("label",)
    ) -> NetworkOutput:
        """Label slices.

        Parameters
        ----------
        image
            int16[n, H, W], HU.
        neighbors
            int32[b, c]: for each slice to label, the rows of `image` that are its context.
        outputs
            Names of the outputs to compute.
        """
        arrays = self.session.run(list(outputs), self.feed(image, neighbors))
        return make_output(dict(zip(outputs, arrays, strict=True)))

    def run_on_cpu(
        self, image: npt.NDArray[np.int16], neighbors: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
        """Label slices on the CPU, in a session of its own.

        Returns
        -------
        The labels uint8[b, H, W], and the logits float[b, k, H, W]; None where the graph has none for each label value.
        """
        logits = None if self.info.unknown is not None else find_logits(self._content)
        content = self._content if logits is None else add_output(self._content, logits)
        session, _, _ = make_session(content, self.path, "cpu")
        label, *more = session.run(["label", *filter(None, [logits])], self.feed(image, neighbors))
        shape = (len(label), len(self.info.labels.table()), *label.shape[1:])
        return label, more[0] if more and more[0].shape == shape else None


def make_output(outputs: Mapping[str, npt.NDArray[Any]], *, in_place: bool = False) -> NetworkOutput:
    """Return named outputs of the graph as a `NetworkOutput`."""
    return NetworkOutput(outputs["label"], outputs.get("tumor"), outputs.get("probability"), in_place)


def tensorrt_options(info: ModelInfo, device: int, batch: int) -> dict[str, str]:
    """Return TensorRT's options for one model: the only shape of its batches, and the folder of its engine.

    Raises
    ------
    ProviderError
        TensorRT or the GPU is missing.
    """
    builder = Builder(gpu=gpu_name(device), onnxruntime=import_onnxruntime().__version__, tensorrt=tensorrt_version())
    shapes = input_shapes(info, batch_capacity(info, "tensorrt", batch))
    return engine_options(shapes, engine_folder(Path.home(), builder, info.sha256, shapes))


def find_provider_file(path: Path, provider: str) -> Path:
    """Return the flavor of a model that a provider runs: TensorRT its `byte_flavor`, the others the named file."""
    return byte_flavor(path) if provider == "tensorrt" else path


def byte_flavor(path: Path) -> Path:
    """Return the file that TensorRT runs: this one if it takes pairs of bytes, else its flavor of the same training.

    Raises
    ------
    ModelError
        There is none, or it is of another network.
    """
    info = open_model(path, "cpu").info
    if info.input == "bytes":
        return path
    flavor = path.with_name(network_name(path) + TENSORRT_SUFFIX)
    if not flavor.exists():
        raise ModelError(
            f"{path}: takes int16, a type that TensorRT does not have, and {flavor.name} is not in its folder; "
            "write it with `slicemill export --bytes`, or use --provider cuda."
        )
    other = open_model(flavor, "cpu").info
    differing = differing_keys(info.card, other.card)
    if other.input != "bytes" or other.size != info.size or differing:
        what = ", ".join(differing) or "input or size"
        raise ModelError(
            f"{flavor}: is not the byte flavor of {path.name}, because these differ: {what}; export both again."
        )
    return flavor


def differing_keys(card: ModelCard, other: ModelCard) -> list[str]:
    """Return the names of the metadata that flavors of one network share and these two files do not."""
    return [key for key in SHARED_KEYS if getattr(card, key) != getattr(other, key)]


def open_model(path: Path, provider: Provider = "auto", device: int = 0, batch: int = 0, lanes: int = 0) -> Model:
    """Open a model file. `auto` takes CUDA if it starts, OpenVINO for bfloat16 (`choose_bfloat16`), or the CPU.

    Parameters
    ----------
    device
        Number of the provider's device.
    batch
        Slices in a batch, 0 for the default; TensorRT's engine is built for it.
    lanes
        Batches in progress at once, 0 for the provider's default (`slicemill.infer.runtime.capacity`).

    Raises
    ------
    ModelError
        It is not a slicemill model of this contract.
    UsageError
        There is no such provider, or the CPU was requested and has no such device.
    ProviderError
        The provider does not run here.
    """
    if provider == "tensorrt":
        require_listed(provider)
        path = find_provider_file(path, provider)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}.") from error
    content = read_weights_beside(content, path)
    if (description := description_path(path)) is not None:
        content = wrap_network(content, path, description)
    check_ends(content, path)
    model = Model(path, content, provider, device, batch, lanes)
    if provider == "auto" and model.provider == "cpu":
        return choose_bfloat16(model, lambda: Model(path, content, "openvino", device, batch, lanes))
    return model


def check_ends(content: bytes, path: Path) -> None:
    """Check that a network has no loop: nobody can tell when a loop ends, and onnxruntime cannot be interrupted.

    Raises
    ------
    ModelError
        It has one.
    """
    try:
        has_loop = any(node.type == "Loop" for node in iterate_nodes(content))
    except ValueError:  # not protobuf: onnxruntime explains it
        return
    if has_loop:
        raise ModelError(
            "has a Loop, which may never end; export the network by tracing, without scripted loops.", where=path
        )


def read_model_info(session: Any, path: Path, sha256: str) -> ModelInfo:
    """Read the metadata of a session, and check that its graph fits them.

    Raises
    ------
    ModelError
        It is not a slicemill model of this contract.
    """
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        text = metadata.get(METADATA_KEY)
        inputs = {entry.name: entry for entry in session.get_inputs()}
        types = {entry.name: entry.type for entry in [*inputs.values(), *session.get_outputs()]}
    except UnicodeDecodeError as error:
        raise ModelError(f"has a text that is not UTF-8 ({error}); export it again.", where=path) from error
    if text is None:
        raise ModelError(
            f"{path}: has no slicemill metadata; make the model with `slicemill export`, or describe the network "
            f"in {path.with_suffix('.toml').name} in the same folder (documentation, A model of someone else)."
        )
    card = decode_metadata(text, str(path))
    expected = {"image": f"tensor({INPUT_TYPES[card.input]})", "label": "tensor(uint8)"}
    if card.context > 1:
        expected["neighbors"] = "tensor(int32)"
    if "tumor" in types:
        expected["tumor"] = "tensor(uint8)"
    if (
        "image" not in inputs
        or card.context not in CONTEXTS
        or any(types.get(name) != type_ for name, type_ in expected.items())
        or (card.context == 1 and "neighbors" in inputs)
    ):
        raise ModelError(
            f"{path}: its inputs and outputs {types} do not fit context {card.context} of contract {CONTRACT}."
        )
    if types.get("probability") not in PROBABILITY_TYPES:
        raise ModelError(f"{path}: its output probability is a {types['probability']}; expected float32 or float16.")
    return ModelInfo(
        name=path.name,
        sha256=sha256,
        card=card,
        size=_slice_size(inputs["image"].shape, card, path),
        gives_tumor="tumor" in types,
        probability_dtype=PROBABILITY_TYPES[types.get("probability")],
        training_scans=decode_training_scans(metadata.get(TRAINING_SCANS_KEY), str(path)),
    )


def _slice_size(shape: Sequence[object], card: ModelCard, path: Path) -> tuple[int, int]:
    """Return the fixed height and width of the input ``image``."""
    sides = list(shape)[1:3] if card.input == "int16" else list(shape)[2:4]
    match sides:
        case [int(height), int(width)] if 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE:
            return height, width
    raise ModelError(
        f"{path}: takes slices of {'x'.join(map(str, sides))}; height and width must be fixed, 1 to {MAX_SIDE} pixels. "
        "Export it again."
    )
