"""Lesions: connected components of tumor, with volume, place and longest axial diameter.

`LesionTracker` takes a scan a slab at a time and keeps no voxels:

1. The components of each slab (26 neighbors) are measured: voxels, sums of coordinates, box, outline of every section.
2. Components that touch across the boundary of two slabs are joined (union-find).
3. At the end what was joined is added up, and the diameter of each section is taken from the outlines of its parts.
"""

from collections import defaultdict
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt

from store.case import Lesion
from store.errors import LabelError
from store.geometry import voxel_ml, voxel_to_mm

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Points = npt.NDArray[np.int32]
"""int32[n, 2], y and x in half pixels."""
LONG_OUTLINE = 128
"""Rows from which on an outline is thinned out: a scan that is all tumor then takes as little memory as others."""
MAX_PASSES = 32
"""Passes of the thinning; what is left after them is only more than needed."""
MAX_PARTS = 20_000
"""Pieces of tumor that are followed; more would take the memory of a worker (2 KB each), and no reader of the manifest."""
BATCH_SLICES = 16
"""Slices in which components are found together: 4 MB of a scan that is all tumor, and a quarter of the calls of a slab of 4."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A slice of numbered parts at the end of a slab."""

    z: int
    y: int
    x: int
    parts: npt.NDArray[np.int64]
    """int64[y, x]: number of the part plus one, 0 outside."""


@dataclass(frozen=True, slots=True)
class Part:
    """A component within one slab."""

    voxels: int
    sums: tuple[int, int, int]
    """Sums of its voxels' z, y, x."""
    box: tuple[int, int, int, int, int, int]
    """z0, y0, x0, z1, y1, x1."""
    sections: tuple[tuple[int, Points], ...]
    """z and the outline of each section."""


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
        labelled = components(tumor)
        first = len(self._parts)
        check_parts(first + int(labelled.max()), f", the last at slice {corner[0]}")
        self._parts += measured_parts(labelled, corner)
        self._parent += range(first, len(self._parts))
        ends = {
            corner[0] + row: Plane(corner[0] + row, *corner[1:], np.where(plane, plane.astype(np.int64) + first, 0))
            for row, plane in ((0, labelled[0]), (len(labelled) - 1, labelled[-1]))
        }
        for old in self._planes:
            for new in ends.values():
                if abs(old.z - new.z) == 1:
                    for a, b in touching(old, new):
                        self._join(a, b)
        self._planes = tuple(ends.values())

    def lesions(self, affine_lps: Floats) -> tuple[Lesion, ...]:
        """Return what was found, the largest first; `affine_lps`: float64[4, 4], voxel (x, y, z, 1) of the scan to LPS mm."""
        self._flush()
        groups: dict[int, list[Part]] = defaultdict(list)
        for number, part in enumerate(self._parts):
            groups[self._root(number)].append(part)
        ordered = sorted(groups.values(), key=lambda parts: (-sum(part.voxels for part in parts), joint_box(parts)))
        return tuple(measured(number, parts, affine_lps) for number, parts in enumerate(ordered, start=1))

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
    """Return the components 1 to n of a slab; `corner` is the z, y, x of its first voxel in the scan."""
    statistics = cc3d.statistics(labelled)
    found = []
    for index in range(1, len(statistics["voxel_counts"])):
        box = statistics["bounding_boxes"][index]
        count = int(statistics["voxel_counts"][index])
        mask = labelled[box] == index
        z, y, x = (start + side.start for start, side in zip(corner, box, strict=True))
        # a centroid is a sum of integers over a count: multiplied back it is that integer again
        sums = [
            round(float(mean) * count) + start * count
            for mean, start in zip(statistics["centroids"][index], corner, strict=True)
        ]
        depth, height, width = mask.shape
        found.append(
            Part(
                voxels=count,
                sums=(sums[0], sums[1], sums[2]),
                box=(z, y, x, z + depth, y + height, x + width),
                sections=tuple((z + row, outline(section, y, x)) for row, section in enumerate(mask)),
            )
        )
    return found


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
    """Return the first and last point of every row, of long outlines without those that are plainly no corner of the hull.

    >>> extremes(np.array([[0, 3], [0, 1], [0, 2], [4, 5]], dtype=np.int32)).tolist()
    [[0, 1], [4, 5], [0, 3], [4, 5]]
    """
    if not len(points):
        return points
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    starts = np.flatnonzero(np.diff(ordered[:, 0], prepend=ordered[0, 0] - 1))
    ends = np.append(starts[1:], len(ordered)) - 1
    sides = [ordered[starts], ordered[ends]]
    if len(starts) > LONG_OUTLINE:
        sides = [corners(sides[0], -1), corners(sides[1], 1)]
    return np.concatenate(sides)


def corners(chain: Points, side: int) -> Points:
    """Return a chain of points in rising rows without those that lie on or inside the line between their neighbors.

    >>> corners(np.array([[0, 0], [1, 1], [2, 2], [3, 9], [4, 4]], dtype=np.int32), 1).tolist()
    [[0, 0], [3, 9], [4, 4]]
    """
    for _ in range(MAX_PASSES):
        before, middle, after = (chain[start : len(chain) - 2 + start].astype(np.int64) for start in range(3))
        rise, run = after - before, middle - before
        outside = side * (rise[:, 0] * run[:, 1] - run[:, 0] * rise[:, 1]) > 0
        if outside.all():
            break
        chain = chain[np.concatenate([[True], outside, [True]])]
    return chain


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


def touching(old: Plane, new: Plane) -> set[tuple[int, int]]:
    """Return the numbers of parts that touch, by side, edge or corner, across two neighboring planes."""
    pairs: set[tuple[int, int]] = set()
    many = int(new.parts.max()) + 1
    for shift_y in (-1, 0, 1):
        for shift_x in (-1, 0, 1):
            a, b = overlap(old.parts, new.parts, (new.y + shift_y - old.y, new.x + shift_x - old.x))
            both = (a > 0) & (b > 0)
            codes = a[both] * many + b[both]
            codes = codes[np.flatnonzero(np.diff(codes, prepend=-1))]  # runs first: a section is mostly one part
            pairs |= {(code // many - 1, code % many - 1) for code in np.unique(codes).tolist()}
    return pairs


def overlap(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], offset: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the parts of two pictures that lie on each other when `b` starts at `offset` in `a`."""
    sides_a, sides_b = [], []
    for axis in (0, 1):
        start, end = max(0, offset[axis]), min(a.shape[axis], offset[axis] + b.shape[axis])
        sides_a.append(slice(start, max(start, end)))
        sides_b.append(slice(start - offset[axis], max(start, end) - offset[axis]))
    return a[tuple(sides_a)], b[tuple(sides_b)]


def joint_box(parts: list[Part]) -> tuple[int, int, int, int, int, int]:
    """Return the box around several parts: z0, y0, x0, z1, y1, x1."""
    low = [min(part.box[axis] for part in parts) for axis in range(3)]
    high = [max(part.box[axis] for part in parts) for axis in range(3, 6)]
    return low[0], low[1], low[2], high[0], high[1], high[2]


def measured(number: int, parts: list[Part], affine_lps: Floats) -> Lesion:
    """Return the lesion that several parts make."""
    outlines: dict[int, list[Points]] = defaultdict(list)
    for part in parts:
        for z, points in part.sections:
            outlines[z].append(points)
    spacing = np.sqrt((affine_lps[:3, :3] ** 2).sum(axis=0))
    diameters = {
        z: longest(extremes(np.concatenate(points)), (float(spacing[1]), float(spacing[0])))
        for z, points in sorted(outlines.items())
    }
    key = max(diameters, key=lambda z: (diameters[z], -z))
    voxels = sum(part.voxels for part in parts)
    return Lesion(
        id=number,
        voxels=voxels,
        volume_ml=voxels * voxel_ml(affine_lps),
        centroid_lps_mm=voxel_to_mm(affine_lps, [sum(part.sums[axis] for part in parts) / voxels for axis in range(3)]),
        bbox_zyx=joint_box(parts),
        key_z=key,
        max_axial_diameter_mm=diameters[key],
    )
