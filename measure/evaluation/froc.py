"""Free-response curves: sensitivity against false positives a scan, and their mean at seven rates (CPM).

Points are judged by the rules of LUNA16's evaluation (luna16.grand-challenge.org/Evaluation and its program):

1. Of a scan's candidates the 100 most probable count; where there are more, only those strictly above the 101st.
2. A candidate hits a finding when it lies strictly nearer than half its diameter; a negative diameter counts as 10 mm.
3. An included finding that is hit scores once, with its most probable hit; none of its hits is a false positive, and a candidate
   may hit two findings. One that is not hit counts in the denominator.
4. Candidates that hit an excluded finding count as nothing. What is left is false.
5. Scans without candidates count.

A curve has a point for each distinct threshold and starts at (0, 0). It is read at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false
positives a scan in two ways that published figures mix: between points by a line, flat beyond the last (LUNA16's own); and
at the first point at or above the rate (several copies of the program), which is never lower.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError

if TYPE_CHECKING:
    import csv

Floats = npt.NDArray[np.float64]
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MOST_CANDIDATES = 100
UNKNOWN_DIAMETER_MM = 10.0
RESAMPLES = 1000
GRID = np.linspace(RATES[0], RATES[-1], 10_000)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A scan's candidates, judged."""

    found: tuple[float, ...] = ()
    """Score of each finding that was hit."""
    missed: int = 0
    """Findings without a hit."""
    false: tuple[float, ...] = ()
    """Score of each false positive."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of rising false positives."""

    false_per_scan: Floats
    sensitivity: Floats

    def between(self, rates: npt.ArrayLike = RATES) -> Floats:
        """Return the sensitivity at rates by a line between the points, flat beyond the last."""
        return np.interp(np.asarray(rates, dtype=np.float64), self.false_per_scan, self.sensitivity)

    def at_or_above(self, rates: npt.ArrayLike = RATES) -> Floats:
        """Return the sensitivity of the first point at or above each rate; of the last, where none is."""
        places = np.searchsorted(self.false_per_scan, np.asarray(rates, dtype=np.float64), side="left")
        return np.asarray(self.sensitivity[np.minimum(places, len(self.sensitivity) - 1)], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Scores of all scans, falling."""

    scans: int
    lesions: npt.NDArray[np.int64]
    """int64[scans]: findings of each."""
    scan: npt.NDArray[np.int64]
    """int64[n]: which scan a score belongs to."""
    true: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int64]
    """Last place of each distinct score."""

    def curve(self, weights: npt.NDArray[np.int64]) -> Curve:
        """Return the curve where each scan counts so many times, int64[scans]."""
        count = weights[self.scan]
        true, false = np.cumsum(count * self.true)[self.ends], np.cumsum(count * ~self.true)[self.ends]
        findings = max(1, int((weights * self.lesions).sum()))
        return Curve(
            false_per_scan=np.concatenate([[0.0], false / self.scans]),
            sensitivity=np.concatenate([[0.0], true / findings]),
        )


def curve_of(scans: Sequence[Marks]) -> Curve:
    """Return the curve of judged scans.

    >>> curve = curve_of([Marks(found=(0.9,), false=(0.8,)), Marks(missed=1)])
    >>> curve.false_per_scan.tolist(), curve.sensitivity.tolist()
    ([0.0, 0.0, 0.5], [0.0, 0.5, 0.5])
    """
    return _sorted(scans).curve(np.ones(len(scans), dtype=np.int64))


def _sorted(scans: Sequence[Marks]) -> _Samples:
    rows = [
        (score, number, kind)
        for number, marks in enumerate(scans)
        for kind, scores in ((True, marks.found), (False, marks.false))
        for score in scores
    ]
    rows.sort(key=lambda row: -row[0])
    scores = np.array([row[0] for row in rows], dtype=np.float64)
    return _Samples(
        scans=len(scans),
        lesions=np.array([len(marks.found) + marks.missed for marks in scans], dtype=np.int64),
        scan=np.array([row[1] for row in rows], dtype=np.int64),
        true=np.array([row[2] for row in rows], dtype=bool),
        ends=np.flatnonzero(np.diff(scores, append=-np.inf)),
    )


def froc_record(scans: Sequence[Marks]) -> dict[str, Any]:
    """Return curve, read-offs, CPM and 95 % intervals over RESAMPLES draws of scans, as a record; None without findings."""
    samples = _sorted(scans)
    if not samples.lesions.sum():
        return {"cpm": None, "findings": 0, "scans": len(scans)}
    curve = curve_of(scans)
    rng = np.random.default_rng(0)
    lines, means = np.empty((RESAMPLES, len(GRID)), dtype=np.float32), np.empty(RESAMPLES)
    for turn in range(RESAMPLES):
        drawn = samples.curve(np.bincount(rng.integers(0, len(scans), len(scans)), minlength=len(scans)))
        lines[turn], means[turn] = drawn.between(GRID), drawn.between().mean()
    low, high = np.percentile(means, (2.5, 97.5))
    middle = lines.mean(axis=0)
    edges = np.percentile(lines, (2.5, 97.5), axis=0)
    thinned = slice(None, None, 50)
    return {
        "scans": len(scans),
        "findings": int(samples.lesions.sum()),
        "rates": list(RATES),
        "sensitivity_between": curve.between().tolist(),
        "sensitivity_at_or_above": curve.at_or_above().tolist(),
        "cpm": float(curve.between().mean()),
        "cpm_at_or_above": float(curve.at_or_above().mean()),
        "cpm_interval": [float(low), float(high)],
        "cpm_of_mean_curve": float(np.interp(RATES, GRID, middle).mean()),
        "curve": {"false_per_scan": curve.false_per_scan.tolist(), "sensitivity": curve.sensitivity.tolist()},
        "band": {
            "false_per_scan": GRID[thinned].tolist(),
            "low": edges[0][thinned].tolist(),
            "high": edges[1][thinned].tolist(),
        },
        "read_off": "cpm: by a line between points; cpm_at_or_above: at the first point at or above each rate",
    }


def judge(candidates: Floats, included: Floats, excluded: Floats) -> Marks:
    """Judge a scan's candidates by LUNA16's rules.

    Parameters
    ----------
    candidates
        float64[n, 4]: x, y, z in mm, probability.
    included, excluded
        float64[m, 4]: x, y, z in mm, diameter in mm.
    """
    kept = most_probable(candidates)
    hits = [_hits(kept, finding) for finding in included]
    spared = np.zeros(len(kept), dtype=bool)
    for hit in [*hits, *(_hits(kept, finding) for finding in excluded)]:
        spared |= hit
    return Marks(
        found=tuple(float(kept[hit, 3].max()) for hit in hits if hit.any()),
        missed=sum(not hit.any() for hit in hits),
        false=tuple(kept[~spared, 3].tolist()),
    )


def most_probable(candidates: Floats) -> Floats:
    """Return a scan's 100 most probable candidates; fewer where the 100th is as probable as the 101st."""
    if len(candidates) <= MOST_CANDIDATES:
        return candidates
    limit = np.sort(candidates[:, 3])[-MOST_CANDIDATES - 1]
    kept: Floats = candidates[candidates[:, 3] > limit]
    return kept


def _hits(candidates: Floats, finding: Floats) -> npt.NDArray[np.bool_]:
    diameter = finding[3] if finding[3] >= 0 else UNKNOWN_DIAMETER_MM
    return np.asarray(((candidates[:, :3] - finding[:3]) ** 2).sum(axis=1) < (diameter / 2) ** 2, dtype=bool)


def luna16(results: Path, annotations: Path, scans: Path, excluded: Path | None = None) -> dict[str, Any]:
    """Score point detections from LUNA16's files; results of scans that are not listed are left out and counted.

    Raises
    ------
    InputError
        A file cannot be read, lacks a column, names a scan twice, or holds something that is no number.
    """
    listed = read_names(scans)
    candidates = read_points(results, "probability")
    included = read_points(annotations, "diameter_mm")
    left_aside = read_points(excluded, "diameter_mm") if excluded else {}
    none = np.empty((0, 4))
    marks = [judge(candidates.get(name, none), included.get(name, none), left_aside.get(name, none)) for name in listed]
    unlisted = sum(len(points) for name, points in candidates.items() if name not in set(listed))
    return {"rules": "LUNA16", "candidates_of_unlisted_scans": unlisted, **froc_record(marks)}


def read_names(path: Path) -> list[str]:
    """Return the names of scans, one a line."""
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: must hold a scan's name in each line; it is empty.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(
            f"{path}: must name each scan once; {twice[0]} stands there more than once. Remove the others."
        )
    return names


def _text(path: Path) -> str:
    """Return a file's text, UTF-8 with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: must be UTF-8; found a byte {error.object[error.start]:#04x}. Save it as UTF-8."
        ) from None


def read_points(path: Path, last: str) -> dict[str, Floats]:
    """Read a table of points: scan -> float64[n, 4], x, y, z in mm and the column `last`."""
    import csv

    try:
        return _points(path, last, csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}).") from error


def _points(path: Path, last: str, table: "csv.DictReader[str]") -> dict[str, Floats]:
    columns = ("coordX", "coordY", "coordZ", last)
    points: dict[str, list[list[float]]] = defaultdict(list)
    lacking = [name for name in ("seriesuid", *columns) if name not in (table.fieldnames or ())]
    if lacking:
        raise InputError(
            f"{path}: must have the columns seriesuid, {', '.join(columns)}; it lacks {', '.join(lacking)}."
        )
    for number, row in enumerate(table, start=2):
        try:
            values = [float(row[name]) for name in columns]
        except (TypeError, ValueError):
            raise InputError(
                f"{path}: line {number} must hold numbers in {', '.join(columns)}; found {list(row.values())}."
            ) from None
        if not np.isfinite(values).all():
            raise InputError(f"{path}: line {number} must hold finite numbers; found {values}.")
        points[row["seriesuid"]].append(values)
    return {name: np.array(values) for name, values in points.items()}
