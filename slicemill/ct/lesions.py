"""Lesions: connected components of tumor, with volume, place and longest axial diameter.

`LesionTracker` takes a scan a slab at a time and keeps no voxels:

1. The components of each slab (26 neighbors) are measured from its runs along x (`slicemill.ct.runs`): voxels, sums of coordinates, box, outline.
2. Components that touch across the boundary of two slabs are joined (union-find).
3. At the end what was joined is added up. Widths in a few directions bound the diameter of every section to within 2 %; only
   sections that may be the longest are measured to the last pixel.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError
from slicemill.ct.geometry import voxel_ml, voxel_to_mm
from slicemill.ct.runs import Runs, chained, connected, runs_of, touching

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Points = npt.NDArray[np.int32]
"""int32[n, 2], y and x in half pixels."""
Outline = npt.NDArray[np.int32]
"""int32[n, 3], z, y, x: voxels of which the convex hull of every section is the section's."""
MAX_PASSES = 32
"""Passes of the thinning of outlines; what is left after them is only more than needed."""
MAX_PARTS = 20_000
"""Pieces of tumor that are followed; more would take the memory of a worker (2 KB each), and no reader of the manifest."""
BATCH_SLICES = 16
"""Slices in which components are found together: 4 MB of a scan that is all tumor, and a quarter of the calls of a slab of 4;
a tenth sooner (`slicemill bench constants`)."""
DIRECTIONS = np.arange(8) * (np.pi / 8)
"""Angles in which sections are measured first: a diameter is at most the largest of these widths over cos(pi / 16), 1.02 of it."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component of tumor (26 neighbours)."""

    id: int
    """1 for the largest, then by falling volume."""
    voxels: int
    volume_ml: float
    centroid_lps_mm: tuple[float, float, float]
    """x, y, z in patient coordinates."""
    bbox_zyx: tuple[int, int, int, int, int, int]
    """First voxel and one past the last: z0, y0, x0, z1, y1, x1."""
    key_z: int
    """Slice of the longest diameter."""
    max_axial_diameter_mm: float

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they stand in attributes and reports."""
        return {
            "id": self.id,
            "voxels": self.voxels,
            "volume_ml": round(self.volume_ml, 4),
            "centroid_lps_mm": [round(value, 2) for value in self.centroid_lps_mm],
            "bbox_zyx": list(self.bbox_zyx),
            "key_z": self.key_z,
            "max_axial_diameter_mm": round(self.max_axial_diameter_mm, 2),
        }


@dataclass(frozen=True, slots=True)
class Plane:
    """A slice at the end of a slab."""

    z: int
    runs: Runs
    parts: npt.NDArray[np.int64]
    """int64[n]: number of the part of each run."""


@dataclass(frozen=True, slots=True)
class Part:
    """A component within one slab."""

    voxels: int
    sums: tuple[int, int, int]
    """Sums of its voxels' z, y, x."""
    box: tuple[int, int, int, int, int, int]
    """z0, y0, x0, z1, y1, x1."""
    outline: Outline


class LesionTracker:
    """Finds the lesions of a scan that arrives slab by slab, each beside the one before it, upwards or downwards."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._parent: list[int] = []
        self._planes: tuple[Plane, ...] = ()
        self._waiting: list[tuple[int, Mask, tuple[int, int]]] = []

    def add(self, z: int, tumor: Mask, corner_yx: tuple[int, int] = (0, 0)) -> None:
        """Take the slab `tumor`: bool[z, y, x] from slice `z` on; with `corner_yx` it is a crop that holds all tumor.

        Thin slabs wait until BATCH_SLICES of them are there: components are found at one cost for each call.
        """
        box = bounding_box(tumor)
        if box is None:
            return
        first = (z + box[0].start, corner_yx[0] + box[1].start, corner_yx[1] + box[2].start)
        if self._waiting and not touches(self._waiting[-1], first[0], len(tumor[box])):
            self._flush()
        self._waiting.append((first[0], tumor[box], first[1:]))
        if sum(len(mask) for _, mask, _ in self._waiting) >= BATCH_SLICES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._take(*joined(self._waiting))
            self._waiting = []

    def _take(self, corner: tuple[int, int, int], tumor: Mask) -> None:
        runs = runs_of(tumor).moved(corner)
        numbers, count = connected(runs)
        first = len(self._parts)
        check_parts(first + count, f", the last at slice {corner[0]}")
        self._parts += parts_of(runs, numbers, count)
        self._parent += range(first, len(self._parts))
        ends = {z: plane_of(runs, numbers + np.int64(first), z) for z in (corner[0], corner[0] + len(tumor) - 1)}
        for old in self._planes:
            for new in ends.values():
                if abs(old.z - new.z) == 1:
                    for a, b in across(*sorted((old, new), key=lambda plane: plane.z)):
                        self._join(a, b)
        self._planes = tuple(ends.values())

    def lesions(self, affine_lps: Floats) -> tuple[Lesion, ...]:
        """Return what was found, the largest first; `affine_lps`: float64[4, 4], voxel (x, y, z, 1) of the scan to LPS mm."""
        self._flush()
        groups: dict[int, list[Part]] = defaultdict(list)
        for number, part in enumerate(self._parts):
            groups[self._root(number)].append(part)
        ordered = sorted(groups.values(), key=lambda parts: (-sum(part.voxels for part in parts), joint_box(parts)))
        return tuple(measure_lesion(number, parts, affine_lps) for number, parts in enumerate(ordered, start=1))

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _join(self, a: int, b: int) -> None:
        self._parent[self._root(a)] = self._root(b)


def touches(waiting: tuple[int, Mask, tuple[int, int]], z: int, depth: int) -> bool:
    """Return whether a slab lies directly above or below another."""
    return z == waiting[0] + len(waiting[1]) or z + depth == waiting[0]


def joined(slabs: list[tuple[int, Mask, tuple[int, int]]]) -> tuple[tuple[int, int, int], Mask]:
    """Return neighboring crops as one, bool[z, y, x], with the z, y, x of its first voxel."""
    low = [min(z for z, _, _ in slabs), min(y for _, _, (y, _) in slabs), min(x for _, _, (_, x) in slabs)]
    ends = [(z + mask.shape[0], y + mask.shape[1], x + mask.shape[2]) for z, mask, (y, x) in slabs]
    whole = np.zeros([max(end[axis] for end in ends) - low[axis] for axis in range(3)], dtype=bool)
    for (z, mask, (y, x)), end in zip(slabs, ends, strict=True):
        whole[z - low[0] : end[0] - low[0], y - low[1] : end[1] - low[1], x - low[2] : end[2] - low[2]] = mask
    return (low[0], low[1], low[2]), whole


def find_lesions(tumor: Mask, affine_lps: Floats) -> tuple[Lesion, ...]:
    """Return the lesions of a whole tumor mask, the largest first.

    Parameters
    ----------
    tumor
        bool[z, y, x].
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) of the scan to LPS mm.
    """
    tracker = LesionTracker()
    for z in range(0, len(tumor), BATCH_SLICES):
        tracker.add(z, tumor[z : z + BATCH_SLICES])
    return tracker.lesions(affine_lps)


def bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    """Return the smallest box around the true voxels, or None where there are none."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hits):
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
        mask = mask[(slice(None),) * axis + (box[-1],)]
    return tuple(box)


def check_parts(count: int, where: str = "") -> None:
    """Refuse more pieces of tumor than are followed.

    Raises
    ------
    LabelError
        There are more than MAX_PARTS.
    """
    if count > MAX_PARTS:
        raise LabelError(
            f"the tumor has more than {MAX_PARTS:,} separate pieces{where}; is it noise? Smooth the segmentation."
        )


def components(mask: Mask) -> npt.NDArray[np.uint32]:
    """Return the 26-connected components of `mask`: bool[z, y, x] -> uint32[z, y, x], 0 outside, 1 to n inside."""
    # cc3d 4.1 counts too few provisional labels in arrays as thin as a bar; a border of air makes none thin
    found = cc3d.connected_components(np.pad(mask, 1), connectivity=26)
    return np.ascontiguousarray(found[1:-1, 1:-1, 1:-1], dtype=np.uint32)


def measured_parts(labelled: npt.NDArray[np.uint32], corner: tuple[int, int, int]) -> list[Part]:
    """Return the components 1 to n of uint32[z, y, x], 0 outside; `corner` is the z, y, x of its first voxel in the scan."""
    runs = runs_of(labelled > 0)
    numbers = labelled[runs.z, runs.y, runs.start].astype(np.int32) - 1
    return parts_of(runs.moved(corner), numbers, int(labelled.max()))


def parts_of(runs: Runs, numbers: npt.NDArray[np.int32], count: int) -> list[Part]:
    """Return what runs make: `numbers` is the component of each, from 0 to below `count`."""
    if not count:
        return []
    order = np.argsort(numbers, kind="stable")
    runs, numbers = runs[order], numbers[order]
    lengths = runs.voxels.astype(np.int64)
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    voxels = np.add.reduceat(lengths, firsts)
    middles = (runs.z, runs.y, (runs.start + runs.stop - 1) / 2)
    # half integers below 2**50 are exact, and so are their sums
    sums = np.stack([np.add.reduceat(lengths * middle, firsts) for middle in middles], axis=1).astype(np.int64)
    low = [np.minimum.reduceat(side, firsts) for side in (runs.z, runs.y, runs.start)]
    high = [np.maximum.reduceat(side, firsts) for side in (runs.z + 1, runs.y + 1, runs.stop)]
    outlines = outlines_of(runs, numbers, count)
    return [
        Part(voxels=size, sums=tuple(total), box=tuple(box), outline=outline)
        for size, total, box, outline in zip(
            voxels.tolist(), sums.tolist(), np.stack([*low, *high], axis=1).tolist(), outlines, strict=True
        )
    ]


def outlines_of(runs: Runs, numbers: npt.NDArray[np.int32], count: int) -> list[Outline]:
    """Return the outline of each component, whose runs follow each other: the first and last voxel of its rows, less those on no hull."""
    section = np.flatnonzero(np.diff(numbers, prepend=-1) | np.diff(runs.z, prepend=-1))
    row = np.diff(runs.y, prepend=-1) != 0
    row[section] = True
    firsts = np.flatnonzero(row)
    lasts = np.append(firsts[1:], len(runs)) - 1
    sections = np.repeat(np.arange(len(section)), np.diff(np.append(section, len(runs))))[firsts]
    points, owners = [], []
    for x, side in ((runs.start[firsts], -1), (runs.stop[lasts] - 1, 1)):
        kept = corners(sections, runs.y[firsts], x, side)
        points.append(np.stack([runs.z[firsts], runs.y[firsts], x], axis=1)[kept])
        owners.append(numbers[firsts][kept])
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.split(np.concatenate(points)[order], np.cumsum(np.bincount(owner, minlength=count))[:-1])


def plane_of(runs: Runs, parts: npt.NDArray[np.int64], z: int) -> Plane:
    """Return the slice at `z` of runs in order, with the part of each."""
    here = slice(*np.searchsorted(runs.z, (z, z + 1)))
    return Plane(z=z, runs=runs[here], parts=parts[here])


def across(lower: Plane, upper: Plane) -> set[tuple[int, int]]:
    """Return the numbers of parts that touch, by side, edge or corner, across two neighboring planes."""
    if not (len(lower.runs) and len(upper.runs)):
        return set()
    one, other = touching(chained([lower.runs, upper.runs]), 26)
    between = (one < len(lower.runs)) & (other >= len(lower.runs))
    a, b = lower.parts[one[between]], upper.parts[other[between] - len(lower.runs)]
    return set(zip(a.tolist(), b.tolist(), strict=True))


def outline(section: Mask, y: int = 0, x: int = 0) -> Points:
    """Return the outer edges of the first and last pixel of every row and column of a section: bool[y, x].

    Parameters
    ----------
    section
        bool[y, x].
    y, x
        Where its first pixel lies in the slice.
    """
    ends = []
    for axis, rows in ((0, section), (1, section.T)):
        filled = np.flatnonzero(rows.any(axis=1))
        part = rows[filled]
        first = 2 * part.argmax(axis=1) - 1
        last = 2 * (part.shape[1] - 1 - part[:, ::-1].argmax(axis=1)) + 1
        ends += [np.stack([2 * filled, edge][:: 1 if axis == 0 else -1], axis=1) for edge in (first, last)]
    points = np.concatenate(ends)
    points += np.array((2 * y, 2 * x))
    return extremes(points.astype(np.int32))


def extremes(points: Points) -> Points:
    """Return the first and last point of every row.

    >>> extremes(np.array([[0, 3], [0, 1], [0, 2], [4, 5]], dtype=np.int32)).tolist()
    [[0, 1], [4, 5], [0, 3], [4, 5]]
    """
    if not len(points):
        return points
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    starts = np.flatnonzero(np.diff(ordered[:, 0], prepend=ordered[0, 0] - 1))
    ends = np.append(starts[1:], len(ordered)) - 1
    return np.concatenate([ordered[starts], ordered[ends]])


def corners(
    chain: npt.NDArray[np.int64], y: npt.NDArray[np.int32], x: npt.NDArray[np.int32], side: int
) -> npt.NDArray[np.int64]:
    """Return which points of chains in rising rows are left without those on or inside the line between their neighbors.

    Parameters
    ----------
    chain
        The chain that each point is of; those of one follow each other.
    side
        -1 where they are the first points of rows, 1 where they are the last.

    >>> corners(np.zeros(5, int), np.arange(5), np.array([0, 1, 2, 9, 4]), 1).tolist()
    [0, 3, 4]
    """
    kept = np.arange(len(chain))
    y, x = y.astype(np.int64), x.astype(np.int64)
    for _ in range(MAX_PASSES):
        before, middle, after = kept[:-2], kept[1:-1], kept[2:]
        outside = (
            side * ((y[after] - y[before]) * (x[middle] - x[before]) - (y[middle] - y[before]) * (x[after] - x[before]))
            > 0
        )
        outside |= chain[before] != chain[after]
        if outside.all():
            break
        kept = kept[np.concatenate([[True], outside, [True]])]
    return kept


def longest(points: Points, spacing_yx: tuple[float, float]) -> float:
    """Return the longest distance in mm between two points of an outline."""
    if not len(points):
        return 0.0
    places = points * (np.array(spacing_yx) / 2)
    far = places[np.argmax(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
    other = places[np.argmax(((places - far) ** 2).sum(axis=1))]
    # Two points are at most the sum of their distances from any center apart: those too near to it cannot be the ends.
    length = np.linalg.norm(other - far)
    reach = np.linalg.norm(places - (far + other) / 2, axis=1)
    places = places[reach >= length - reach.max() - 1e-9]
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=2)
    return float(np.sqrt(squared.max()))


def axial_diameter(section: Mask, spacing_yx: tuple[float, float]) -> float:
    """Return the longest distance in mm across a section: bool[y, x].

    Measured between the outer edges of pixels along their row or column, so that one pixel is as long as its side
    and a disc neither gains nor loses a pixel.

    >>> axial_diameter(np.array([[True, True, True]]), (1.0, 0.5))
    1.5
    """
    return longest(outline(section), spacing_yx)


def joint_box(parts: Sequence[Part]) -> tuple[int, int, int, int, int, int]:
    """Return the box around several parts: z0, y0, x0, z1, y1, x1."""
    low = [min(part.box[axis] for part in parts) for axis in range(3)]
    high = [max(part.box[axis] for part in parts) for axis in range(3, 6)]
    return low[0], low[1], low[2], high[0], high[1], high[2]


def measure_lesion(number: int, parts: Sequence[Part], affine_lps: Floats) -> Lesion:
    """Return the lesion that several parts make."""
    x_mm, y_mm, _ = np.sqrt((affine_lps[:3, :3] ** 2).sum(axis=0)).tolist()
    key_z, diameter = longest_section(np.concatenate([part.outline for part in parts]), (y_mm, x_mm))
    voxels = sum(part.voxels for part in parts)
    return Lesion(
        id=number,
        voxels=voxels,
        volume_ml=voxels * voxel_ml(affine_lps),
        centroid_lps_mm=voxel_to_mm(affine_lps, [sum(part.sums[axis] for part in parts) / voxels for axis in range(3)]),
        bbox_zyx=joint_box(parts),
        key_z=key_z,
        max_axial_diameter_mm=diameter,
    )


def longest_section(outline: Outline, spacing_yx: tuple[float, float]) -> tuple[int, float]:
    """Return z of the section with the longest axial diameter, of equals the lowest, and that diameter in mm."""
    outline = outline[np.argsort(outline[:, 0], kind="stable")]
    firsts = np.flatnonzero(np.diff(outline[:, 0], prepend=-1))
    ends = np.append(firsts[1:], len(outline))
    steps = np.stack([np.sin(DIRECTIONS) * spacing_yx[0], np.cos(DIRECTIONS) * spacing_yx[1]])
    places = outline[:, 1:] @ steps
    widths = np.maximum.reduceat(places, firsts) - np.minimum.reduceat(places, firsts)
    widths = (widths + np.abs(steps).max(axis=0)).max(axis=1)  # a pixel reaches half a pixel up, down, left and right
    may_be = np.flatnonzero(widths >= widths.max() * np.cos(np.pi / 16) * (1 - 1e-9))
    found = {
        int(outline[firsts[index], 0]): longest(
            extremes(edges_of(outline[firsts[index] : ends[index], 1:])), spacing_yx
        )
        for index in may_be.tolist()
    }
    key = max(found, key=lambda z: (found[z], -z))
    return key, found[key]


def edges_of(pixels: npt.NDArray[np.int32]) -> Points:
    """Return the middles of the four edges of pixels int32[n, 2], y and x, in half pixels."""
    return np.concatenate([2 * pixels + np.array(step, dtype=np.int32) for step in ((0, -1), (0, 1), (-1, 0), (1, 0))])
