"""Lanes: each holds the buffers of one batch and runs the network on them. A run reuses them for every batch.

On a CPU, each lane computes in its own thread. If the network takes slices unchanged, a lane reads them from their
scan and writes labels to their final array; it uses its buffers for all other batches, for instance those of two scans.
On a GPU, one of two lanes is filled and writes out its labels while the other computes; if both are ready, the GPU
queues their work. All batches of the run have one shape there, because the provider plans for each new shape; the
unused rest of a batch is padding. On a CPU, a short batch is not padded.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, ModelError, ProviderError
from slicemill.infer.network.model import Model, NetworkOutput, make_output
from slicemill.infer.runtime.capacity import HOSTS, Capacity
from slicemill.infer.runtime.cuda_memory import CudaCallError, open_cuda_device
from slicemill.infer.runtime.messages import explain_batch_failure, find_cause

ON_DEVICE = ("cuda", "tensorrt")
DEVICE_MEMORY = "cuda"
"""onnxruntime's name for the memory of both."""
Allocate = Callable[[Sequence[int], Any], npt.NDArray[Any]]
"""Makes an array of zeros of a shape and type."""
Outputs = Mapping[str, npt.NDArray[Any]]
"""Arrays for outputs, by name."""


class Lane(Protocol):
    """Runs one batch at a time."""

    image: npt.NDArray[np.int16]
    """int16[n, H, W], HU: input buffer, to be filled from its first row on."""
    reads_in_place: bool
    """Whether `run` takes slices from any array; else they must be the first rows of `image`."""

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        lock: AbstractContextManager[Any],
        into: Outputs | None = None,
    ) -> NetworkOutput:
        """Label slices; the output is valid until the next run.

        Parameters
        ----------
        image
            int16[n, H, W], HU: the input slices.
        neighbors
            int32[b, c]: for each slice to label, the rows of `image` that are its context.
        lock
            Lock that is held while the network runs, and released while data are copied.
        into
            Arrays that outputs may be written to, by name, any[b, H, W]; see `NetworkOutput.in_place`.
        """


class HostLane:
    """A batch in main memory, for onnxruntime on the CPU."""

    reads_in_place = True

    def __init__(self, model: Model, capacity: Capacity, outputs: Sequence[str]) -> None:
        self._model = model
        self.image, self._outputs = _buffers(model, capacity, outputs)

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        lock: AbstractContextManager[Any],
        into: Outputs | None = None,
    ) -> NetworkOutput:
        """Label slices; see `Lane.run`."""
        offered = into or {}
        feed = self._model.feed(image, neighbors)
        outputs = {name: offered.get(name, array[: len(neighbors)]) for name, array in self._outputs.items()}
        with lock:
            session = self._model.session
            binding = session.io_binding()
            for name, array in feed.items():
                binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
        return make_output(outputs, in_place=outputs.keys() <= offered.keys())


class OpenvinoLane:
    """A batch for OpenVINO, which owns the memory of its outputs and keeps its input until the next batch."""

    reads_in_place = False

    def __init__(self, model: Model, capacity: Capacity, outputs: Sequence[str]) -> None:
        self._model = model
        self._output_names = outputs
        self._request = model.session.request()
        self.image, _ = _buffers(model, capacity, ())

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        lock: AbstractContextManager[Any],
        into: Outputs | None = None,  # noqa: ARG002 (OpenVINO owns its outputs)
    ) -> NetworkOutput:
        """Label slices; see `Lane.run`."""
        feed = self._model.feed(image, neighbors)
        with lock:
            outputs = self._request.run(self._output_names, feed)
        for name, (_, shape) in _output_shapes(self._model, self._output_names).items():
            if (expected := (len(neighbors), *shape)) != outputs[name].shape:
                raise ModelError(f"its output {name} has the shape {outputs[name].shape}; expected {expected}")
        return make_output(outputs)


class DeviceLane:
    """A batch on a GPU, of one shape for the entire run; uploads and downloads do not hold the lock.

    Host buffers are pinned. Only the rows in use are uploaded, and only the requested labels are downloaded; the other
    rows hold earlier slices, which are labeled again and discarded.
    """

    reads_in_place = False

    def __init__(self, model: Model, capacity: Capacity, outputs: Sequence[str]) -> None:
        from slicemill.infer.runtime.providers import import_onnxruntime

        make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self._model = model
        self._device = open_cuda_device(import_onnxruntime(), model.device)
        self.image, self._outputs = _buffers(model, capacity, outputs, self._device.allocate_pinned)
        self._neighbors = self._device.allocate_pinned((capacity.labels, model.info.context), np.int32)
        self._inputs = model.feed(self.image, self._neighbors)
        self._device_values = {
            name: make(array.shape, array.dtype.type, DEVICE_MEMORY, model.device)
            for name, array in (self._inputs | self._outputs).items()
        }
        for name, array in self._inputs.items():
            self._upload(name, len(array))

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        lock: AbstractContextManager[Any],
        into: Outputs | None = None,  # noqa: ARG002 (outputs are downloaded to pinned memory)
    ) -> NetworkOutput:
        """Label slices; see `Lane.run`.

        Raises
        ------
        ValueError
            `image` is not the first rows of the lane's buffer.
        """
        if not np.shares_memory(image[:1], self.image[:1]):
            raise ValueError("a GPU lane uploads only the first rows of its buffer")
        self._neighbors[:] = 0
        self._neighbors[: len(neighbors)] = neighbors
        for name, array in self._inputs.items():
            self._upload(name, len(image) if name == "image" else len(array))
        with lock:
            self.compute()
        outputs = {name: array[: len(neighbors)] for name, array in self._outputs.items()}
        for name, array in outputs.items():
            self._device.copy(array.ctypes.data, self._device_values[name].data_ptr(), array.nbytes)
        return make_output(outputs)

    def compute(self) -> None:
        """Run the network on the inputs on the GPU, and leave its outputs there."""
        session = self._model.session
        binding = session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, self._device_values[name])
        for name in self._outputs:
            binding.bind_ortvalue_output(name, self._device_values[name])
        session.run_with_iobinding(binding)

    def _upload(self, name: str, count: int) -> None:
        """Copy the first rows of an input to the GPU."""
        rows = self._inputs[name][:count]
        self._device.copy(self._device_values[name].data_ptr(), rows.ctypes.data, rows.nbytes)


def _buffers(
    model: Model, capacity: Capacity, outputs: Sequence[str], allocate: Allocate = np.zeros
) -> tuple[npt.NDArray[np.int16], dict[str, npt.NDArray[Any]]]:
    """Allocate the input slices of a batch, and each requested output."""
    shapes = _output_shapes(model, outputs)
    arrays = {name: allocate((capacity.labels, *shape), dtype) for name, (dtype, shape) in shapes.items()}
    return allocate((capacity.rows, *model.info.size), np.int16), arrays


def _output_shapes(model: Model, outputs: Sequence[str]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return type and shape of each requested output, for one slice."""
    info = model.info
    maps = (len(info.labels.table()), *info.size)
    shapes = {
        "label": (np.uint8, info.size),
        "tumor": (np.uint8, info.size),
        "probability": (info.probability_dtype, maps),
    }
    return {name: shapes[name] for name in outputs}


def make_lane(model: Model, capacity: Capacity, outputs: Sequence[str]) -> Lane:
    """Return a lane for the device of a model, with buffers for `outputs`.

    Raises
    ------
    ProviderError
        The buffers cannot be allocated.
    """
    kind = OpenvinoLane if model.provider == "openvino" else DeviceLane if model.provider in ON_DEVICE else HostLane
    with report_device_errors(model.provider, "the buffers of a batch cannot be allocated"):
        return kind(model, capacity, outputs)


@contextmanager
def report_device_errors(provider: str, what: str) -> Iterator[None]:
    """Convert errors of a runtime, of many types, into a ProviderError that says what failed, or a ModelError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) and not isinstance(error, CudaCallError):
            raise
        cause = find_cause(error)
        explained = explain_batch_failure(provider, cause)
        if isinstance(explained, ModelError):
            raise explained from error
        raise ProviderError(
            f"--provider {provider}: {what} ({cause}). Run the same command again, or use --provider cpu."
        ) from error


class ComputeLimit:
    """A limit on how many lanes compute at once on a device; a lane computes inside it."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._free = threading.Semaphore(lanes)

    def __enter__(self) -> None:
        self._free.acquire()

    def __exit__(self, *_: object) -> None:
        self._free.release()

    @contextmanager
    def exclude_all(self) -> Iterator[None]:
        """Wait until no lane computes, and let none compute inside; for one thread at a time."""
        for _ in range(self._lanes):
            self._free.acquire()
        try:
            yield
        finally:
            self._free.release(self._lanes)


def make_compute_limit(model: Model) -> ComputeLimit:
    """Return a limit on how many lanes compute at once.

    OpenVINO runs one, which uses all cores. Other devices run all lanes; a GPU queues them itself.
    """
    return ComputeLimit(1 if model.provider == "openvino" else model.lanes)


def count_sharers(models: Sequence[Model]) -> int:
    """Return among how many batches the last slices of a run are divided.

    On a CPU each lane computes on its own core, and idles without a batch. Elsewhere one computes at a time, and a
    smaller batch gains nothing.
    """
    return sum(model.lanes for model in models if model.provider == "cpu") or 1


def trim_heap() -> None:
    """Return freed memory to the system, so that later allocations show in the resident size; glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def estimate_lane_memory(model: Model, capacity: Capacity, outputs: Sequence[str]) -> int:
    """Estimate the extra resident memory of all lanes on a processor, bytes, by running one lane on an empty batch.

    Raises
    ------
    ProviderError
        The network fails on the empty batch.
    """
    if model.provider not in HOSTS:
        return 0
    import psutil

    process = psutil.Process()
    trim_heap()
    before = process.memory_info().rss
    lane = make_lane(model, capacity, outputs)
    with report_device_errors(model.provider, "the network fails on an empty batch"):
        lane.run(lane.image, np.zeros((capacity.labels, model.info.context), dtype=np.int32), nullcontext())
    kept = model.provider == "cpu"  # by the session; what OpenVINO takes is freed with its lane
    return max(0, int(process.memory_info().rss - before)) * (model.lanes - kept)
