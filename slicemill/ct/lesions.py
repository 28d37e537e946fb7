"""Lesions: connected components of tumor, with volume, position and longest axial diameter.

`LesionTracker` receives a scan slab by slab and keeps no voxels:

1. The components (26 neighbors) of each slab are labeled and measured on its runs along x (`slicemill.ct.runs`):
   voxels, sums of coordinates, box, outline.
2. Components that touch across the boundary of two slabs are joined (union-find).
3. At the end the joined parts are added up. The longest diameter is that of the outlines (`slicemill.ct.diameters`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError
from slicemill.ct.diameters import Outline, drop_inner_points, longest_section
from slicemill.ct.geometry import voxel_ml, voxel_to_mm
from slicemill.ct.runs import Runs, concatenate_runs, connect_runs, find_runs, find_touching

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Box = tuple[int, int, int, int, int, int]
"""First voxel, and last voxel plus 1: z0, y0, x0, z1, y1, x1."""
MAX_PARTS = 20_000
"""Pieces of tumor that are tracked, at 2 KB each. More would exhaust a worker's memory and are noise."""
BATCH_SLICES = 16
"""Slices whose components are labeled together: up to 4 MB. For slabs of four slices that is a quarter of the
calls, and a tenth faster (`slicemill bench constants`)."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component of tumor (26 neighbors)."""

    id: int
    """1 for the largest, then by falling volume."""
    voxels: int
    volume_ml: float
    centroid_lps_mm: tuple[float, float, float]
    """x, y, z in patient coordinates."""
    bbox_zyx: tuple[int, int, int, int, int, int]
    """First voxel, and last voxel plus 1: z0, y0, x0, z1, y1, x1."""
    key_z: int
    """Slice of the longest diameter."""
    max_axial_diameter_mm: float

    def as_json(self) -> dict[str, Any]:
        """Return the fields as stored in attributes and reports, rounded."""
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
class Part:
    """A component within one slab."""

    voxels: int
    sums: tuple[int, int, int]
    """Sums of its voxels' z, y, x."""
    box: Box
    outline: Outline


@dataclass(frozen=True, slots=True)
class _Crop:
    """A part of a scan that holds all tumor of its slices."""

    corner: tuple[int, int, int]
    """z, y, x of its first voxel in the scan."""
    tumor: Mask
    """bool[z, y, x]."""

    @property
    def end(self) -> tuple[int, int, int]:
        """Return z, y, x of its last voxel, plus 1."""
        z, y, x = (start + count for start, count in zip(self.corner, self.tumor.shape, strict=True))
        return z, y, x

    def adjoins(self, other: "_Crop") -> bool:
        """Return whether the slices of another crop are directly above or below."""
        return other.corner[0] == self.end[0] or other.end[0] == self.corner[0]


@dataclass(frozen=True, slots=True)
class _Plane:
    """The first or last slice of a slab."""

    z: int
    runs: Runs
    parts: npt.NDArray[np.int64]
    """int64[n], number of the part of each run."""


class LesionTracker:
    """Finds the lesions of a scan that arrives slab by slab, each next to the previous one, upward or downward."""

    def __init__(self, *, keeps_runs: bool = False) -> None:
        self._parts: list[Part] = []
        self._runs: list[Runs] | None = [] if keeps_runs else None
        self._part_of_run: list[npt.NDArray[np.int64]] = []
        self._parent: list[int] = []
        """Union-find over parts: the number of a part of the same lesion, or the part itself if it is a root."""
        self._planes: tuple[_Plane, ...] = ()
        self._pending: list[_Crop] = []

    def add(self, z: int, tumor: Mask, corner_yx: tuple[int, int] = (0, 0)) -> None:
        """Add the slab `tumor`: bool[z, y, x] from slice `z`, or a crop at `corner_yx` that holds all its tumor.

        Thin slabs are collected up to BATCH_SLICES slices, because each search for components has a fixed cost.
        """
        box = bounding_box(tumor)
        if box is None:
            return
        corner = (z + box[0].start, corner_yx[0] + box[1].start, corner_yx[1] + box[2].start)
        crop = _Crop(corner, tumor[box])
        if self._pending and not self._pending[-1].adjoins(crop):
            self._flush()
        self._pending.append(crop)
        if sum(len(each.tumor) for each in self._pending) >= BATCH_SLICES:
            self._flush()

    def lesions(self, affine_lps: Floats) -> tuple[Lesion, ...]:
        """Return the lesions, the largest first.

        `affine_lps`: float64[4, 4], voxel (x, y, z, 1) of the scan to LPS mm.
        """
        groups = ([self._parts[number] for number in numbers] for numbers in self._group())
        return tuple(measure_lesion(number, parts, affine_lps) for number, parts in enumerate(groups, start=1))

    def locate(self) -> tuple[Runs, npt.NDArray[np.int64]]:
        """Return the runs of all lesions in the order of their slabs, and the id of the lesion of each run, int64[n].

        The tracker must keep its runs.
        """
        groups = self._group()  # finds the parts of slabs that are still pending
        ids = np.zeros(len(self._parts), dtype=np.int64)
        for number, parts in enumerate(groups, start=1):
            ids[parts] = number
        if not self._runs:
            return find_runs(np.zeros((1, 1, 1), dtype=bool)), ids
        return concatenate_runs(self._runs), ids[np.concatenate(self._part_of_run)]

    def _group(self) -> list[list[int]]:
        """Return the numbers of the parts of each lesion, the largest lesion first."""
        self._flush()
        groups: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self._parts)):
            groups[self._root(number)].append(number)

        def place(numbers: list[int]) -> tuple[int, Box]:
            parts = [self._parts[number] for number in numbers]
            return -sum(part.voxels for part in parts), _joint_box(parts)

        return sorted(groups.values(), key=place)

    def _flush(self) -> None:
        if self._pending:
            self._find_parts(_merge_crops(self._pending))
            self._pending = []

    def _find_parts(self, crop: _Crop) -> None:
        """Measure the components of a crop and join them with those of the previous crop."""
        runs = find_runs(crop.tumor).shift(crop.corner)
        numbers, count = connect_runs(runs)
        first = len(self._parts)
        check_parts(first + count, f", the last at slice {crop.corner[0]}")
        self._parts += _measure_runs(runs, numbers, count)
        self._parent += range(first, len(self._parts))
        if self._runs is not None:
            self._runs.append(runs)
            self._part_of_run.append(numbers + np.int64(first))
        # The next crop may follow above or below, so both end slices are kept until then.
        ends = [_plane_at(z, runs, numbers + np.int64(first)) for z in sorted({crop.corner[0], crop.end[0] - 1})]
        for old in self._planes:
            for new in ends:
                if abs(old.z - new.z) == 1:
                    for a, b in _touching_parts(*sorted((old, new), key=lambda plane: plane.z)):
                        self._join(a, b)
        self._planes = tuple(ends)

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]  # halves the path for later searches
            number = self._parent[number]
        return number

    def _join(self, a: int, b: int) -> None:
        self._parent[self._root(a)] = self._root(b)


def find_lesions(tumor: Mask, affine_lps: Floats) -> tuple[Lesion, ...]:
    """Return the lesions of a complete tumor mask, the largest first.

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
    """Return the smallest box around the true voxels of bool[...], or None if there are none."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hits):
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
        mask = mask[(slice(None),) * axis + (box[-1],)]  # the other axes are searched in this range only
    return tuple(box)


def check_parts(count: int, where: str = "") -> None:
    """Refuse more pieces of tumor than are tracked.

    Raises
    ------
    LabelError
        There are more than MAX_PARTS.
    """
    if count > MAX_PARTS:
        raise LabelError(
            f"the tumor has more than {MAX_PARTS:,} separate pieces{where}; is it noise? Smooth the segmentation."
        )


def label_components(mask: Mask) -> npt.NDArray[np.uint32]:
    """Label the 26-connected components of `mask`: bool[z, y, x] -> uint32[z, y, x], 0 outside, 1 to n inside."""
    # cc3d 4.1 allocates too few provisional labels for arrays that are one voxel thick along two axes; hence a border
    labeled = cc3d.connected_components(np.pad(mask, 1), connectivity=26)
    return np.ascontiguousarray(labeled[1:-1, 1:-1, 1:-1], dtype=np.uint32)


def measure_parts(labelled: npt.NDArray[np.uint32], corner: tuple[int, int, int]) -> list[Part]:
    """Measure the components 1 to n of uint32[z, y, x], 0 outside; `corner` is its first voxel z, y, x in the scan."""
    runs = find_runs(labelled > 0)
    numbers = labelled[runs.z, runs.y, runs.start].astype(np.int32) - 1
    return _measure_runs(runs.shift(corner), numbers, int(labelled.max()))


def measure_lesion(number: int, parts: Sequence[Part], affine_lps: Floats) -> Lesion:
    """Return the lesion that consists of several parts."""
    x_mm, y_mm, _ = np.sqrt((affine_lps[:3, :3] ** 2).sum(axis=0)).tolist()
    key_z, diameter = longest_section(np.concatenate([part.outline for part in parts]), (y_mm, x_mm))
    voxels = sum(part.voxels for part in parts)
    return Lesion(
        id=number,
        voxels=voxels,
        volume_ml=voxels * voxel_ml(affine_lps),
        centroid_lps_mm=voxel_to_mm(affine_lps, [sum(part.sums[axis] for part in parts) / voxels for axis in range(3)]),
        bbox_zyx=_joint_box(parts),
        key_z=key_z,
        max_axial_diameter_mm=diameter,
    )


def _measure_runs(runs: Runs, numbers: npt.NDArray[np.int32], count: int) -> list[Part]:
    """Measure components of runs; `numbers` is the component of each run, 0 to `count` - 1."""
    if not count:
        return []
    # runs of one component next to each other, so that `reduceat` sums over each component
    order = np.argsort(numbers, kind="stable")
    runs, numbers = runs[order], numbers[order]
    lengths = runs.voxels.astype(np.int64)
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    voxels = np.add.reduceat(lengths, firsts)
    middles = (runs.z, runs.y, (runs.start + runs.stop - 1) / 2)
    # half integers below 2**50 are exact as floats, and so are their sums
    sums = np.stack([np.add.reduceat(lengths * middle, firsts) for middle in middles], axis=1).astype(np.int64)
    low = [np.minimum.reduceat(side, firsts) for side in (runs.z, runs.y, runs.start)]
    high = [np.maximum.reduceat(side, firsts) for side in (runs.z + 1, runs.y + 1, runs.stop)]
    boxes = np.stack([*low, *high], axis=1)
    return [
        Part(voxels=size, sums=tuple(total), box=tuple(box), outline=outline)
        for size, total, box, outline in zip(
            voxels.tolist(), sums.tolist(), boxes.tolist(), _outlines(runs, numbers, count), strict=True
        )
    ]


def _outlines(runs: Runs, numbers: npt.NDArray[np.int32], count: int) -> list[Outline]:
    """Return the outline of each component; its runs are next to each other."""
    # 1. A section is a component in one slice, a row is a section at one y. Runs are ordered, so both are ranges.
    section = np.flatnonzero(np.diff(numbers, prepend=-1) | np.diff(runs.z, prepend=-1))
    starts_row = np.diff(runs.y, prepend=-1) != 0
    starts_row[section] = True
    firsts = np.flatnonzero(starts_row)
    lasts = np.append(firsts[1:], len(runs)) - 1
    sections = np.repeat(np.arange(len(section)), np.diff(np.append(section, len(runs))))[firsts]
    # 2. Of each row, only its first and last voxel can be a corner of the section's convex hull. The first voxels of a
    #    section are a chain on its left side, the last voxels one on its right; points inside a chain are dropped.
    points, owners = [], []
    for x, side in ((runs.start[firsts], -1), (runs.stop[lasts] - 1, 1)):
        kept = drop_inner_points(sections, runs.y[firsts], x, side)
        points.append(np.stack([runs.z[firsts], runs.y[firsts], x], axis=1)[kept])
        owners.append(numbers[firsts][kept])
    # 3. Sort the points of both sides by component, and cut.
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.split(np.concatenate(points)[order], np.cumsum(np.bincount(owner, minlength=count))[:-1])


def _merge_crops(crops: Sequence[_Crop]) -> _Crop:
    """Return neighboring crops as one that contains all of them."""
    z, y, x = (min(crop.corner[axis] for crop in crops) for axis in range(3))
    tumor = np.zeros([max(crop.end[axis] for crop in crops) - low for axis, low in enumerate((z, y, x))], dtype=bool)
    for crop in crops:
        inside = tuple(slice(a - low, b - low) for a, b, low in zip(crop.corner, crop.end, (z, y, x), strict=True))
        tumor[inside] = crop.tumor
    return _Crop((z, y, x), tumor)


def _plane_at(z: int, runs: Runs, parts: npt.NDArray[np.int64]) -> _Plane:
    """Return slice `z` of ordered runs; `parts` is the number of the part of each run."""
    here = slice(*np.searchsorted(runs.z, (z, z + 1)))
    return _Plane(z=z, runs=runs[here], parts=parts[here])


def _touching_parts(lower: _Plane, upper: _Plane) -> set[tuple[int, int]]:
    """Return the numbers of parts that touch, by side, edge or corner, across two neighboring planes."""
    if not (len(lower.runs) and len(upper.runs)):
        return set()
    one, other = find_touching(concatenate_runs([lower.runs, upper.runs]), 26)
    between = (one < len(lower.runs)) & (other >= len(lower.runs))  # not within one plane
    a, b = lower.parts[one[between]], upper.parts[other[between] - len(lower.runs)]
    return set(zip(a.tolist(), b.tolist(), strict=True))


def _joint_box(parts: Sequence[Part]) -> Box:
    """Return the smallest box around several parts."""
    z0, y0, x0 = (min(part.box[axis] for part in parts) for axis in range(3))
    z1, y1, x1 = (max(part.box[axis] for part in parts) for axis in range(3, 6))
    return z0, y0, x0, z1, y1, x1
