"""Buffers of a session that are filled, run and read again and again; nothing is allocated for a batch.

On a CPU each lane computes in its own thread and does not wait for the others. It reads slices where they lie in their scan and
writes labels where they belong, when the network takes them as they are; its buffers are for all other batches (of two scans, say).
On a GPU two lanes take turns: while one is on the device, the other scatters its labels and is filled. There the batch has one
shape for the whole run, since its provider plans anew for each shape; its tail is padding. On the CPU a short batch is short.
"""

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ProviderError
from slicemill.infer.network.model import Answer, Model, answered
from slicemill.infer.runtime.capacity import HOSTS, Capacity, lanes_on
from slicemill.infer.runtime.cuda_memory import open_card

ON_DEVICE = ("cuda", "tensorrt")
WHERE = "cuda"
"""onnxruntime's name of the memory of both."""
Room = Callable[[Sequence[int], Any], npt.NDArray[Any]]
"""Zeros of a shape and type, in memory of some kind."""
Outputs = Mapping[str, npt.NDArray[Any]]
"""Room for outputs, by name."""


class Lane(Protocol):
    """One batch on its way."""

    image: npt.NDArray[np.int16]
    """int16[n, H, W], HU; to be filled from its first row on."""
    reads_in_place: bool
    """Whether it reads slices wherever they lie; else they must be the first of `image`."""

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        turn: AbstractContextManager[Any],
        into: Outputs | None = None,
    ) -> Answer:
        """Label slices; the answer is valid until the next run.

        Parameters
        ----------
        image
            int16[n, H, W], HU: the slices that go in.
        neighbors
            int32[b, c]: for each slice to label, the rows of its window.
        turn
            Held while the network runs, not while data are copied.
        into
            Where outputs may be written, by name, any[b, H, W]; a lane that does not is free to give its own.
        """


class HostLane:
    """A batch in the computer's memory, for providers that compute there."""

    reads_in_place = True

    def __init__(self, model: Model, capacity: Capacity, wanted: Sequence[str]) -> None:
        self._model = model
        self.image, self._outputs = _buffers(model, capacity, wanted)

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        turn: AbstractContextManager[Any],
        into: Outputs | None = None,
    ) -> Answer:
        """Label slices; see `Lane.run`."""
        feed = self._model.feed(image, neighbors)
        outputs = {name: (into or {}).get(name, array[: len(neighbors)]) for name, array in self._outputs.items()}
        binding = self._model.session.io_binding()
        for name, array in feed.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        with turn:
            self._model.session.run_with_iobinding(binding)
        return answered(outputs)


class VinoLane:
    """A batch in the computer's memory, computed by OpenVINO, which gives labels in memory of its own and keeps its input until the next."""

    reads_in_place = False

    def __init__(self, model: Model, capacity: Capacity, wanted: Sequence[str]) -> None:
        self._model = model
        self._wanted = wanted
        self._request = model.session.request()
        self.image, _ = _buffers(model, capacity, ())

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        turn: AbstractContextManager[Any],
        into: Outputs | None = None,  # noqa: ARG002 (its outputs lie where it put them)
    ) -> Answer:
        """Label slices; see `Lane.run`."""
        feed = self._model.feed(image, neighbors)
        with turn:
            return answered(self._request.run(self._wanted, feed))


class DeviceLane:
    """A batch on a GPU, of one shape for the whole run: uploads and downloads lie outside of the other lane's turn.

    What travels lies in pinned memory. Only the rows that count go up, and only the labels asked for come down; what stood in
    the other rows before is labelled again and thrown away.
    """

    reads_in_place = False

    def __init__(self, model: Model, capacity: Capacity, wanted: Sequence[str]) -> None:
        from slicemill.infer.runtime.providers import runtime

        make = runtime().OrtValue.ortvalue_from_shape_and_type
        self._model = model
        self._card = open_card(runtime(), model.device)
        self.image, self._found = _buffers(model, capacity, wanted, self._card.room)
        self._neighbors = self._card.room((capacity.labels, model.info.context), np.int32)
        self._given = model.feed(self.image, self._neighbors)
        self._there = {
            name: make(array.shape, array.dtype.type, WHERE, model.device)
            for name, array in (self._given | self._found).items()
        }
        for name, array in self._given.items():
            self._up(name, len(array))

    def run(
        self,
        image: npt.NDArray[np.int16],
        neighbors: npt.NDArray[np.int32],
        turn: AbstractContextManager[Any],
        into: Outputs | None = None,  # noqa: ARG002 (what comes down goes to pinned memory)
    ) -> Answer:
        """Label slices; see `Lane.run`."""
        if image.ctypes.data != self.image.ctypes.data:
            raise ValueError("only slices in pinned memory go up")
        self._neighbors[:] = 0
        self._neighbors[: len(neighbors)] = neighbors
        for name, array in self._given.items():
            self._up(name, len(image) if name == "image" else len(array))
        with turn:
            self.compute()
        for name, array in self._found.items():
            size = array[: len(neighbors)].nbytes
            self._card.copy(array.ctypes.data, self._there[name].data_ptr(), size)
        return answered({name: array[: len(neighbors)] for name, array in self._found.items()})

    def compute(self) -> None:
        """Run the network on what lies on the GPU and leave its outputs there."""
        binding = self._model.session.io_binding()
        for name in self._given:
            binding.bind_ortvalue_input(name, self._there[name])
        for name in self._found:
            binding.bind_ortvalue_output(name, self._there[name])
        self._model.session.run_with_iobinding(binding)

    def _up(self, name: str, count: int) -> None:
        """Copy the first rows of an input to the GPU."""
        part = self._given[name][:count]
        self._card.copy(self._there[name].data_ptr(), part.ctypes.data, part.nbytes)


def _buffers(
    model: Model, capacity: Capacity, wanted: Sequence[str], room: Room = np.zeros
) -> tuple[npt.NDArray[np.int16], dict[str, npt.NDArray[Any]]]:
    """Return room for the slices of a batch, and for each output that is asked for."""
    info = model.info
    maps = (len(info.labels.table()), *info.size)
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "label": (np.uint8, info.size),
        "tumor": (np.uint8, info.size),
        "probability": (info.probability_dtype, maps),
    }
    outputs = {name: room((capacity.labels, *shapes[name][1]), shapes[name][0]) for name in wanted}
    return room((capacity.rows, *info.size), np.int16), outputs


def make_lane(model: Model, capacity: Capacity, wanted: Sequence[str]) -> Lane:
    """Return a lane for the device of a model, with room for the outputs that are `wanted`."""
    if model.provider == "openvino":
        return VinoLane(model, capacity, wanted)
    return (DeviceLane if model.provider in ON_DEVICE else HostLane)(model, capacity, wanted)


def turns_of(model: Model) -> threading.Semaphore:
    """Return how many lanes may compute at once: all, but one where it takes all cores; a GPU lines them up itself."""
    return threading.Semaphore(1 if model.provider == "openvino" else lanes_on(model.provider))


def give_back_heap() -> None:
    """Hand memory that was freed back to the system, so that what is taken next shows in the resident size; glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_of_lanes(model: Model, capacity: Capacity, wanted: Sequence[str]) -> int:
    """Return the bytes that lanes on a processor will take beside what this process has after the call: one of them labels a batch of air."""
    if model.provider not in HOSTS:
        return 0
    import psutil

    process = psutil.Process()
    give_back_heap()
    before = process.memory_info().rss
    lane = make_lane(model, capacity, wanted)
    try:
        lane.run(lane.image, np.zeros((capacity.labels, model.info.context), dtype=np.int32), nullcontext())
    except Exception as error:  # onnxruntime raises many types, some of them private
        raise ProviderError(
            f"--provider {model.provider}: the network fails on a batch of air ({str(error)[:200]})."
        ) from error
    kept = model.provider == "cpu"  # by the session; what OpenVINO takes goes with its lane
    return max(0, int(process.memory_info().rss - before)) * (lanes_on(model.provider) - kept)
