"""The findings that point detections are scored against: from tables in LUNA16's form, or from a slice store."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, UsageError
from slicemill.common.files import Location, parse_location, read_file
from slicemill.common.tables import read_table
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.names import list_path_names
from slicemill.ct.points import Point, has_ratings
from slicemill.store.reader import is_store, open_store

Floats = npt.NDArray[np.float64]
SCAN = "seriesuid"
SHOWN = 3
MOST_GROUPS = 20
"""Limit of the values of a column that groups findings: each has a curve and a bootstrap of its own."""


@dataclass(frozen=True, kw_only=True)
class Aliases:
    """What scans are called beside their names: by their files, with or without folders."""

    scans: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other name -> the scans whose file has it. No name of a scan is among them."""

    def resolve_all(self, names: Iterable[str], where: Location) -> dict[str, str]:
        """Return the scan of each name, in order; a name of no known scan is returned as it is.

        Parameters
        ----------
        where
            The file with the names, for messages.

        Raises
        ------
        InputError
            A name is that of several scans, or two names are those of one.
        """
        scans: dict[str, str] = {}
        owner: dict[str, str] = {}
        for name in names:
            found = self.scans.get(name, (name,))
            if len(found) > 1:
                shown = ", ".join(found[:SHOWN]) + (" ..." if len(found) > SHOWN else "")
                raise InputError(
                    f"the name {name} is that of {len(found)} scans of the store, {shown}; use the case id, or the "
                    "file's path with more folders.",
                    where=where,
                )
            first = owner.setdefault(found[0], name)
            if first != name:
                raise InputError(
                    f"{first} and {name} are both the scan {found[0]}; call each scan by one name.", where=where
                )
            scans[name] = found[0]
        return scans


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The findings of the scans that are scored."""

    scans: tuple[str, ...]
    """Names of all scans, those without findings included."""
    included: Mapping[str, Floats]
    """Scan -> float64[m, 4]: x, y, z in mm, diameter in mm."""
    excluded: Mapping[str, Floats]
    """The same of findings that are neither hits nor false positives."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Scan -> the group of each included finding; empty without groups."""
    malignancy: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Scan of a store -> the malignancy of each included finding, as in its source; None for one without."""
    ratings: bool = False
    """Whether these are ratings from 1 to 5 (`slicemill.ct.points.has_ratings`)."""
    patients: Mapping[str, str] | None = None
    """Scan -> patient; None if they are not known."""
    aliases: Aliases = field(default_factory=Aliases)
    """Other names of the scans."""
    unlisted: Mapping[str, int] = field(default_factory=dict)
    """Scan that is not scored -> its number of findings, at least 1."""
    left_out: int = 0
    """Rows of the table of nodules that the scored cases of a store have not as findings, or not as they stand."""

    def count(self) -> int:
        """Return the number of included findings in the scans."""
        return sum(len(self.included.get(name, ())) for name in self.scans)

    def describe_uncounted(self) -> list[str]:
        """Return lines about findings that are not scored; none if all are.

        >>> Findings(scans=("s3",), included={}, excluded={}, unlisted={"S3": 2}).describe_uncounted()
        ['not counted: 2 findings in 1 unlisted scan, the first S3']
        """
        lines = []
        if self.unlisted:
            findings = count_noun(sum(self.unlisted.values()), "finding")
            scans = count_noun(len(self.unlisted), "unlisted scan")
            lines.append(f"not counted: {findings} in {scans}, the first {min(self.unlisted)}")
        if self.left_out:
            rows = count_noun(self.left_out, "row")
            lines.append(
                f"{rows} of the table of nodules left out of the store or changed: see its points_left_out.csv"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class FindingFiles:
    """The files that were passed."""

    annotations: Path
    """CSV of findings, or a slice store that was ingested with points."""
    scans: Path | None = None
    """Text file with the names of all scans; required with a CSV. Of a store: its cases that are scored."""
    excluded: Path | None = None
    """CSV of excluded findings; a store has its own."""
    patients: Path | None = None
    """CSV with the columns seriesuid and patient_id; a store has its own."""
    group: str | None = None
    """Column that groups the findings; of a store: a further column that it keeps."""

    @property
    def is_store(self) -> bool:
        """Return whether the findings are those of a slice store."""
        return is_store(parse_location(self.annotations))


def read_findings(files: FindingFiles) -> Findings:
    """Read the findings.

    Raises
    ------
    UsageError
        An option is missing, or does not go with a store; or the column that groups has more than MOST_GROUPS values.
    InputError
        A file cannot be read, lacks a column, lists a scan twice, or has a value that is not a number.
    """
    findings = _read_files(files)
    values = len({name for names in findings.groups.values() for name in names})
    if values > MOST_GROUPS:
        raise UsageError(
            f"--by {files.group}: the column has {values} values, and each would have a curve; at most {MOST_GROUPS} "
            "are allowed. Choose a column of kinds or ratings, or round its numbers into classes."
        )
    return findings


def _read_files(files: FindingFiles) -> Findings:
    root = parse_location(files.annotations)
    if files.is_store:
        if files.excluded is not None or files.patients is not None:
            raise UsageError("a store has excluded findings and patients of its own; leave out --excluded, --patients.")
        return read_store_findings(root, files.scans, files.group)
    if files.scans is None:
        raise UsageError("--scans: name the file that lists all scans, also those without findings.")
    scans = tuple(read_names(files.scans))
    included, listed = read_points(files.annotations, "diameter_mm"), set(scans)
    return Findings(
        scans=scans,
        included=included,
        unlisted={name: len(points) for name, points in included.items() if name not in listed},
        excluded=read_points(files.excluded, "diameter_mm") if files.excluded else {},
        groups=read_groups(files.annotations, files.group) if files.group else {},
        patients=read_patients(files.patients, scans) if files.patients else None,
    )


def read_store_findings(root: Location, chosen: Path | None, group: str | None) -> Findings:
    """Return the findings of a store's cases.

    Parameters
    ----------
    chosen
        Text file with case ids, or names of files without suffix, with or without folders; None for all cases.
    group
        Further column of the points that groups them.

    Raises
    ------
    InputError
        A case has no points, is not in the store or is listed twice, a name is that of several cases, or no finding has
        the column `group`.
    """
    store = open_store(root)
    aliases = name_cases({case.case_id: case.info.image.name for case in store.values()})
    ids = store.case_ids if chosen is None else [*aliases.resolve_all(read_names(chosen), chosen).values()]
    store.check_known(ids)
    cases = [store[case_id] for case_id in ids]
    bare = [case.case_id for case in cases if case.points is None]
    if bare:
        raise InputError(f"case {bare[0]} has no points; ingest it with --points, or pass --scans.", where=root)
    ratings = has_ratings(one.malignancy for case in store.values() for one in case.points or ())
    everywhere = {case.case_id: [one for one in case.points or () if one.kind == "nodule"] for case in store.values()}
    nodules = {case_id: everywhere.pop(case_id) for case_id in ids}
    known = {name for points in nodules.values() for point in points for name in (*point.further, *point.words)}
    if group is not None and group not in known:
        raise InputError(f"no finding has the column {group}; leave out --by.", where=root)
    return Findings(
        scans=tuple(ids),
        included={case_id: _stack(points) for case_id, points in nodules.items()},
        excluded={case.case_id: _stack([one for one in case.points or () if one.kind == "excluded"]) for case in cases},
        groups={case_id: tuple(_name_group(group, one) for one in points) for case_id, points in nodules.items()}
        if group
        else {},
        malignancy={case_id: tuple(one.malignancy for one in points) for case_id, points in nodules.items()},
        ratings=ratings,
        patients={case.case_id: case.info.patient_id for case in cases},
        aliases=aliases,
        unlisted={case_id: len(points) for case_id, points in everywhere.items() if points},
        left_out=sum(one.table == "points" for case in cases for one in case.info.points_left_out),
    )


def name_cases(images: Mapping[str, str]) -> Aliases:
    """Return what cases are called beside their ids, from the paths of their images.

    A case id names its case alone, also where another one's file has this name.

    >>> name_cases({"p1_ct": "p1/ct.nii.gz", "b": "b.nii.gz"}).scans
    {'ct': ('p1_ct',), 'p1/ct': ('p1_ct',)}
    """
    scans: dict[str, list[str]] = defaultdict(list)
    for case_id, path in images.items():
        for name in list_path_names(path):
            if name not in images:
                scans[name].append(case_id)
    return Aliases(scans={name: tuple(ids) for name, ids in scans.items()})


def _stack(points: Sequence[Point]) -> Floats:
    """Return float64[n, 4]: x, y, z in mm, diameter in mm, -1 if it is not known."""
    rows = [(*point.xyz_mm, -1.0 if point.diameter_mm is None else point.diameter_mm) for point in points]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _name_group(column: str, point: Point) -> str:
    value = point.further.get(column)
    return f"{column} {point.words.get(column, 'not given') if value is None else f'{value:g}'}"


def read_groups(path: Path, column: str) -> dict[str, tuple[str, ...]]:
    """Return the group of each finding of a table, by scan, in order of the table."""
    groups: dict[str, list[str]] = defaultdict(list)
    for row in read_table(path, required=(SCAN, column.lower()), keeps_further=True):
        groups[row.cells[SCAN]].append(f"{column} {row.cells[column.lower()] or 'not given'}")
    return {name: tuple(values) for name, values in groups.items()}


def read_patients(path: Path, scans: Sequence[str]) -> dict[str, str]:
    """Return the patient of each scan, from a table with the columns seriesuid and patient_id.

    Raises
    ------
    InputError
        A scan has no patient, or two.
    """
    patients: dict[str, str] = {}
    for row in read_table(path, required=(SCAN, "patient_id"), keeps_further=True):
        name, patient = row.cells[SCAN], row.cells["patient_id"]
        if patients.setdefault(name, patient) != patient:
            raise InputError(f"{path}: line {row.line} gives {name} another patient than an earlier line.")
    if missing := [name for name in scans if not patients.get(name)]:
        raise InputError(f"{path}: has no patient of {missing[0]}; every scan needs one.")
    return patients


def read_names(path: Path) -> list[str]:
    """Read the names of scans, one per line."""
    names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: must list the scans, one per line; it is empty.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{path}: must list each scan once; {twice[0]} occurs more than once. Remove the duplicates.")
    return names


def _read_text(path: Path) -> str:
    """Read a text file, UTF-8 with or without a byte order mark."""
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: must be UTF-8; it contains the byte {error.object[error.start]:#04x}. Save it as UTF-8."
        ) from None


def read_points(path: Path, last: str) -> dict[str, Floats]:
    """Read a CSV table of points: scan -> float64[n, 4], x, y, z in mm and the column `last`.

    Other columns are allowed. Numbers may have decimal commas if another character separates the cells.
    """
    columns = ("coordX", "coordY", "coordZ", last)
    points: dict[str, list[list[float]]] = defaultdict(list)
    for row in read_table(path, required=(SCAN, *(name.lower() for name in columns)), keeps_further=True):
        texts = [row.cells[name.lower()] for name in columns]
        try:
            values = [row.number(name.lower()) for name in columns]
        except ValueError:
            raise InputError(
                f"{path}: line {row.line} must have numbers in {', '.join(columns)}; it has {texts}."
            ) from None
        if not np.isfinite(values).all():
            raise InputError(f"{path}: line {row.line} must have finite numbers; it has {values}.")
        points[row.cells[SCAN]].append(values)
    return {name: np.array(values) for name, values in points.items()}
