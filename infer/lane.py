"""Buffers of a session that are filled, run and read again and again: inputs and outputs are bound once, nothing is allocated.

Two lanes take turns: while one is on the device, the other scatters its labels and is filled. On a GPU the batch has one
shape for the whole run, since its provider plans anew for each shape; its tail is padding. On the CPU a short batch is short.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infer.batching import Capacity
from infer.model import Answer, Model, answered
from store.layout import AIR_HU

LANES = 2
ON_DEVICE = ("cuda", "tensorrt")


class Lane(Protocol):
    """One batch on its way."""

    image: npt.NDArray[np.int16]
    """int16[n, H, W], HU; to be filled from its first row on."""

    def run(self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]) -> Answer:
        """Label slices; the answer is valid until the next run.

        Parameters
        ----------
        rows
            How many rows of `image` count.
        neighbors
            int32[b, c]: for each slice to label, the rows of its window.
        turn
            Held while the network runs, not while data are copied.
        """


class HostLane:
    """A batch in the computer's memory, for providers that compute there."""

    def __init__(self, model: Model, capacity: Capacity, wanted: Sequence[str]) -> None:
        self._model = model
        self.image, self._outputs = _buffers(model, capacity, wanted)

    def run(self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]) -> Answer:
        """Label slices; see `Lane.run`."""
        feed = self._model.feed(self.image[:rows], neighbors)
        outputs = {name: array[: len(neighbors)] for name, array in self._outputs.items()}
        binding = self._model.session.io_binding()
        for name, array in feed.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        with turn:
            self._model.session.run_with_iobinding(binding)
        return answered(outputs)


class VinoLane:
    """A batch in the computer's memory, computed by OpenVINO."""

    def __init__(self, model: Model, capacity: Capacity, wanted: Sequence[str]) -> None:
        self._model = model
        self._wanted = wanted
        self._request = model.session.request()
        self.image, _ = _buffers(model, capacity, ())

    def run(self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]) -> Answer:
        """Label slices; see `Lane.run`."""
        feed = self._model.feed(self.image[:rows], neighbors)
        with turn:
            return answered(self._request.run(self._wanted, feed))


class DeviceLane:
    """A batch on a GPU, of one shape for the whole run: uploads and downloads lie outside of the other lane's turn."""

    def __init__(self, model: Model, capacity: Capacity, wanted: Sequence[str]) -> None:
        from infer.providers import runtime

        value = runtime().OrtValue
        self._model = model
        self.image, outputs = _buffers(model, capacity, wanted)
        self._neighbors = np.zeros((capacity.labels, model.info.context), dtype=np.int32)
        feed = model.feed(self.image, self._neighbors)
        at = model.device
        self._inputs = {name: value.ortvalue_from_numpy(array, "cuda", at) for name, array in feed.items()}
        self._outputs = {
            name: value.ortvalue_from_shape_and_type(array.shape, array.dtype.type, "cuda", at)
            for name, array in outputs.items()
        }

    def run(self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]) -> Answer:
        """Label slices; see `Lane.run`."""
        self.image[rows:] = AIR_HU
        self._neighbors[:] = 0
        self._neighbors[: len(neighbors)] = neighbors
        for name, array in self._model.feed(self.image, self._neighbors).items():
            self._inputs[name].update_inplace(array)
        binding = self._model.session.io_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        with turn:
            self._model.session.run_with_iobinding(binding)
        return answered({name: value.numpy()[: len(neighbors)] for name, value in self._outputs.items()})


def _buffers(
    model: Model, capacity: Capacity, wanted: Sequence[str]
) -> tuple[npt.NDArray[np.int16], dict[str, npt.NDArray[Any]]]:
    """Return room for the slices of a batch, and for each output that is asked for."""
    info = model.info
    maps = (len(info.labels.table()), *info.size)
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "label": (np.uint8, info.size),
        "tumor": (np.uint8, info.size),
        "probability": (info.probability_dtype, maps),
    }
    outputs = {name: np.zeros((capacity.labels, *shapes[name][1]), dtype=shapes[name][0]) for name in wanted}
    return np.zeros((capacity.rows, *info.size), dtype=np.int16), outputs


def make_lane(model: Model, capacity: Capacity, wanted: Sequence[str]) -> Lane:
    """Return a lane for the device of a model, with room for the outputs that are `wanted`."""
    if model.provider == "openvino":
        return VinoLane(model, capacity, wanted)
    return (DeviceLane if model.provider in ON_DEVICE else HostLane)(model, capacity, wanted)


def turns_of(model: Model) -> threading.Semaphore:
    """Return how many lanes may compute at once: one where it takes all cores, each on a GPU, which lines them up itself."""
    return threading.Semaphore(LANES if model.provider in ON_DEVICE else 1)
