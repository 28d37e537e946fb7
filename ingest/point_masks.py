"""The segmentation of a case that is annotated by points, and its points and candidates as they are stored.

1. While the image is read, `PointBoxes` keeps the voxels around each point. Points outside of the scan are left out.
2. `PointBoxes.finish` searches the voxels of each nodule (`slicemill.ct.nodule_mask`). An excluded finding is a ball.
3. `PointSegmentation` draws them, over the lungs if there is a segmentation of them, slab by slab.

Where findings overlap, nodule is drawn over what is left out of training, and that over lung.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError, ScanError
from slicemill.common.files import Location
from slicemill.ct.geometry import Grid, voxel_to_mm
from slicemill.ct.labels import IGNORE, Labels, make_labels
from slicemill.ct.nodule_mask import Box, box_around, box_distances, make_nodule_mask, nodule_box
from slicemill.ct.points import UNKNOWN_DIAMETER_MM, Point, is_inside, mm_to_voxel
from slicemill.ingest.point_tables import UNKNOWN, CasePoints, PointRow
from slicemill.store.case import LeftOutPoint, PointTable
from slicemill.store.point_tables import compare_candidates

LUNG, NODULE, LEFT_OUT = 1, 2, 3
"""Label values; `point_labels` names them."""
LUNG_VALUES = (1, 3, 4)
"""Values of lung in a segmentation of lungs: LUNA16's right and left lung, or the only value."""
OTHER_VALUES = (0, 5)
"""Background and LUNA16's trachea."""
EXCLUDED_RIM_MM = 2.0
"""Width of the shell around an excluded finding that is left out of training, too."""
MAX_BOX_BYTES = 1 << 30
"""Limit of the voxels around all points of a case, bytes: some thousand nodules of 30 mm."""
Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.int16]
Label = npt.NDArray[np.uint8]


def point_labels(*, with_lungs: bool) -> Labels:
    """Return the labels of segmentations that are made from points.

    >>> point_labels(with_lungs=False)
    Labels(values={'nodule': 2, 'ignore': 3}, organ=None, tumor='nodule')
    """
    lung = {"lung": LUNG} if with_lungs else {}
    return make_labels({**lung, "nodule": NODULE, IGNORE: LEFT_OUT})


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Voxels of one finding."""

    box: Box
    """The box's slices along z, y, x of the scan."""
    mask: npt.NDArray[np.bool_]
    """bool[z, y, x] in the box."""
    value: int


@dataclass(frozen=True, kw_only=True)
class FoundPoints:
    """The points of a case with their voxels."""

    points: tuple[Point, ...]
    drawings: tuple[Drawing, ...]
    """In the order in which they are drawn."""
    left_out: tuple[LeftOutPoint, ...]
    """Rows whose point lies outside of the scan."""


@dataclass(frozen=True, kw_only=True)
class StoredPoints:
    """What the store gets of the points of a case."""

    points: tuple[Point, ...] | None
    """None for a case without tables of points, like the candidates of one without a table of them."""
    left_out: tuple[LeftOutPoint, ...] = ()
    candidates: Floats | None = None
    """float64[n, 6] (`slicemill.store.candidates`)."""
    warnings: tuple[str, ...] = ()


NO_POINTS = StoredPoints(points=None)


class PointBoxes:
    """The voxels around the points of a scan, collected while it is read."""

    def __init__(self, points: CasePoints, grid: Grid) -> None:
        """Find the boxes.

        Raises
        ------
        ScanError
            They would take more than MAX_BOX_BYTES.
        """
        self._shape, self._affine = grid.stored_shape, grid.affine_lps
        inside = is_inside(self._shape, mm_to_voxel(self._affine, _positions(points.rows)))
        self._rows = [row for row, is_in in zip(points.rows, inside, strict=True) if is_in]
        self._outside = [row for row, is_in in zip(points.rows, inside, strict=True) if not is_in]
        self._boxes = [self._box_of(row) for row in self._rows]
        sizes = [[side.stop - side.start for side in box] for box in self._boxes]
        taken = sum(2 * int(np.prod(size)) for size in sizes)
        if taken > MAX_BOX_BYTES:
            raise ScanError(
                f"has {len(self._rows)} points, whose surroundings take {taken / 2**30:.1f} GiB of the scan. Correct "
                "the diameters in the table of points."
            )
        self._voxels: list[Image] = [np.empty(size, dtype=np.int16) for size in sizes]

    def _box_of(self, row: PointRow) -> Box:
        if row.kind == "nodule" and row.diameter_mm is not None:
            return nodule_box(self._shape, self._affine, row.xyz_mm, row.diameter_mm)
        voxel = mm_to_voxel(self._affine, row.xyz_mm)
        return box_around(voxel, self._affine, self._shape, _excluded_reach_mm(row))

    def add(self, z: int, slab: Image) -> None:
        """Keep what a slab, int16[z, y, x] from slice `z` on, has of the boxes."""
        for box, voxels in zip(self._boxes, self._voxels, strict=True):
            low, high = max(z, box[0].start), min(z + len(slab), box[0].stop)
            if low < high:
                voxels[low - box[0].start : high - box[0].start] = slab[low - z : high - z, box[1], box[2]]

    def finish(self) -> FoundPoints:
        """Search the voxels of all findings, after the last slab."""
        points, excluded, rims, nodules = [], [], [], []
        numbers = {"nodule": 0, "excluded": 0}
        for row, box, voxels in zip(self._rows, self._boxes, self._voxels, strict=True):
            numbers[row.kind] += 1
            point = _make_point(row, numbers[row.kind])
            if row.kind == "excluded":
                ball = box_distances(box, self._affine, np.array(row.xyz_mm)) <= _excluded_reach_mm(row)
                excluded.append(Drawing(box=box, mask=ball, value=LEFT_OUT))
                points.append(replace(point, mask="ball"))
                continue
            found = make_nodule_mask(voxels, _shift(self._affine, box), row.xyz_mm, row.diameter_mm or 0.0)
            inner = _inner(box, found.box)
            rims.append(Drawing(box=inner, mask=found.rim, value=LEFT_OUT))
            nodules.append(Drawing(box=inner, mask=found.mask, value=NODULE))
            flags = [*found.flags, *_same_voxel(row, points, self._affine)]
            points.append(replace(point, mask=found.method, volume_ml=found.volume_ml, flags=tuple(flags)))
        outside = tuple(map(self._explain, self._outside))
        return FoundPoints(points=tuple(points), drawings=(*excluded, *rims, *nodules), left_out=outside)

    def _explain(self, row: PointRow) -> LeftOutPoint:
        voxel = mm_to_voxel(self._affine, row.xyz_mm)
        inside = np.clip(voxel, -0.5, np.array(self._shape) - 0.5)
        away = float(np.linalg.norm(np.subtract(voxel_to_mm(self._affine, inside), row.xyz_mm)))
        table: PointTable = "points" if row.kind == "nodule" else "excluded"
        return LeftOutPoint(table=table, line=row.line, reason=f"its point lies {away:.1f} mm outside of the scan")


def _positions(rows: Sequence[PointRow]) -> Floats:
    return np.array([row.xyz_mm for row in rows], dtype=np.float64).reshape(-1, 3)


def _excluded_reach_mm(row: PointRow) -> float:
    return (row.diameter_mm or UNKNOWN_DIAMETER_MM) / 2 + EXCLUDED_RIM_MM


def _make_point(row: PointRow, number: int) -> Point:
    return Point(
        id=f"{row.kind}-{number}",
        kind=row.kind,
        xyz_mm=row.xyz_mm,
        diameter_mm=row.diameter_mm,
        malignancy=row.malignancy,
        readers=row.readers,
        further=row.further,
        words=row.words,
    )


def _shift(affine: Floats, box: Box) -> Floats:
    """Return the affine of a box of the scan."""
    shifted = affine.copy()
    shifted[:3, 3] = voxel_to_mm(affine, [side.start for side in box])
    return shifted


def _inner(box: Box, part: Box) -> Box:
    """Return a part of a box in voxels of the scan."""
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, part, strict=True))
    return z, y, x


def _same_voxel(row: PointRow, points: Sequence[Point], affine: Floats) -> list[str]:
    voxel = np.rint(mm_to_voxel(affine, row.xyz_mm))
    same = [one.id for one in points if (np.rint(mm_to_voxel(affine, one.xyz_mm)) == voxel).all()]
    return [f"its center is in the same voxel as that of {' and '.join(same)}"] if same else []


class PointSegmentation:
    """Draws the segmentation of a case, slab by slab."""

    def __init__(self, found: FoundPoints, candidates: Floats | None, grid: Grid) -> None:
        self._found = found
        self._shape = grid.stored_shape
        self._rows = np.empty((0, 5)) if candidates is None else settle_classes(candidates, found.points)
        self._has_candidates = candidates is not None
        places = mm_to_voxel(grid.affine_lps, self._rows[:, :3])
        self._inside = is_inside(self._shape, places)
        self._voxels = np.rint(places[self._inside]).astype(np.int64).clip(0, np.array(self._shape) - 1)
        self._in_lung = np.full(len(self._voxels), np.nan)
        self._lung_voxels: int | None = None  # None without a segmentation of lungs

    def draw(self, z: int, slices: int, lungs: Label | None, where: Location | None) -> Label:
        """Return uint8[z, y, x], label values of the slices from `z` on.

        Parameters
        ----------
        lungs
            uint8[z, y, x], the same slices of the segmentation of lungs.
        where
            The file of that segmentation, for messages.

        Raises
        ------
        LabelError
            The lungs have a value that is not known.
        """
        label = np.zeros((slices, *self._shape[1:]), dtype=np.uint8)
        if lungs is not None:
            is_lung = _find_lung(lungs, where)
            label[is_lung] = LUNG
            self._lung_voxels = (self._lung_voxels or 0) + int(np.count_nonzero(is_lung))
            here = (self._voxels[:, 0] >= z) & (self._voxels[:, 0] < z + slices)
            zz, yy, xx = self._voxels[here].T
            self._in_lung[here] = is_lung[zz - z, yy, xx]
        for one in self._found.drawings:
            low, high = max(z, one.box[0].start), min(z + slices, one.box[0].stop)
            if low < high:
                part = one.mask[low - one.box[0].start : high - one.box[0].start]
                label[low - z : high - z, one.box[1], one.box[2]][part] = one.value
        return label

    def result(self, points: CasePoints) -> StoredPoints:
        """Return what the store gets, after the last slab."""
        left_out = (*points.left_out, *self._found.left_out, *self._candidates_outside())
        warnings = [f"{point.id}: {'; '.join(point.flags)}" for point in self._found.points if point.flags]
        warnings += [f"--{one.table}, line {one.line}: {one.reason}" for one in left_out]
        if self._lung_voxels == 0:
            warnings.append("its segmentation of lungs has no lung")
        return StoredPoints(
            points=self._found.points,
            left_out=left_out,
            candidates=np.column_stack([self._rows[self._inside], self._in_lung]) if self._has_candidates else None,
            warnings=tuple(warnings),
        )

    def _candidates_outside(self) -> list[LeftOutPoint]:
        """Return a line about the candidates outside of the scan; none if there are none."""
        outside = self._rows[~self._inside]
        if not len(outside):
            return []
        reason = "1 candidate lies" if len(outside) == 1 else f"{len(outside):,} candidates lie, the first of them,"
        return [LeftOutPoint(table="candidates", line=int(outside[0, 4]), reason=f"{reason} outside of the scan")]


def settle_classes(rows: Floats, points: Sequence[Point]) -> Floats:
    """Return candidates float64[n, 6], `CANDIDATE_COLUMNS`, in which each UNKNOWN class is 1 in a nodule, else 0."""
    unknown = rows[:, 3] == UNKNOWN
    if not unknown.any():
        return rows
    settled = rows.copy()
    settled[:, 3] = np.where(unknown, compare_candidates(rows, points).in_nodule, rows[:, 3])
    return settled


_OTHER, _LUNG, _ODD = range(3)
_KINDS = np.full(256, _ODD, dtype=np.uint8)
_KINDS[list(LUNG_VALUES)], _KINDS[list(OTHER_VALUES)] = _LUNG, _OTHER


def _find_lung(lungs: Label, where: Location | None) -> npt.NDArray[np.bool_]:
    kinds = _KINDS[lungs]
    odd = kinds == _ODD
    if odd.any():
        raise LabelError(
            f"a segmentation of lungs has the values 3 and 4 (LUNA16's; 5 is the trachea) or 1; it has "
            f"{sorted(map(int, np.unique(lungs[odd])))[:5]}. Convert it, or leave out --lungs.",
            where=where,
        )
    return np.asarray(kinds == _LUNG, dtype=bool)
