"""Streams batches out of the store: threads decode ahead into a ring of batches that is made once.

1. The slices of a batch are shared out among the threads; each is decoded straight into its place in the batch when it
   has the network's size, else into a buffer and cropped or padded from there.
2. A batch is handed out when its last slice is there, in the order asked for, whichever thread was done first.
3. int16 and uint8 are all that is made here: windows, classes and random changes are the device's work, on whole batches.

What is random about a slice (where a larger one is cropped) follows from the seed and its position alone, so that the
batches do not depend on how many threads there are.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from store.framing import centered, fit, neighbor_step, neighbors
from store.layout import AIR_HU
from store.reader import Case, SliceArray, Store
from store.remote import Remote
from train.sampling import Place

RING = 4
"""Batches that may be decoded ahead of the network."""
REMOTE_THREADS = 16
"""Slices asked for at a time from an object store, where the answer takes longer than the decoding."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Slices with their neighbours; the arrays are used again after the next batch was taken."""

    image: npt.NDArray[np.int16]
    """int16[b, c, y, x], HU; the middle channel is the slice to label, edges are repeated."""
    label: npt.NDArray[np.uint8]
    """uint8[b, y, x], label values as the store has them."""
    places: list[Place]


def cropped_at(label: npt.NDArray[np.uint8], size: tuple[int, int], seed: Sequence[int]) -> tuple[int, int]:
    """Return a corner for a slice that may be larger than `size`: around a random pixel of its highest label, else anywhere.

    Axes that fit are centred.
    """
    corner = list(centered(label.shape, size))
    if label.shape[0] <= size[0] and label.shape[1] <= size[1]:
        return corner[0], corner[1]
    rng = np.random.default_rng(seed)
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
    """Batches of given places, decoded ahead; one iteration at a time."""

    def __init__(
        self,
        store: Store,
        size: tuple[int, int],
        window: tuple[int, float | None],
        batch: int,
        threads: int = 0,
    ) -> None:
        """Make the ring.

        Parameters
        ----------
        window
            Slices of a window, and how far apart in mm; None for those beside each other.
        threads
            0 is one a core, or as many as hide the way to an object store.
        """
        self._store = store
        self._size = size
        self._context, self._context_spacing_mm = window
        context = self._context
        cores = len(os.sched_getaffinity(0))
        self._threads = threads or (REMOTE_THREADS if isinstance(store.root, Remote) else cores)
        self._ring = [
            Batch(
                image=np.empty((batch, context, *size), np.int16), label=np.empty((batch, *size), np.uint8), places=[]
            )
            for _ in range(RING + 2)
        ]

    @contextmanager
    def over(self, places: Sequence[Place], seed: tuple[int, int]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over the batches of `places`; a remainder smaller than a batch is left out."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="slice loader") as pool:
            try:
                yield self._stream(pool, places, seed)
            finally:
                pool.shutdown(cancel_futures=True)

    def _stream(self, pool: ThreadPoolExecutor, places: Sequence[Place], seed: tuple[int, int]) -> Iterator[Batch]:
        count = len(self._ring[0].label)
        numbers = iter(range(len(places) // count))
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()

        def begin() -> None:
            number = next(numbers, None)
            if number is None:
                return
            slot = self._ring[number % len(self._ring)]
            slot.places[:] = places[number * count : (number + 1) * count]
            shares = [range(first, count, self._threads) for first in range(min(self._threads, count))]
            ahead.append((slot, [pool.submit(self._fill_all, slot, share, (*seed, number)) for share in shares]))

        for _ in range(RING):
            begin()
        while ahead:
            slot, filling = ahead.popleft()
            for part in filling:
                part.result()
            begin()
            yield slot

    def _fill_all(self, slot: Batch, indices: range, seed: tuple[int, ...]) -> None:
        for index in indices:
            case_id, z = slot.places[index]
            self._fill(slot, index, self._store[case_id], z, (*seed, index))

    def _fill(self, slot: Batch, index: int, case: Case, z: int, seed: Sequence[int]) -> None:
        corner = centered(case.image.shape[1:], self._size)
        if case.label is None:
            slot.label[index] = 0
        elif case.image.shape[1:] == self._size:
            case.label.read(z, slot.label[index])
        else:
            label = case.label.read(z)
            corner = cropped_at(label, self._size, seed)
            fit(label, corner, 0, slot.label[index])
        step = neighbor_step(self._context_spacing_mm, case.info.spacing_mm[0])
        around = neighbors(z, len(case.image), self._context, step)
        for channel, neighbor in enumerate(around):
            if channel and neighbor == around[channel - 1]:
                slot.image[index, channel] = slot.image[index, channel - 1]
            else:
                read_fitted(case.image, neighbor, corner, slot.image[index, channel])


def read_fitted(array: SliceArray, z: int, corner: tuple[int, int], out: npt.NDArray[np.int16]) -> None:
    """Read a slice of HU into `out`: int16[H, W], cropped or padded with air from `corner` on."""
    if array.shape[1:] == out.shape:
        array.read(z, out)
    else:
        fit(array.read(z), corner, AIR_HU, out)
