"""Scores point detections by the rules of LUNA16 (luna16.grand-challenge.org/Evaluation and its program).

1. The 100 most probable candidates of a scan count. If there are more, only those strictly above the 101st count.
2. A candidate hits a finding if its distance is strictly below half the diameter; negative diameters count as 10 mm.
3. A detected finding counts once, with the score of its most probable hit. None of its hits is a false positive, and a
   candidate may hit two findings. Missed findings count in the denominator.
4. Candidates that hit an excluded finding are ignored. All other candidates are false positives.
5. Scans without candidates count.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import to_document
from slicemill.common.errors import InputError
from slicemill.common.files import read_file
from slicemill.common.tables import read_table
from slicemill.measure.evaluation.froc import FreeResponse, NoFindings, ScanHits, analyze_free_response

Floats = npt.NDArray[np.float64]
MOST_CANDIDATES = 100
UNKNOWN_DIAMETER_MM = 10.0


@dataclass(frozen=True, kw_only=True)
class Luna16Result:
    """The free-response curve of point detections."""

    unlisted_candidates: int
    """Ignored candidates in scans that are not listed."""
    response: FreeResponse | NoFindings

    def as_json(self) -> dict[str, Any]:
        """Return the result as it is written to froc.json."""
        return {
            "rules": "LUNA16",
            "candidates_of_unlisted_scans": self.unlisted_candidates,
            **to_document(self.response),
        }


def score_points(results: Path, annotations: Path, scans: Path, excluded: Path | None = None) -> Luna16Result:
    """Score point detections from files in LUNA16's format. Candidates of unlisted scans are ignored and counted.

    Raises
    ------
    InputError
        A file cannot be read, lacks a column, lists a scan twice, or has a value that is not a number.
    """
    listed = read_names(scans)
    candidates = read_points(results, "probability")
    included = read_points(annotations, "diameter_mm")
    ignored = read_points(excluded, "diameter_mm") if excluded else {}
    none = np.empty((0, 4))
    hits = [find_hits(candidates.get(name, none), included.get(name, none), ignored.get(name, none)) for name in listed]
    unlisted = sum(len(points) for name, points in candidates.items() if name not in set(listed))
    return Luna16Result(unlisted_candidates=unlisted, response=analyze_free_response(hits))


def find_hits(candidates: Floats, included: Floats, excluded: Floats) -> ScanHits:
    """Divide a scan's candidates into hits and false positives.

    Parameters
    ----------
    candidates
        float64[n, 4]: x, y, z in mm, probability.
    included, excluded
        float64[m, 4]: x, y, z in mm, diameter in mm.
    """
    kept = keep_most_probable(candidates)
    hits = [_are_near(kept, finding) for finding in included]
    not_false = np.zeros(len(kept), dtype=bool)
    for hit in [*hits, *(_are_near(kept, finding) for finding in excluded)]:
        not_false |= hit
    return ScanHits(
        found=tuple(float(kept[hit, 3].max()) for hit in hits if hit.any()),
        missed=sum(not hit.any() for hit in hits),
        false=tuple(kept[~not_false, 3].tolist()),
    )


def keep_most_probable(candidates: Floats) -> Floats:
    """Return a scan's 100 most probable candidates; fewer if the 100th and the 101st are equally probable."""
    if len(candidates) <= MOST_CANDIDATES:
        return candidates
    limit = np.sort(candidates[:, 3])[-MOST_CANDIDATES - 1]
    kept: Floats = candidates[candidates[:, 3] > limit]
    return kept


def _are_near(candidates: Floats, finding: Floats) -> npt.NDArray[np.bool_]:
    diameter = finding[3] if finding[3] >= 0 else UNKNOWN_DIAMETER_MM
    return np.asarray(((candidates[:, :3] - finding[:3]) ** 2).sum(axis=1) < (diameter / 2) ** 2, dtype=bool)


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
    for row in read_table(path, required=("seriesuid", *(name.lower() for name in columns)), keeps_further=True):
        texts = [row.cells[name.lower()] for name in columns]
        try:
            values = [row.number(name.lower()) for name in columns]
        except ValueError:
            raise InputError(
                f"{path}: line {row.line} must have numbers in {', '.join(columns)}; it has {texts}."
            ) from None
        if not np.isfinite(values).all():
            raise InputError(f"{path}: line {row.line} must have finite numbers; it has {values}.")
        points[row.cells["seriesuid"]].append(values)
    return {name: np.array(values) for name, values in points.items()}
