"""Buffers of a session that are filled, run and read again and again: inputs and outputs are bound once, nothing is allocated.

Two lanes take turns: while one is on the device, the other scatters its labels and is filled. On a GPU the batch has one
shape for the whole run, since its provider plans anew for each shape; its tail is padding. On the CPU a short batch is short.
"""

import threading
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infer.batching import Capacity
from infer.canvas import asks_probability
from infer.model import Model
from store.layout import AIR_HU

LANES = 2
ON_DEVICE = ("cuda", "tensorrt")


class Lane(Protocol):
    """One batch on its way."""

    image: npt.NDArray[np.int16]
    """int16[n, H, W], HU; to be filled from its first row on."""

    def run(
        self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]:
        """Label slices and return uint8[b, H, W] and, where asked for, float32[b, k, H, W]; valid until the next run.

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

    def __init__(self, model: Model, capacity: Capacity) -> None:
        self._model = model
        self.image, self._label, self._maps = _buffers(model, capacity)

    def run(
        self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]:
        """Label slices; see `Lane.run`."""
        count = len(neighbors)
        label, maps = self._label[:count], None if self._maps is None else self._maps[:count]
        binding = self._model.session.io_binding()
        feed = self._model.feed(self.image[:rows], neighbors)
        for name, array in feed.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, out in (("label", label), ("probability", maps)):
            if out is not None:
                binding.bind_output(name, "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        with turn:
            self._model.session.run_with_iobinding(binding)
        return label, maps


class DeviceLane:
    """A batch on a GPU, of one shape for the whole run: uploads and downloads lie outside of the other lane's turn."""

    def __init__(self, model: Model, capacity: Capacity) -> None:
        from infer.providers import runtime

        self._model = model
        self._value = runtime().OrtValue
        self.image, self._label, self._maps = _buffers(model, capacity)
        self._neighbors = np.zeros((capacity.labels, model.info.context), dtype=np.int32)
        feed = model.feed(self.image, self._neighbors)
        self._inputs = {name: self._value.ortvalue_from_numpy(array, "cuda", 0) for name, array in feed.items()}
        outputs = {"label": self._label} | ({} if self._maps is None else {"probability": self._maps})
        self._outputs = {
            name: self._value.ortvalue_from_shape_and_type(array.shape, array.dtype.type, "cuda", 0)
            for name, array in outputs.items()
        }

    def run(
        self, rows: int, neighbors: npt.NDArray[np.int32], turn: AbstractContextManager[Any]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]:
        """Label slices; see `Lane.run`."""
        self.image[rows:] = AIR_HU
        count = len(neighbors)
        self._neighbors[:count] = neighbors
        self._neighbors[count:] = 0
        for name, array in self._model.feed(self.image, self._neighbors).items():
            self._inputs[name].update_inplace(array)
        binding = self._model.session.io_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        with turn:
            self._model.session.run_with_iobinding(binding)
        maps = self._outputs.get("probability")
        return self._outputs["label"].numpy()[:count], None if maps is None else maps.numpy()[:count]


def _buffers(
    model: Model, capacity: Capacity
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
    info = model.info
    image = np.zeros((capacity.rows, *info.size), dtype=np.int16)
    label = np.zeros((capacity.labels, *info.size), dtype=np.uint8)
    shape = (capacity.labels, len(info.labels.table()), *info.size)
    return image, label, np.zeros(shape, dtype=info.probability_dtype) if asks_probability(info) else None


def make_lane(model: Model, capacity: Capacity) -> Lane:
    """Return a lane for the device of a model."""
    return (DeviceLane if model.provider in ON_DEVICE else HostLane)(model, capacity)


def turns_of(model: Model) -> threading.Semaphore:
    """Return how many lanes may compute at once: one where it takes all cores, each on a GPU, which lines them up itself."""
    return threading.Semaphore(LANES if model.provider in ON_DEVICE else 1)
