"""The tables of points and candidates of a store, built from its groups like the manifest.

A candidate is compared with the findings of its case (`compare_candidates`):

1. Its nodule is the nearest one whose radius it lies in. It is in an excluded finding likewise.
2. Candidates of one class in one nodule are one sample: all but the nearest to its center are duplicates, or, where
   some lie in an excluded finding, all but the nearest of the others. Outside of nodules and excluded findings,
   candidates of one class within DUPLICATE_MM of an earlier one that is no duplicate are duplicates of it.
3. Class 1 outside of all nodules, or class 0 in one, is a conflict.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from slicemill.common.files import Location, atomic_write
from slicemill.ct.points import UNKNOWN_DIAMETER_MM, Point, mm_to_voxel
from slicemill.store.case import CaseInfo
from slicemill.store.layout import CANDIDATES, POINTS
from slicemill.store.reader import Case

DUPLICATE_MM = 2.0
BLOCK_DISTANCES = 1_000_000
"""Distances that are in memory at a time."""
GROUP_ROWS = 50_000
"""Rows that are written at a time."""
NONE = -1
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
CANDIDATE_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("patient_id", pa.string()),
        *((name, pa.float64()) for name in ("x_mm", "y_mm", "z_mm", "voxel_z", "voxel_y", "voxel_x")),
        ("class", pa.int8()),
        ("row", pa.int64()),
        ("segmentation_mean", pa.float64()),
        ("in_lung", pa.bool_()),
        ("nearest_nodule", pa.string()),
        ("nearest_nodule_mm", pa.float64()),
        ("in_nodule", pa.bool_()),
        ("in_excluded", pa.bool_()),
        ("duplicate_of", pa.int64()),
        ("conflict", pa.bool_()),
    ]
)
"""``nearest_nodule`` is a point's id; ``row`` and ``duplicate_of`` are lines of the table that was passed."""
POINT_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("case_id", "patient_id", "point_id", "kind")),
        *((name, pa.float64()) for name in ("x_mm", "y_mm", "z_mm", "voxel_z", "voxel_y", "voxel_x")),
        *((name, pa.float64()) for name in ("diameter_mm", "malignancy")),
        ("readers", pa.int64()),
        ("mask", pa.string()),
        ("volume_ml", pa.float64()),
        ("flags", pa.string()),
    ]
)
"""A further column of the source follows as ``further_<name>``."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates of a case beside its findings; an array each, in the order of the candidates."""

    nearest: Ints
    """int64[n]: index of the nearest nodule among the nodules of the case; NONE without nodules."""
    distance_mm: Floats
    """float64[n]: distance from its center; NaN without nodules."""
    in_nodule: Mask
    """bool[n]: whether it lies within the radius of a nodule."""
    in_excluded: Mask
    """bool[n]: whether it lies in an excluded finding."""
    duplicate_of: Ints
    """int64[n]: index of the candidate that it repeats; NONE if it repeats none."""
    conflict: Mask
    """bool[n]: whether its class contradicts the nodules."""


def compare_candidates(rows: Floats, points: Iterable[Point]) -> Comparison:
    """Compare candidates float64[n, 6], the columns `CANDIDATE_COLUMNS`, with the findings of their case."""
    places, kinds = rows[:, :3], rows[:, 3]
    points = list(points)
    nodules = [point for point in points if point.kind == "nodule"]
    excluded = [point for point in points if point.kind == "excluded"]
    nearest, distance_mm, in_nodule = _find_nearest(places, nodules)
    _, _, in_excluded = _find_nearest(places, excluded)
    return Comparison(
        nearest=nearest,
        distance_mm=distance_mm,
        in_nodule=in_nodule,
        in_excluded=in_excluded,
        duplicate_of=_find_duplicates(rows, np.where(in_nodule, nearest, NONE), distance_mm, in_excluded),
        conflict=(kinds == 1) != in_nodule,
    )


def _find_nearest(places: Floats, points: list[Point]) -> tuple[Ints, Floats, Mask]:
    """Return the nearest of the points that hold each place, else the nearest; its distance; and whether any holds it.

    Without points, they are NONE, NaN and False.
    """
    count = len(places)
    nearest, distance_mm = np.full(count, NONE, dtype=np.int64), np.full(count, np.nan)
    is_inside = np.zeros(count, dtype=bool)
    if not points:
        return nearest, distance_mm, is_inside
    centers = np.array([point.xyz_mm for point in points], dtype=np.float64)
    radii = np.array([(point.diameter_mm or UNKNOWN_DIAMETER_MM) / 2 for point in points], dtype=np.float64)
    step = max(1, BLOCK_DISTANCES // len(points))
    for first in range(0, count, step):
        part = slice(first, first + step)
        distances = np.linalg.norm(places[part, None] - centers[None], axis=2)
        holds = distances < radii
        is_inside[part] = holds.any(axis=1)
        order = np.where(is_inside[part, None] & ~holds, np.inf, distances)
        nearest[part] = order.argmin(axis=1)
        distance_mm[part] = distances[np.arange(len(distances)), nearest[part]]
    return nearest, distance_mm, is_inside


def _find_duplicates(rows: Floats, nodule: Ints, distance_mm: Floats, in_excluded: Mask) -> Ints:
    """Return for each candidate the index of the one that it repeats, or NONE.

    `nodule` is the index of the nodule that each lies in, or NONE. No candidate outside of excluded findings repeats
    one in them.
    """
    from scipy.spatial import cKDTree

    places, kinds = rows[:, :3], rows[:, 3]
    repeats = np.full(len(places), NONE, dtype=np.int64)
    for kind in np.unique(kinds):
        for index in np.unique(nodule[(nodule != NONE) & (kinds == kind)]):
            members = np.flatnonzero((nodule == index) & (kinds == kind))
            kept = members[np.lexsort((distance_mm[members], in_excluded[members]))[0]]
            repeats[members[members != kept]] = kept
        free = np.flatnonzero((nodule == NONE) & ~in_excluded & (kinds == kind))
        if not len(free):
            continue
        tree = cKDTree(places[free])
        for kept in free:
            if repeats[kept] == NONE:
                near = free[tree.query_ball_point(places[kept], DUPLICATE_MM)]
                repeats[near[(near > kept) & (repeats[near] == NONE)]] = kept
    return repeats


def make_point_rows(info: CaseInfo) -> list[dict[str, object]]:
    """Return a case's rows of the table of points."""
    return [
        {
            "case_id": info.case_id,
            "patient_id": info.patient_id,
            "point_id": point.id,
            "kind": point.kind,
            **dict(zip(("x_mm", "y_mm", "z_mm"), point.xyz_mm, strict=True)),
            **dict(zip(("voxel_z", "voxel_y", "voxel_x"), mm_to_voxel(info.affine_lps, point.xyz_mm), strict=True)),
            "diameter_mm": point.diameter_mm,
            "malignancy": point.malignancy,
            "readers": point.readers,
            "mask": point.mask,
            "volume_ml": point.volume_ml,
            "flags": "; ".join(point.flags),
            **{f"further_{name}": value for name, value in (*point.further.items(), *point.words.items())},
        }
        for point in info.points or ()
    ]


def write_points(root: Location, rows: list[dict[str, object]]) -> None:
    """Write the table of points."""
    further: dict[str, pa.DataType] = {}
    for row in rows:
        for name in row.keys() - set(POINT_SCHEMA.names):
            is_word = isinstance(row[name], str) or further.get(name) == pa.string()
            further[name] = pa.string() if is_word else pa.float64()
    words = {name for name, kind in further.items() if kind == pa.string()}
    rows = [{name: _as_text(value) if name in words else value for name, value in row.items()} for row in rows]
    schema = pa.schema([*POINT_SCHEMA, *sorted(further.items())])
    with atomic_write(root / f"{POINTS}.parquet") as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside)


def _as_text(value: object) -> object:
    """Return a value of a column that has words: another ingest may have found numbers in it."""
    return f"{value:g}" if isinstance(value, float) else value


def make_candidate_table(case: Case) -> pa.Table | None:
    """Return a case's rows of the table of candidates; None if it has no candidates."""
    rows, in_lung = case.candidates, case.candidates_in_lung
    if rows is None or in_lung is None or not len(rows):
        return None
    points = case.points or ()
    found = compare_candidates(rows, points)
    names = [*(point.id for point in points if point.kind == "nodule"), None]  # NONE is the last
    voxels = mm_to_voxel(case.affine, rows[:, :3])
    numbers = rows[:, 4].astype(np.int64)
    columns = [
        pa.array([case.case_id] * len(rows)),
        pa.array([case.info.patient_id] * len(rows)),
        *rows[:, :3].T,
        *voxels.T,
        rows[:, 3].astype(np.int8),
        numbers,
        pa.array(rows[:, 5], mask=np.isnan(rows[:, 5])),
        pa.array(in_lung == 1, mask=np.isnan(in_lung)),
        pa.array([names[index] for index in found.nearest], pa.string()),
        pa.array(found.distance_mm, mask=np.isnan(found.distance_mm)),
        found.in_nodule,
        found.in_excluded,
        pa.array(numbers[found.duplicate_of], mask=found.duplicate_of == NONE),
        found.conflict,
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=CANDIDATE_SCHEMA)


def write_candidate_tables(root: Location, cases: Iterable[Case]) -> None:
    """Write the table of candidates, with the rows of one case after the other; few of them are in memory."""
    with (
        atomic_write(root / f"{CANDIDATES}.parquet") as aside,
        pq.ParquetWriter(aside, CANDIDATE_SCHEMA) as writer,
    ):
        for part in _join(make_candidate_table(case) for case in cases):
            writer.write_table(part)


def _join(parts: Iterable[pa.Table | None]) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    for part in parts:
        if part is not None:
            pending.append(part)
        if sum(map(len, pending)) >= GROUP_ROWS:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)
