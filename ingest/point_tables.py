"""Tables of points that a user passes: nodules, excluded findings and candidates, in LUNA16's form.

A row names its scan in the column ``seriesuid`` or ``case_id``, and has ``coordX``, ``coordY``, ``coordZ`` in LPS mm.
Spreadsheets' separators, decimal commas, line ends and byte order marks are read (`slicemill.common.tables`).

Further columns are kept by name if they have words of NODULE_WORDS, or numbers and a name of NODULE_NUMBERS. Other text
could name a person and is not kept; neither are other numbers, which could be those of a person, a study or a date.
"""

import hashlib
import math
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import to_document
from slicemill.common.errors import InputError
from slicemill.common.files import Location, sha256_of_json
from slicemill.common.progress import progress
from slicemill.common.table_stream import iterate_table
from slicemill.common.tables import Row, read_table
from slicemill.ct.points import CANDIDATE_COLUMNS, NODULE_NUMBERS, NODULE_WORDS, PointKind
from slicemill.store.case import LeftOutPoint, PointTable

NAMES = ("seriesuid", "case_id")
"""Columns that name the scan; a row may have both."""
POSITION = ("coordx", "coordy", "coordz")
DIAMETER = "diameter_mm"
MALIGNANCY = ("malignancy", "mal_bool")
"""Columns with a malignancy, the first that a table has."""
IDENTIFYING = re.compile(r"patient|person|name|birth|date|time|accession|mrn|uid|(^|_)id(_|$)")
"""Columns that may identify a person, even if they have words about nodules."""
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
Floats = npt.NDArray[np.float64]
SEGMENTATION_MEAN = CANDIDATE_COLUMNS[5]
UNKNOWN = -1.0
"""Class of a candidate whose table has none."""


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """A row of a table of nodules or excluded findings."""

    line: int
    names: tuple[str, ...]
    """What it says about its scan: SeriesInstanceUID, case id or name of its file."""
    kind: PointKind
    xyz_mm: tuple[float, float, float]
    diameter_mm: float | None
    """As in the table: may be 0 or negative; None without a number."""
    malignancy: float | None = None
    readers: int | None = None
    further: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PointList:
    """The rows of a table of points."""

    rows: tuple[PointRow, ...]
    notes: tuple[str, ...] = ()
    """Columns that are not kept, and why."""


@dataclass(frozen=True, kw_only=True)
class CandidateList:
    """The rows of a table of candidates, by what names their scan."""

    by_names: Mapping[tuple[str, ...], Floats]
    """What names a scan -> float64[n, 6], the columns `CANDIDATE_COLUMNS`, in order of the table."""


@dataclass(frozen=True, kw_only=True)
class UnmatchedPoint:
    """A row of a table that belongs to no scan of the collection."""

    table: PointTable
    line: int
    """Its line; of candidates, the first line with this name."""
    rows: int
    """1; of candidates, the number of lines with this name."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class CasePoints:
    """What the tables say about one case."""

    rows: tuple[PointRow, ...]
    """Its nodules and excluded findings; a nodule of unknown diameter is an excluded finding."""
    left_out: tuple[LeftOutPoint, ...]
    """Rows that contradict another one, or are not used as they stand."""
    candidates: Floats | None = field(compare=False)
    """float64[n, 6], the columns `CANDIDATE_COLUMNS`; None without a table of candidates."""
    table: str
    """Name of the table of nodules."""
    has_lungs: bool
    """Whether the case's mask is a segmentation of its lungs."""

    @cached_property
    def sha256(self) -> str:
        """Return one hash of what the tables say about the case, with lines of candidates but not of points."""
        rows = [to_document(replace(row, line=0, names=())) for row in self.rows]
        left_out = [to_document(one) for one in self.left_out]
        candidates = None if self.candidates is None else hashlib.sha256(self.candidates.tobytes()).hexdigest()
        return sha256_of_json([rows, left_out, candidates, self.has_lungs])


def read_points(path: Location, kind: PointKind) -> PointList:
    """Read a table of nodules or of excluded findings.

    Raises
    ------
    InputError
        The file cannot be read, a column is missing, a cell has no number, or a row names no scan.
    """
    required = (*POSITION, DIAMETER) if kind == "nodule" else POSITION
    optional = (*NAMES, DIAMETER, *MALIGNANCY, "readers")
    rows = read_table(path, required=required, optional=optional, keeps_further=True)
    columns = _choose_columns(path, rows, {*POSITION, *optional})
    return PointList(rows=tuple(_parse_point(path, row, kind, columns) for row in rows), notes=columns.notes)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Further columns of a table."""

    numbers: tuple[str, ...]
    words: tuple[str, ...]
    notes: tuple[str, ...]
    """About columns that are not kept."""


def _choose_columns(path: Location, rows: list[Row], known: set[str]) -> _Columns:
    """Return the further columns that are kept, and notes about the others."""
    further = [name for name in (rows[0].cells if rows else ()) if name not in known]
    numbers, words, notes = [], [], []
    for name in further:
        reason = ""
        if IDENTIFYING.search(name):
            reason = "it may identify a person"
        elif all(_is_number(row, name) for row in rows):
            if re.sub(r"[\s_-]+", "", name) in NODULE_NUMBERS:
                numbers.append(name)
            else:
                reason = "numbers of columns other than texture, margin and the like may identify a person"
        elif all(_read_word(row, name) in ("", *NODULE_WORDS) for row in rows):
            words.append(name)
        else:
            reason = "it has text"
        if reason:
            notes.append(f"{path.name}: the column {name} is not kept: {reason}")
    return _Columns(numbers=tuple(numbers), words=tuple(words), notes=tuple(notes))


def _read_word(row: Row, column: str) -> str:
    """Return a cell as NODULE_WORDS has it.

    >>> _read_word(Row(2, {"kind": "Ground glass"}), "kind")
    'ground-glass'
    """
    return re.sub(r"[\s_-]+", "-", row.cells[column].lower())


def _is_number(row: Row, column: str) -> bool:
    try:
        _number(row, column)
    except ValueError:
        return False
    return True


def _number(row: Row, column: str) -> float | None:
    """Return the number in a cell; None if it is empty.

    Raises
    ------
    ValueError
        It has other text, or a number that is not finite.
    """
    text = row.cells.get(column, "").lower()
    if text in ("", "nan", "na", "n/a", "none"):
        return None
    value = WORDS[text] if text in WORDS else row.number(column)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _parse_point(path: Location, row: Row, kind: PointKind, columns: _Columns) -> PointRow:
    column = ""
    try:
        position = []
        for column in POSITION:
            value = _number(row, column)
            if value is None:
                raise ValueError
            position.append(value)
        column = DIAMETER
        diameter = _number(row, column)
        column = next((name for name in MALIGNANCY if name in row.cells), MALIGNANCY[0])
        malignancy = _number(row, column)
        column = "readers"
        readers = _number(row, column)
        if readers is not None and (readers < 0 or readers != int(readers)):
            raise ValueError
    except ValueError:
        raise InputError(
            f"{path}, line {row.line}: must have a number in {column}; it has {row.cells.get(column, '')!r}."
        ) from None
    numbers = {name: _number(row, name) for name in columns.numbers}
    return PointRow(
        line=row.line,
        names=_find_names(path, row),
        kind=kind,
        xyz_mm=(position[0], position[1], position[2]),
        diameter_mm=diameter,
        malignancy=malignancy,
        readers=None if readers is None else int(readers),
        further={name: value for name, value in numbers.items() if value is not None},
        words={name: word for name in columns.words if (word := _read_word(row, name))},
    )


def _find_names(path: Location, row: Row) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text for name in NAMES if (text := row.cells.get(name, ""))))
    if not names:
        raise InputError(f"{path}, line {row.line}: must name its scan in the column seriesuid or case_id.")
    return names


def read_candidates(path: Location) -> CandidateList:
    """Read a table of candidates with the column class, 1 (nodule) or 0, row by row.

    Where a column probability takes its place, as in what `slicemill infer --classifier` writes, each class is UNKNOWN:
    the nodules decide it (`slicemill.ingest.point_masks`).

    Raises
    ------
    InputError
        As `read_points`; or a class is neither 0 nor 1, or there is neither class nor probability, or a
        segmentation_mean is not from 0 to 1.
    """
    numbers: dict[tuple[str, ...], int] = {}
    scan, values = array("q"), array("d")
    with progress("read candidates", path.stat().st_size / 1e6, "MB") as advance:
        rows = iterate_table(
            path, required=POSITION, optional=(*NAMES, "class", "probability", SEGMENTATION_MEAN), keeps_further=True,
            advance=lambda characters: advance(characters / 1e6, ""),
        )  # fmt: skip
        for row in rows:
            scan.append(numbers.setdefault(_find_names(path, row), len(numbers)))
            values.extend(_parse_candidate(path, row))
    table = np.array(values, dtype=np.float64).reshape(-1, len(CANDIDATE_COLUMNS))
    owner = np.array(scan, dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    table, bounds = table[order], np.searchsorted(owner[order], np.arange(len(numbers) + 1))
    return CandidateList(
        by_names={names: table[bounds[number] : bounds[number + 1]] for names, number in numbers.items()}
    )


def _parse_candidate(path: Location, row: Row) -> tuple[float, float, float, float, float, float]:
    if "class" not in row.cells and "probability" not in row.cells:
        raise InputError(f"{path}: must have the column class, 1 or 0, or the column probability of found candidates.")
    columns = (*POSITION, "class") if "class" in row.cells else POSITION
    try:
        x, y, z, *kinds = (row.number(name) for name in columns)
    except ValueError:
        texts = [row.cells[name] for name in columns]
        raise InputError(f"{path}, line {row.line}: must have numbers in coordX to class; it has {texts}.") from None
    kind = kinds[0] if kinds else UNKNOWN
    if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)) or kind not in (
        (0, 1) if kinds else (UNKNOWN,)
    ):
        raise InputError(
            f"{path}, line {row.line}: must have finite positions and the class 0 or 1; it has {x:g}, {y:g}, {z:g} "
            f"and the class {kind:g}."
        )
    return x, y, z, kind, float(row.line), _read_mean(path, row)


def _read_mean(path: Location, row: Row) -> float:
    """Return the mean probability of the segmentation; NaN if the row has none."""
    text = row.cells.get(SEGMENTATION_MEAN, "")
    try:
        mean = row.number(SEGMENTATION_MEAN) if text else math.nan
    except ValueError:
        mean = -1.0
    if not (math.isnan(mean) or 0 <= mean <= 1) or text.strip().lower() == "nan":
        raise InputError(f"{path}, line {row.line}: {SEGMENTATION_MEAN} must be a number from 0 to 1; it is {text!r}.")
    return mean
