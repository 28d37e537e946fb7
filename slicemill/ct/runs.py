"""Masks as runs of voxels along x, and connected components of runs, without an array of labels as large as the scan.

1. `find_runs` finds where rows enter and leave the mask. A liver of 512x512x447 voxels has some hundred thousand runs.
2. Two runs touch if they are in neighboring rows and overlap; with 26 neighbors, also by a corner. Starts and ends of
   ordered runs are ordered, so that the runs which touch a given one are found by bisection (`find_touching`).
3. `connect_runs` joins touching runs block by block. The last plane of a block is compared with the first of the next.

Sizes, boxes and outlines of components follow from runs alone (`slicemill.ct.lesions`), and so do the voxels to change
(`fill_runs`). This is several times faster than cc3d on masks of tumors and livers, and several times slower on noise
(`slicemill bench components`); `slicemill bench infer` compares with scipy, row `components`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PLANE_BYTES = 2**20
"""Bytes of the mask that are searched together; they fit in the processor's cache (`slicemill bench constants`)."""
BLOCK_RUNS = 2**16
"""Runs that are connected together (at least one plane): up to 500 bytes of temporary memory each, in noise.

Sixteen times as many take three quarters of the time in noise, and sixteen times the memory (`slicemill bench
constants`)."""
BLOCK_VOXELS = 2**18
"""Voxels whose coordinates are listed together: 6 MB. More is no faster (`slicemill bench constants`)."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Stretches of voxels along x, in the order of their voxels in memory."""

    z: Ints
    y: Ints
    start: Ints
    """x of the first voxel."""
    stop: Ints
    """x of the last voxel, plus 1."""

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, chosen: Any) -> "Runs":
        return Runs(self.z[chosen], self.y[chosen], self.start[chosen], self.stop[chosen])

    @property
    def voxels(self) -> Ints:
        """Return the length of each run, voxels."""
        return self.stop - self.start

    def shift(self, corner: tuple[int, int, int]) -> "Runs":
        """Return the runs of a crop in coordinates of the scan; `corner` (z, y, x) is the crop's first voxel."""
        z, y, x = (np.int32(offset) for offset in corner)
        return Runs(self.z + z, self.y + y, self.start + x, self.stop + x)


def concatenate_runs(parts: Sequence[Runs]) -> Runs:
    """Return the runs of several parts, one part after the other."""
    return Runs(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("z", "y", "start", "stop")))


def select_values(label: npt.NDArray[np.uint8], values: Sequence[int], out: Mask | None = None) -> Mask:
    """Return a mask bool[...] of the voxels of a label uint8[...] with one of `values`."""
    mask: Mask = np.equal(label, values[0], out=out)
    for value in values[1:]:
        mask |= label == value
    return mask


def find_runs(label: npt.NDArray[np.uint8] | Mask, values: Sequence[int] = (1,)) -> Runs:
    """Find the runs of a mask bool[z, y, x], or of the voxels of uint8[z, y, x] that have one of `values`.

    >>> find_runs(np.array([[[0, 1, 1, 0, 1]]], dtype=bool)).start.tolist()
    [1, 4]
    """
    nz, ny, nx = label.shape
    if not label.size:
        return Runs(*(np.zeros(0, dtype=np.int32) for _ in range(4)))
    label = label.view(np.uint8)
    depth = min(nz, max(1, PLANE_BYTES // (ny * (nx + 1))))
    # An empty column after each row, and one empty voxel before the first row: no run continues in the next row, and
    # changes of the flat mask come in pairs, the start and the stop of a run.
    flat = np.zeros(1 + depth * ny * (nx + 1), dtype=bool)
    rows = flat[1:].reshape(depth, ny, nx + 1)[:, :, :nx]
    columns: tuple[list[Ints], ...] = ([], [], [], [])
    for z in range(0, nz, depth):
        part = label[z : z + depth]
        select_values(part, values, out=rows[: len(part)])
        end = 1 + len(part) * ny * (nx + 1)
        edges = np.flatnonzero(flat[1:end] != flat[: end - 1]).reshape(-1, 2)
        row = edges[:, 0] // (nx + 1)
        start, stop = (edges - row[:, None] * (nx + 1)).T.astype(np.int32)
        found_columns = ((z + row // ny).astype(np.int32), (row % ny).astype(np.int32), start, stop)
        for column, more in zip(columns, found_columns, strict=True):
            column.append(more)
    # one column at a time, each list freed before the next: a quarter more memory at the peak, not twice as much
    return Runs(*(np.concatenate(_take_all(column)) for column in columns))


def _take_all(arrays: list[Ints]) -> list[Ints]:
    """Empty a list and return its items."""
    held = arrays.copy()
    arrays.clear()
    return held


def find_touching(runs: Runs, connectivity: int) -> tuple[Longs, Longs]:
    """Return the pairs of runs, by index, that touch in neighboring rows: by a side (6), or by a corner too (26).

    The runs must be ordered. Each pair is returned once.
    """
    # Number the voxels of a scan that has two empty columns after each row and an empty row after each plane, so that
    # nothing touches across the end of a row or plane. Neighboring rows are then a fixed distance apart: 1 row to the
    # next, `height` rows to the same row of the next plane, one less or more to that row's neighbors.
    width, height = int(runs.stop.max()) + 2, int(runs.y.max()) + 2
    rows = (runs.z.astype(np.int64) * height + runs.y) * width
    starts, stops = rows + runs.start, rows + runs.stop
    reach = 1 if connectivity == 26 else 0
    rows_ahead = (1, height - 1, height, height + 1) if connectivity == 26 else (1, height)
    pairs = []
    for row in rows_ahead:
        # Shifted by `row` rows, a run touches all runs from the first that ends after its start to the last that starts
        # before its end. Both searches are bisections, because starts and stops rise together.
        first = np.searchsorted(stops, starts + (row * width - reach), side="right")
        behind = np.searchsorted(starts, stops + (row * width + reach), side="left")
        counts = np.maximum(behind - first, 0)
        # list first, first + 1, ... behind - 1 for each run, without a loop
        one = np.repeat(np.arange(len(runs)), counts)
        pairs.append((one, np.arange(len(one)) + np.repeat(first - (np.cumsum(counts) - counts), counts)))
    return np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs])


def group_pairs(count: int, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[Ints, int]:
    """Return the component of each of `count` items of which pairs are joined, and the number of components.

    Components are numbered from 0 in the order of their first items. The method is that of Shiloach and Vishkin (1982).
    """
    root = np.arange(count, dtype=np.int32)
    while True:
        # 1. Keep the pairs whose items still have different roots. As a rule there are none after the first round.
        a, b = root[one], root[other]
        apart = a != b
        if not apart.any():
            break
        one, other, a, b = one[apart], other[apart], a[apart], b[apart]
        # 2. Attach the higher root to the lower, all pairs at once. A root of several pairs takes the lowest.
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        # 3. Shorten the chains until each item points to its root.
        while not np.array_equal(root, above := root[root]):
            root = above
    is_first = root == np.arange(count, dtype=np.int32)
    return (np.cumsum(is_first, dtype=np.int32) - 1)[root], int(np.count_nonzero(is_first))


def connect_runs(runs: Runs, connectivity: int = 26) -> tuple[Ints, int]:
    """Return the component of each run, numbered from 0 in the order of first voxels, and the number of components."""
    numbers = np.empty(len(runs), dtype=np.int32)
    count = 0
    links: list[tuple[Longs, Longs]] = []
    for before, first, last in _plane_blocks(runs):
        # A block is connected together with the last plane before it, whose runs are then in two numberings.
        local, more = group_pairs(last - before, *find_touching(runs[before:last], connectivity))
        numbers[first:last] = count + local[first - before :]
        if first > before:
            # each pair (number in the earlier block, number in this block) once, packed into one integer
            pairs = np.unique(numbers[before:first] * np.int64(more) + local[: first - before])
            links.append((pairs // more, count + pairs % more))
        count += more
    if not links:
        return numbers, count
    # group_pairs keeps the lower of two linked numbers, so that numbers still follow the first voxels
    merged, count = group_pairs(count, *(np.concatenate(side) for side in zip(*links, strict=True)))
    return merged[numbers], count


def _plane_blocks(runs: Runs) -> Iterator[tuple[int, int, int]]:
    """Divide runs into blocks of complete planes, about BLOCK_RUNS runs each.

    Yields three indices of runs: the start of the plane before the block (the block's own start, if that plane is
    empty), the start of the block, and its end.
    """
    ends = np.append(1 + np.flatnonzero(runs.z[1:] != runs.z[:-1]), len(runs))
    planes = np.append(0, ends[:-1])[: len(runs)]  # none if there are no runs
    index = 0
    while index < len(planes):
        behind = max(index + 1, int(np.searchsorted(ends, planes[index] + BLOCK_RUNS, side="right")))
        before = index - 1 if index and runs.z[planes[index]] == runs.z[planes[index - 1]] + 1 else index
        yield int(planes[before]), int(planes[index]), int(ends[behind - 1])
        index = behind


def voxel_coordinates(
    runs: Runs,
) -> Iterator[tuple[slice, tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]]:
    """Yield slices of the runs, each with z, y, x of all its voxels, about BLOCK_VOXELS voxels at a time."""
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


def fill_runs(volume: npt.NDArray[Any], runs: Runs, value: int) -> None:
    """Set the voxels of runs in any[z, y, x]."""
    for _, where in voxel_coordinates(runs):
        volume[where] = value
