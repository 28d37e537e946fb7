"""Streams batches from the store: threads decode ahead into a ring of batches that is allocated once.

1. The slices of a batch are divided among the threads. Each slice is decoded directly into the batch if it has the
   size of the batch, else into a buffer, and cropped or padded from there.
2. A batch is yielded when its last slice is decoded. The order is the requested one, whichever thread is first.
3. The host only makes int16 and uint8 arrays. Window, classes, resampling and random changes run on the device, on
   batches.

The random crop of a slice depends only on the seed and its position in the epoch. So batches depend neither on the
number of threads nor on where in an epoch the stream begins.
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
from slicemill.ct.crop import centered_corner, crop_or_pad, neighbor_step, neighbors
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import Case, SliceArray, Store
from slicemill.train.data.sampling import ANYWHERE, SlicePosition
from slicemill.train.data.transfers import CopyEvent, make_event

RING = 4
"""Batches that may be decoded ahead of the network."""
REMOTE_THREADS = 16
"""Threads for an object store, where a response takes longer than the decoding."""


@dataclass(frozen=True, kw_only=True)
class SliceRegion:
    """The region of a case that is read around a slice position."""

    size: tuple[int, int]
    """y, x in pixels of the network."""
    context: int = 1
    """Number of slices in the network's input."""
    context_spacing_mm: float | None = None
    """Distance between these slices, mm; None uses adjacent slices."""
    reach: int = 0
    """Additional slices above and below, images and labels, for tilted planes."""
    spacing_mm: float | None = None
    """In-plane size of the network's pixels, mm; None keeps that of each slice."""
    stored: tuple[int, int] | None = None
    """y, x in stored pixels that contain `size` in every case; None if nothing is resampled."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Slices with their neighbors. The arrays are overwritten after the next two batches, once they are copied."""

    image: npt.NDArray[np.int16]
    """int16[b, c + 2 reach, y, x], HU; the slice to label is in the middle; edge slices are repeated."""
    label: npt.NDArray[np.uint8]
    """uint8[b, 1 + 2 reach, y, x], label values as stored."""
    zoom: npt.NDArray[np.float32]
    """float32[b, 2], stored pixel size / network pixel size along y and x."""
    positions: list[SlicePosition]
    """The position of each slice."""
    copied: CopyEvent | None = None
    """Recorded behind the copies to a GPU, which still read the arrays when the host goes on; None without a GPU."""


def draw_crop(
    shape: tuple[int, int], size: tuple[int, int], rng: np.random.Generator, target: tuple[int, int]
) -> tuple[int, int]:
    """Return a random corner of a crop that contains the pixel `target`. Axes that fit are centered."""
    corner = list(centered_corner(shape, size))
    for axis in (0, 1):
        room = shape[axis] - size[axis]
        if room > 0:
            corner[axis] = int(np.clip(target[axis] - rng.integers(size[axis]), 0, room))
    return corner[0], corner[1]


def draw_target(case: Case, position: SlicePosition, rng: np.random.Generator) -> tuple[int, int]:
    """Return a random pixel y, x of the target box of a position, or a labeled pixel if it has no box."""
    _, ny, nx = case.image.shape
    aim = position.aim or ANYWHERE
    if position.aim is None and case.label is not None:
        labeled = np.flatnonzero(case.label.read(position.z))
        if len(labeled):
            y, x = divmod(int(labeled[rng.integers(len(labeled))]), nx)
            return y, x
    return int(rng.integers(aim.y0, min(aim.y1, ny))), int(rng.integers(aim.x0, min(aim.x1, nx)))


def compute_zoom(spacing_mm: tuple[float, float, float], network_mm: float | None) -> tuple[float, float]:
    """Return stored pixel size / network pixel size along y and x; 1 if nothing is resampled.

    >>> compute_zoom((5.0, 0.9, 0.9), 0.6), compute_zoom((5.0, 0.9, 0.9), None)
    ((1.5, 1.5), (1.0, 1.0))
    """
    return (1.0, 1.0) if network_mm is None else (spacing_mm[1] / network_mm, spacing_mm[2] / network_mm)


class Batches:
    """A stream of batches at requested positions, decoded ahead; one iteration at a time."""

    def __init__(self, store: Store, view: SliceRegion, batch: int, threads: int = 0, *, pinned: bool = False) -> None:
        """Allocate the ring.

        Parameters
        ----------
        batch
            Slices per batch of this process.
        threads
            0 is one per core, or REMOTE_THREADS for a store in a bucket.
        pinned
            Allocate pinned memory, from which a GPU copies asynchronously.
        """
        self._store = store
        self._view = view
        cores = len(os.sched_getaffinity(0))
        self._threads = threads or (REMOTE_THREADS if isinstance(store.root, RemotePath) else cores)
        self._batch = batch
        self._size = view.stored or view.size
        images, labels = (batch, view.context + 2 * view.reach), (batch, 1 + 2 * view.reach)
        self._ring = [
            Batch(
                image=torch.empty((*images, *self._size), dtype=torch.int16, pin_memory=pinned).numpy(),
                label=torch.empty((*labels, *self._size), dtype=torch.uint8, pin_memory=pinned).numpy(),
                zoom=torch.ones((batch, 2), pin_memory=pinned).numpy(),
                positions=[],
                copied=make_event() if pinned else None,
            )
            for _ in range(RING + 2)
        ]

    @contextmanager
    def iterate(
        self,
        positions: Sequence[SlicePosition],
        seed: tuple[int, int],
        *,
        first: int = 0,
        rank: int = 0,
        count: int = 1,
    ) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over the batches at `positions`. A remainder smaller than a batch is left out.

        Parameters
        ----------
        seed
            Seeds of the run and of the epoch.
        first
            Number of the first batch.
        rank, count
            Rank and number of the processes that train together. Each loads its part of every batch.
        """
        total = len(positions) // (self._batch * count)
        starts = [(number * count + rank) * self._batch for number in range(first, total)]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="slice loader") as pool:
            try:
                yield self._stream(pool, positions, starts, seed)
            finally:
                pool.shutdown(cancel_futures=True)

    def _stream(
        self,
        pool: ThreadPoolExecutor,
        positions: Sequence[SlicePosition],
        starts: Sequence[int],
        seed: tuple[int, int],
    ) -> Iterator[Batch]:
        """Yield the batches that begin at `starts` in `positions`."""
        waiting = iter(enumerate(starts))
        ahead: deque[tuple[Batch, list[Future[None]]]] = deque()

        def begin() -> None:
            number, start = next(waiting, (0, None))
            if start is None:
                return
            slot = self._ring[number % len(self._ring)]
            if slot.copied is not None:
                slot.copied.synchronize()
            slot.positions[:] = positions[start : start + self._batch]
            parts = [range(part, self._batch, self._threads) for part in range(min(self._threads, self._batch))]
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
            position = slot.positions[index]
            self._fill(slot, index, self._store[position.case_id], (seed[0], seed[1], seed[2] + index))

    def _fill(self, slot: Batch, index: int, case: Case, seed: Sequence[int]) -> None:
        """Read one slice with its neighbors, image and label, into a batch."""
        zoom = compute_zoom(case.info.spacing_mm, self._view.spacing_mm)
        corner = draw_corner(case, slot.positions[index], seed, self._view, zoom)
        read_region(case, slot.positions[index].z, corner, self._view, slot.image[index], slot.label[index])
        slot.zoom[index] = zoom


def draw_corner(
    case: Case, position: SlicePosition, seed: Sequence[int], view: SliceRegion, zoom: tuple[float, float]
) -> tuple[int, int]:
    """Return the pixel of the slice where the batch's array begins. The network's input is its middle."""
    size = view.stored or view.size
    visible = (math.ceil(view.size[0] / zoom[0]), math.ceil(view.size[1] / zoom[1]))
    _, ny, nx = case.image.shape
    corner = centered_corner((ny, nx), visible)
    if ny > visible[0] or nx > visible[1]:
        rng = np.random.default_rng(seed)
        corner = draw_crop((ny, nx), visible, rng, draw_target(case, position, rng))
    return corner[0] - (size[0] - visible[0]) // 2, corner[1] - (size[1] - visible[1]) // 2


def read_region(
    case: Case,
    z: int,
    corner: tuple[int, int],
    view: SliceRegion,
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
) -> None:
    """Read a slice with its neighbors from `corner` on into int16[c + 2 reach, y, x], HU, and uint8[1 + 2 reach, y, x].

    Outside the slice is air, and background. Without a mask, everything is background.
    """
    step = neighbor_step(view.context_spacing_mm, case.info.spacing_mm[0])
    nz = len(case.image)
    if case.label is None:
        label[...] = 0
    else:
        read_fitted(case.label, neighbors(z, nz, 1 + 2 * view.reach, step), corner, 0, label)
    read_fitted(case.image, neighbors(z, nz, view.context + 2 * view.reach, step), corner, AIR_HU, image)


def read_fitted(
    array: SliceArray, around: Sequence[int], corner: tuple[int, int], fill: int, out: npt.NDArray[Any]
) -> None:
    """Read slices into `out`: any[n, H, W], cropped or padded from `corner` on. A repeated slice is read once."""
    for channel, z in enumerate(around):
        if channel and z == around[channel - 1]:
            out[channel] = out[channel - 1]
        elif array.shape[1:] == out.shape[1:] and corner == (0, 0):
            array.read(z, out[channel])
        else:
            crop_or_pad(array.read(z), corner, fill, out[channel])
