"""Streams batches out of the store: threads decode ahead into a ring of batches that is made once.

1. The slices of a batch are shared out among the threads; each is decoded straight into its place in the batch when it
   has the batch's size, else into a buffer and cropped or padded from there.
2. A batch is handed out when its last slice is there, in the order asked for, whichever thread was done first.
3. int16 and uint8 are all that is made here: windows, classes, resampling and random changes are the device's work, on
   whole batches.

What is random about a slice (where a larger one is cropped) follows from the seed and its position alone, so that the
batches depend neither on how many threads there are nor on where in an epoch they begin.
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slicemill.common.remote import RemotePath
from slicemill.ct.crop import centered, fit, neighbor_step, neighbors
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import Case, SliceArray, Store
from slicemill.train.data.sampling import ANYWHERE, SlicePosition

RING = 4
"""Batches that may be decoded ahead of the network."""
REMOTE_THREADS = 16
"""Slices asked for at a time from an object store, where the answer takes longer than the decoding."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What is cut out of a case around a place."""

    size: tuple[int, int]
    """y, x in pixels of the network."""
    context: int = 1
    """Slices of a window."""
    context_spacing_mm: float | None = None
    """How far apart they are; None for those beside each other."""
    reach: int = 0
    """Slices more above and below, images and labels, for planes that are tilted."""
    spacing_mm: float | None = None
    """In-plane size of the network's pixels; None is each slice's own."""
    stored: tuple[int, int] | None = None
    """y, x in stored pixels that hold `size` whatever the case; None where nothing is resampled."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Slices with their neighbours; the arrays are used again after the next batch but one was taken."""

    image: npt.NDArray[np.int16]
    """int16[b, c + 2 reach, y, x], HU; the middle channel is the slice to label, edges are repeated."""
    label: npt.NDArray[np.uint8]
    """uint8[b, 1 + 2 reach, y, x], label values as the store has them."""
    zoom: npt.NDArray[np.float32]
    """float32[b, 2], size of the stored pixels over that of the network's, along y and x."""
    places: list[SlicePosition]


def cropped_at(
    shape: tuple[int, int], size: tuple[int, int], rng: np.random.Generator, target: tuple[int, int]
) -> tuple[int, int]:
    """Return a random corner of a crop that holds the pixel `target`; axes that fit are centered."""
    corner = list(centered(shape, size))
    for axis in (0, 1):
        room = shape[axis] - size[axis]
        if room > 0:
            corner[axis] = int(np.clip(target[axis] - rng.integers(size[axis]), 0, room))
    return corner[0], corner[1]


def aimed_at(case: Case, place: SlicePosition, rng: np.random.Generator) -> tuple[int, int]:
    """Return a random pixel y, x of what a place aims at."""
    _, ny, nx = case.image.shape
    aim = place.aim or ANYWHERE
    if place.aim is None and case.label is not None:
        labelled = np.flatnonzero(case.label.read(place.z))
        if len(labelled):
            y, x = divmod(int(labelled[rng.integers(len(labelled))]), nx)
            return y, x
    return int(rng.integers(aim.y0, min(aim.y1, ny))), int(rng.integers(aim.x0, min(aim.x1, nx)))


def zoom_of(spacing_mm: tuple[float, float, float], wanted_mm: float | None) -> tuple[float, float]:
    """Return how much larger a case's pixels are than the network's, along y and x; 1 where nothing is resampled."""
    return (1.0, 1.0) if wanted_mm is None else (spacing_mm[1] / wanted_mm, spacing_mm[2] / wanted_mm)


class Batches:
    """Batches of given places, decoded ahead; one iteration at a time."""

    def __init__(self, store: Store, view: View, batch: int, threads: int = 0, *, pinned: bool = False) -> None:
        """Make the ring.

        Parameters
        ----------
        threads
            0 is one a core, or as many as hide the way to an object store.
        pinned
            Put it where a GPU can copy from while the CPU goes on.
        """
        self._store = store
        self._view = view
        cores = len(os.sched_getaffinity(0))
        self._threads = threads or (REMOTE_THREADS if isinstance(store.root, RemotePath) else cores)
        self._size = view.stored or view.size
        images, labels = (batch, view.context + 2 * view.reach), (batch, 1 + 2 * view.reach)
        self._ring = [
            Batch(
                image=torch.empty((*images, *self._size), dtype=torch.int16, pin_memory=pinned).numpy(),
                label=torch.empty((*labels, *self._size), dtype=torch.uint8, pin_memory=pinned).numpy(),
                zoom=np.ones((batch, 2), np.float32),
                places=[],
            )
            for _ in range(RING + 2)
        ]

    @contextmanager
    def over(
        self, places: Sequence[SlicePosition], seed: tuple[int, int], *, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over the batches of `places`, from batch `first` on; a remainder smaller than a batch is left out.

        Parameters
        ----------
        share
            Which of how many processes this is: each takes its part of every batch, so that together they see `places`.
        """
        with ThreadPoolExecutor(self._threads, thread_name_prefix="slice loader") as pool:
            try:
                yield self._stream(pool, places, seed, first, share)
            finally:
                pool.shutdown(cancel_futures=True)

    def _stream(
        self,
        pool: ThreadPoolExecutor,
        places: Sequence[SlicePosition],
        seed: tuple[int, int],
        first: int,
        share: tuple[int, int],
    ) -> Iterator[Batch]:
        count = len(self._ring[0].label)
        rank, processes = share
        numbers = iter(range(first, len(places) // (count * processes)))
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()

        def begin() -> None:
            number = next(numbers, None)
            if number is None:
                return
            slot = self._ring[number % len(self._ring)]
            start = (number * processes + rank) * count
            slot.places[:] = places[start : start + count]
            parts = [range(part, count, self._threads) for part in range(min(self._threads, count))]
            ahead.append((slot, [pool.submit(self._fill_all, slot, part, (*seed, start)) for part in parts]))

        for _ in range(RING):
            begin()
        while ahead:
            slot, filling = ahead.popleft()
            for part in filling:
                part.result()
            begin()
            yield slot

    def _fill_all(self, slot: Batch, indices: range, seed: tuple[int, int, int]) -> None:
        for index in indices:
            place = slot.places[index]
            self._fill(slot, index, self._store[place.case_id], (seed[0], seed[1], seed[2] + index))

    def _fill(self, slot: Batch, index: int, case: Case, seed: Sequence[int]) -> None:
        view, place = self._view, slot.places[index]
        step = neighbor_step(view.context_spacing_mm, case.info.spacing_mm[0])
        slot.zoom[index] = zoom = zoom_of(case.info.spacing_mm, view.spacing_mm)
        corner = self._corner(case, place, seed, zoom)
        nz = len(case.image)
        if case.label is None:
            slot.label[index] = 0
        else:
            read_fitted(case.label, neighbors(place.z, nz, 1 + 2 * view.reach, step), corner, 0, slot.label[index])
        around = neighbors(place.z, nz, view.context + 2 * view.reach, step)
        read_fitted(case.image, around, corner, AIR_HU, slot.image[index])

    def _corner(
        self, case: Case, place: SlicePosition, seed: Sequence[int], zoom: tuple[float, float]
    ) -> tuple[int, int]:
        """Return where in the slice the batch's array begins; what the network will see is in its middle."""
        seen = (math.ceil(self._view.size[0] / zoom[0]), math.ceil(self._view.size[1] / zoom[1]))
        _, ny, nx = case.image.shape
        corner = centered((ny, nx), seen)
        if ny > seen[0] or nx > seen[1]:
            rng = np.random.default_rng(seed)
            corner = cropped_at((ny, nx), seen, rng, aimed_at(case, place, rng))
        return corner[0] - (self._size[0] - seen[0]) // 2, corner[1] - (self._size[1] - seen[1]) // 2


def read_fitted(
    array: SliceArray, around: Sequence[int], corner: tuple[int, int], fill: int, out: npt.NDArray[Any]
) -> None:
    """Read slices into `out`: any[n, H, W], cropped or padded from `corner` on; a slice that is repeated is read once."""
    for channel, z in enumerate(around):
        if channel and z == around[channel - 1]:
            out[channel] = out[channel - 1]
        elif array.shape[1:] == out.shape[1:] and corner == (0, 0):
            array.read(z, out[channel])
        else:
            fit(array.read(z), corner, fill, out[channel])
