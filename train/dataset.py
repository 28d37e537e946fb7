"""Streams batches out of the store: one thread decodes ahead into a ring of batches that is made once."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from store.framing import centered, fit, neighbors
from store.layout import AIR_HU
from store.reader import Case, Store
from train.sampling import Place

RING = 4
"""Batches that may be decoded ahead of the network."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Slices with their neighbours; the arrays are used again after the next batch was taken."""

    image: npt.NDArray[np.int16]
    """int16[b, c, y, x], HU; the middle channel is the slice to label, edges are repeated."""
    label: npt.NDArray[np.uint8]
    """uint8[b, y, x], class indices."""
    places: list[Place]


def cropped_at(label: npt.NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Return a corner for a slice that may be larger than `size`: around a random pixel of its highest label, else anywhere.

    Axes that fit are centred.
    """
    corner = list(centered(label.shape, size))
    if label.shape[0] <= size[0] and label.shape[1] <= size[1]:
        return corner[0], corner[1]
    highest = np.argwhere(label == label.max()) if label.any() else None
    target = (
        highest[rng.integers(len(highest))] if highest is not None else [rng.integers(extent) for extent in label.shape]
    )
    for axis in (0, 1):
        room = label.shape[axis] - size[axis]
        if room > 0:
            corner[axis] = int(np.clip(int(target[axis]) - rng.integers(size[axis]), 0, room))
    return corner[0], corner[1]


class Batches:
    """Batches of given places, decoded ahead by one thread."""

    def __init__(
        self, store: Store, classes: npt.NDArray[np.uint8], size: tuple[int, int], context: int, batch: int
    ) -> None:
        self._store = store
        self._size = size
        self._context = context
        self._to_class = np.zeros(256, dtype=np.uint8)
        self._to_class[classes] = np.arange(len(classes), dtype=np.uint8)
        self._ring = [
            Batch(
                image=np.empty((batch, context, *size), np.int16), label=np.empty((batch, *size), np.uint8), places=[]
            )
            for _ in range(RING + 2)
        ]

    @contextmanager
    def over(self, places: Sequence[Place], seed: tuple[int, int]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over the batches of `places`; a remainder smaller than a batch is left out."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=RING)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._produce, args=(places, seed, ready, stop), daemon=True, name="slice loader"
        )
        thread.start()
        try:
            yield self._consume(ready)
        finally:
            stop.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(timeout=0.01)

    @staticmethod
    def _consume(ready: "queue.Queue[Batch | BaseException | None]") -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _produce(
        self,
        places: Sequence[Place],
        seed: tuple[int, int],
        ready: "queue.Queue[Batch | BaseException | None]",
        stop: threading.Event,
    ) -> None:
        try:
            rng = np.random.default_rng(seed)
            count = len(self._ring[0].label)
            for number in range(len(places) // count):
                if stop.is_set():
                    return
                slot = self._ring[number % len(self._ring)]
                slot.places[:] = places[number * count : (number + 1) * count]
                for index, (case_id, z) in enumerate(slot.places):
                    self._fill(slot, index, self._store[case_id], z, rng)
                ready.put(slot)
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 (it is raised again where the batch is awaited)
            ready.put(error)

    def _fill(self, slot: Batch, index: int, case: Case, z: int, rng: np.random.Generator) -> None:
        label = (
            self._to_class[case.label.read(z)] if case.label is not None else np.zeros(case.image.shape[1:], np.uint8)
        )
        corner = cropped_at(label, self._size, rng)
        fit(label, corner, 0, slot.label[index])
        around = neighbors(z, len(case.image), self._context)
        for channel, neighbor in enumerate(around):
            if channel and neighbor == around[channel - 1]:
                slot.image[index, channel] = slot.image[index, channel - 1]
            else:
                fit(case.image.read(neighbor), corner, AIR_HU, slot.image[index, channel])
