"""The voxels of a mask as runs along x, and their connected components, without an array of numbers as large as the scan.

1. `runs_of` finds where rows enter and leave the mask: a liver of 512x512x447 voxels has some hundred thousand runs.
2. Two runs touch when they lie in neighboring rows and overlap, for 26 neighbors by a corner too. Runs in order have their
   starts and ends in order, so that those which touch one are found by bisection (`touching`).
3. `connected` joins them plane block by plane block; what an earlier block ends in is the start of the next.

The sizes of components, their boxes and outlines follow from the runs alone (`slicemill.ct.lesions`), and so do the voxels to change
(`fill`). `slicemill bench infer` measures the way beside scipy's, row `components`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

PLANE_BYTES = 2**20
"""Of the mask that is looked at together: it stays in the processor's cache (`slicemill bench constants`)."""
BLOCK_RUNS = 2**16
"""Runs whose neighbors are found together, or those of two planes where these have more: up to 500 bytes a run for a while, in noise.

Sixteen times as many take three quarters of the time in noise (`slicemill bench constants`), for as much more memory."""
BLOCK_VOXELS = 2**18
"""Voxels that are named together by their places: 6 MB for a while; more brings nothing (`slicemill bench constants`)."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Stretches of voxels, in the order in which they lie in memory."""

    z: Ints
    y: Ints
    start: Ints
    """x of the first voxel."""
    stop: Ints
    """x behind the last voxel."""

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, chosen: Any) -> "Runs":
        return Runs(self.z[chosen], self.y[chosen], self.start[chosen], self.stop[chosen])

    @property
    def voxels(self) -> Ints:
        """Return the length of each run."""
        return self.stop - self.start

    def moved(self, corner: tuple[int, int, int]) -> "Runs":
        """Return the same runs, of a crop that starts at `corner` (z, y, x), in the scan."""
        z, y, x = (np.int32(offset) for offset in corner)
        return Runs(self.z + z, self.y + y, self.start + x, self.stop + x)


def chained(parts: Sequence[Runs]) -> Runs:
    """Return runs one after the other."""
    return Runs(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("z", "y", "start", "stop")),
    )


def values_in(label: npt.NDArray[np.uint8], values: Sequence[int], out: Mask | None = None) -> Mask:
    """Return where uint8[...] has one of a few values."""
    mask: Mask = np.equal(label, values[0], out=out)
    for value in values[1:]:
        mask |= label == value
    return mask


def runs_of(label: npt.NDArray[np.uint8] | Mask, values: Sequence[int] = (1,)) -> Runs:
    """Return the runs of bool[z, y, x], or of where uint8[z, y, x] has one of `values`.

    >>> runs_of(np.array([[[0, 1, 1, 0, 1]]], dtype=bool)).start.tolist()
    [1, 4]
    """
    nz, ny, nx = label.shape
    if not label.size:
        return Runs(*(np.zeros(0, dtype=np.int32) for _ in range(4)))
    label = label.view(np.uint8)
    depth = min(nz, max(1, PLANE_BYTES // (ny * (nx + 1))))
    # a column of nothing behind each row, and one voxel of nothing before the first: every run has an end in its row
    flat = np.zeros(1 + depth * ny * (nx + 1), dtype=bool)
    rows = flat[1:].reshape(depth, ny, nx + 1)[:, :, :nx]
    found: tuple[list[Ints], ...] = ([], [], [], [])
    for z in range(0, nz, depth):
        part = label[z : z + depth]
        values_in(part, values, out=rows[: len(part)])
        end = 1 + len(part) * ny * (nx + 1)
        edges = np.flatnonzero(flat[1:end] != flat[: end - 1]).reshape(-1, 2)
        row = edges[:, 0] // (nx + 1)
        start, stop = (edges - row[:, None] * (nx + 1)).T.astype(np.int32)
        fresh = ((z + row // ny).astype(np.int32), (row % ny).astype(np.int32), start, stop)
        for side, more in zip(found, fresh, strict=True):
            side.append(more)
    # side by side, each given back before the next: a quarter more memory for a while, not twice as much
    return Runs(*(np.concatenate(_emptied(side)) for side in found))


def _emptied(arrays: list[Ints]) -> list[Ints]:
    """Return the arrays of a list that holds them no longer."""
    held = arrays.copy()
    arrays.clear()
    return held


def touching(runs: Runs, connectivity: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pairs of runs, by index, that touch in neighboring rows: by a side (6) or by a corner too (26).

    Every pair comes once; the runs are in order.
    """
    # places in a scan with an empty row behind each plane and two empty columns behind each row: nothing touches across them
    width, height = int(runs.stop.max()) + 2, int(runs.y.max()) + 2
    rows = (runs.z.astype(np.int64) * height + runs.y) * width
    starts, stops = rows + runs.start, rows + runs.stop
    reach = 1 if connectivity == 26 else 0
    ahead = (1, height - 1, height, height + 1) if connectivity == 26 else (1, height)
    pairs = []
    for row in ahead:
        first = np.searchsorted(stops, starts + (row * width - reach), side="right")
        behind = np.searchsorted(starts, stops + (row * width + reach), side="left")
        counts = np.maximum(behind - first, 0)
        one = np.repeat(np.arange(len(runs)), counts)
        pairs.append((one, np.arange(len(one)) + np.repeat(first - (np.cumsum(counts) - counts), counts)))
    return np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs])


def grouped(count: int, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[Ints, int]:
    """Return the components of `count` things of which pairs touch, numbered from 0 by their first thing, and how many there are.

    Of two that touch and have different roots, the higher root is hung below the lower, all pairs at once; then every thing is hung
    directly below its root (Shiloach and Vishkin 1982). Done again while pairs are apart: a few times, as a rule once.
    """
    root = np.arange(count, dtype=np.int32)
    while True:
        a, b = root[one], root[other]
        apart = a != b
        if not apart.any():
            break
        one, other, a, b = one[apart], other[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(root, above := root[root]):
            root = above
    first = root == np.arange(count, dtype=np.int32)
    return (np.cumsum(first, dtype=np.int32) - 1)[root], int(np.count_nonzero(first))


def connected(runs: Runs, connectivity: int = 26) -> tuple[Ints, int]:
    """Return the component of each run, numbered from 0 in the order of their first voxels, and how many there are."""
    numbers = np.empty(len(runs), dtype=np.int32)
    count = 0
    links: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for before, first, last in blocks(runs):
        local, more = grouped(last - before, *touching(runs[before:last], connectivity))
        numbers[first:last] = count + local[first - before :]
        if first > before:
            pairs = np.unique(numbers[before:first] * np.int64(more) + local[: first - before])
            links.append((pairs // more, count + pairs % more))
        count += more
    if not links:
        return numbers, count
    # what an earlier block ends in is tied to the earlier number, so that numbers still follow the first voxels
    together, count = grouped(count, *(np.concatenate(side) for side in zip(*links, strict=True)))
    return together[numbers], count


def blocks(runs: Runs) -> Iterator[tuple[int, int, int]]:
    """Cut runs into whole planes of about BLOCK_RUNS: yield where the plane before a block, the block, and what is behind it begin."""
    ends = np.append(1 + np.flatnonzero(runs.z[1:] != runs.z[:-1]), len(runs))
    planes = np.append(0, ends[:-1])[: len(runs)]  # none where there are no runs
    index = 0
    while index < len(planes):
        behind = max(index + 1, int(np.searchsorted(ends, planes[index] + BLOCK_RUNS, side="right")))
        before = index - 1 if index and runs.z[planes[index]] == runs.z[planes[index - 1]] + 1 else index
        yield int(planes[before]), int(planes[index]), int(ends[behind - 1])
        index = behind


def voxel_coordinates(
    runs: Runs,
) -> Iterator[tuple[slice, tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]]:
    """Yield which runs, and z, y, x of all their voxels, about BLOCK_VOXELS at a time."""
    ends = np.cumsum(runs.voxels, dtype=np.int64)
    first = 0
    while first < len(runs):
        done = int(ends[first - 1]) if first else 0
        behind = max(first + 1, int(np.searchsorted(ends, done + BLOCK_VOXELS, side="right")))
        part = runs[first:behind]
        lengths = part.voxels
        x = np.arange(int(lengths.sum())) + np.repeat(part.start - (np.cumsum(lengths) - lengths), lengths)
        yield slice(first, behind), (np.repeat(part.z, lengths), np.repeat(part.y, lengths), x)
        first = behind


def fill(volume: npt.NDArray[Any], runs: Runs, value: int) -> None:
    """Set the voxels of runs in any[z, y, x]."""
    for _, where in voxel_coordinates(runs):
        volume[where] = value
