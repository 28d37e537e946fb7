"""Matches tables of points with the scans of a collection.

A row belongs to the scan with its SeriesInstanceUID, its case id, or its file name without suffix, with or without
folders. Rows that name no scan, or several, belong to none. Within a scan:

1. A row that repeats another one is left out.
2. Rows at one place that contradict each other, or a nodule without a usable diameter, become an excluded finding:
   its voxels are neither nodule nor background.
3. A nodule at the place of an excluded finding is left out.

Every scan of the collection counts as annotated: one without a row is a scan without nodules.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import PairingError
from slicemill.common.files import Location
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.names import list_path_names, strip_suffix
from slicemill.ct.naming import find_files
from slicemill.ct.nodule_mask import MAX_DIAMETER_MM
from slicemill.ct.points import UNKNOWN_DIAMETER_MM
from slicemill.ingest.discover import CaseFiles, Collection
from slicemill.ingest.point_tables import (
    CandidateList,
    CasePoints,
    PointRow,
    UnmatchedPoint,
    read_candidates,
    read_points,
)
from slicemill.store.case import LeftOutPoint, PointTable

SAME_MM = 0.01
"""Largest distance of two rows about one point: above the rounding of a table, below any voxel."""
SHOWN = 3
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PointFiles:
    """The tables and folders that were passed."""

    points: Location
    excluded: Location | None = None
    candidates: Location | None = None
    lungs: Location | None = None


def match_points(collection: Collection, names: Mapping[Location, str], files: PointFiles) -> Collection:
    """Return the collection with the points of its cases.

    Parameters
    ----------
    names
        SeriesInstanceUID of the DICOM images.

    Raises
    ------
    PairingError
        No row of any table names a scan, or two segmentations of lungs have one name.
    InputError
        A table cannot be read.
    """
    found, excluded = read_points(files.points, "nodule"), None
    if files.excluded is not None:
        excluded = read_points(files.excluded, "excluded")
    candidates = None if files.candidates is None else read_candidates(files.candidates)
    matcher = _Matcher(collection.cases, names)
    rows: dict[str, list[PointRow]] = defaultdict(list)
    for row in (*found.rows, *(excluded.rows if excluded else ())):
        case_id = matcher.find("points" if row.kind == "nodule" else "excluded", row.names, row.line, 1)
        if case_id is not None:
            rows[case_id].append(row)
    parts = _match_candidates(candidates, matcher)
    if not rows and not parts:
        raise _refuse_all(files.points, found.rows, matcher.unmatched, collection)
    lungs = None if files.lungs is None else find_lungs(files.lungs, collection.cases, names)
    cases = []
    for case in collection.cases:
        kept, left_out = settle_rows(rows[case.case_id])
        mask = None if lungs is None else lungs[case.case_id]
        points = CasePoints(
            rows=kept,
            left_out=left_out,
            candidates=None if parts is None else parts.get(case.case_id, np.empty((0, 5))),
            table=files.points.name,
            has_lungs=mask is not None,
        )
        cases.append(replace(case, mask=mask, points=points))
    notes = [*collection.notes, *found.notes, *(excluded.notes if excluded else ()), *_make_notes(cases, matcher)]
    return replace(collection, cases=tuple(cases), notes=tuple(notes), unmatched_points=tuple(matcher.unmatched))


class _Matcher:
    """The cases by all their names; keeps what belongs to none."""

    def __init__(self, cases: Iterable[CaseFiles], uids: Mapping[Location, str]) -> None:
        self._cases: dict[str, set[str]] = defaultdict(set)
        self.unmatched: list[UnmatchedPoint] = []
        for case in cases:
            for name in _list_names(case, uids):
                self._cases[name].add(case.case_id)

    def find(self, table: PointTable, names: Sequence[str], line: int, rows: int) -> str | None:
        """Return the case with one of these names, or keep the row as unmatched and return None."""
        found = sorted(set().union(*(self._cases.get(name, set()) for name in names)))
        if len(found) == 1:
            return found[0]
        reason = "names no scan of this collection"
        if found:
            reason = f"its name fits {len(found)} scans, {', '.join(found[:SHOWN])}; use case_id"
        self.unmatched.append(UnmatchedPoint(table=table, line=line, rows=rows, reason=reason))
        return None


def _list_names(case: CaseFiles, uids: Mapping[Location, str]) -> set[str]:
    names = {case.case_id, *list_path_names(case.name(case.image)), uids.get(case.image, "")}
    return names - {""}


def _match_candidates(candidates: CandidateList | None, matcher: _Matcher) -> dict[str, Floats] | None:
    if candidates is None:
        return None
    parts: dict[str, Floats] = {}
    for names, table in candidates.by_names.items():
        case_id = matcher.find("candidates", names, int(table[0, 4]), len(table))
        if case_id is not None:  # two names of one scan
            joined = np.concatenate([parts[case_id], table]) if case_id in parts else table
            parts[case_id] = joined[np.argsort(joined[:, 4], kind="stable")]
    return parts


def find_lungs(
    folder: Location, cases: Iterable[CaseFiles], uids: Mapping[Location, str]
) -> dict[str, Location | None]:
    """Return the segmentation of each case's lungs in a folder, by the names of the case; None without one.

    Raises
    ------
    PairingError
        The folder has no scan, or two for one case.
    """
    by_name: dict[str, list[Location]] = defaultdict(list)
    for path in find_files(folder):
        by_name[strip_suffix(path.name)].append(path)
    if not by_name:
        raise PairingError("has no segmentation of lungs; --lungs is LUNA16's folder seg-lungs-LUNA16.", where=folder)
    chosen: dict[str, Location | None] = {}
    for case in cases:
        found = [path for name in sorted(_list_names(case, uids)) for path in by_name.get(name, ())]
        if len(found) > 1:
            raise PairingError(f"{found[0]} and {found[1]} are both the lungs of case {case.case_id}; remove one.")
        chosen[case.case_id] = found[0] if found else None
    if not any(chosen.values()):
        raise PairingError("no segmentation of lungs is named like a scan of this collection.", where=folder)
    return chosen


def _refuse_all(
    path: Location, rows: Sequence[PointRow], unmatched: Sequence[UnmatchedPoint], collection: Collection
) -> PairingError:
    first = f"the first, {rows[0].names[0]}: {unmatched[0].reason}" if rows else "it has no row"
    return PairingError(
        f"no row belongs to one scan of this collection; {first}. The first scan is {collection.cases[0].case_id}. "
        "Use the SeriesInstanceUID, the case id or the file's name without suffix.",
        where=path,
    )


def settle_rows(rows: Sequence[PointRow]) -> tuple[tuple[PointRow, ...], tuple[LeftOutPoint, ...]]:
    """Return the rows of a case that are used, and those that are not used as they stand."""
    kept: list[PointRow] = []
    left_out: list[LeftOutPoint] = []

    def note(row: PointRow, reason: str) -> None:
        table: PointTable = "points" if row.kind == "nodule" else "excluded"
        left_out.append(LeftOutPoint(table=table, line=row.line, reason=reason))

    for row in rows:
        same = next((number for number, other in enumerate(kept) if _distance_mm(row, other) <= SAME_MM), None)
        if same is None:
            kept.append(row)
        elif _has_same_content(row, kept[same]):
            note(row, f"repeats line {kept[same].line}")
        else:
            note(row, f"contradicts line {kept[same].line} about the same point: it is left out of training")
            sizes = [one.diameter_mm for one in (row, kept[same]) if one.diameter_mm is not None]
            kept[same] = replace(kept[same], kind="excluded", diameter_mm=max(sizes, default=None), malignancy=None)
    used = []
    for row in kept:
        is_usable = row.diameter_mm is not None and 0 < row.diameter_mm <= MAX_DIAMETER_MM
        if not is_usable and row.kind == "nodule":
            shown = "missing" if row.diameter_mm is None else f"{row.diameter_mm:g} mm"
            note(row, f"its diameter is {shown}: a ball of {UNKNOWN_DIAMETER_MM:g} mm is left out of training")
        used.append(row if is_usable else replace(row, kind="excluded", diameter_mm=None))
    return tuple(used), tuple(left_out)


def _distance_mm(one: PointRow, other: PointRow) -> float:
    return float(np.linalg.norm(np.subtract(one.xyz_mm, other.xyz_mm)))


def _has_same_content(one: PointRow, other: PointRow) -> bool:
    return replace(one, line=0, names=(), xyz_mm=other.xyz_mm) == replace(other, line=0, names=())


def _make_notes(cases: Sequence[CaseFiles], matcher: _Matcher) -> list[str]:
    """Return the counts of points, of scans without any, and of rows that are not used."""
    points = [case.points for case in cases if case.points is not None]
    kinds = [row.kind for one in points for row in one.rows]
    nodules, excluded = count_noun(kinds.count("nodule"), "nodule"), count_noun(kinds.count("excluded"), "finding")
    notes = [f"{nodules} and {excluded} excluded, in {count_noun(sum(bool(one.rows) for one in points), 'scan')}"]
    if any(one.candidates is not None for one in points):
        rows = sum(0 if one.candidates is None else len(one.candidates) for one in points)
        notes[0] += f"; {count_noun(rows, 'candidate')}"
    without = sum(not any(row.kind == "nodule" for row in one.rows) for one in points)
    if without:
        notes.append(f"{count_noun(without, 'scan')} without a row of a nodule: taken as scans without nodules")
    unused = sum(len(one.left_out) for one in points)
    if unused:
        notes.append(f"{count_noun(unused, 'row')} of the tables repeat or contradict others, or have no diameter")
    counts: dict[tuple[PointTable, str], int] = defaultdict(int)
    for one in matcher.unmatched:
        counts[one.table, one.reason] += one.rows
    notes += [f"--{table}: {count_noun(rows, 'row')} left out: {reason}" for (table, reason), rows in counts.items()]
    return notes
