"""Scores point detections by the rules of LUNA16 (luna16.grand-challenge.org/Evaluation and its program).

1. The 100 most probable candidates of a scan count. If there are more, only those strictly above the 101st count.
2. A candidate hits a finding if its distance is strictly below half the diameter; negative diameters count as 10 mm.
3. A detected finding counts once, with the score of its most probable hit. None of its hits is a false positive, and a
   candidate may hit two findings. Missed findings count in the denominator.
4. Candidates that hit an excluded finding are ignored. All other candidates are false positives.
5. Scans without candidates count.

The curve is computed for all findings, for each diameter band, and for each group of findings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import to_document
from slicemill.ct.points import UNKNOWN_DIAMETER_MM
from slicemill.measure.evaluation.findings import Findings, read_points
from slicemill.measure.evaluation.froc import FreeResponse, NoFindings, ScanHits, analyze_free_response
from slicemill.measure.evaluation.malignancy import MalignancyScores

Floats = npt.NDArray[np.float64]
MOST_CANDIDATES = 100
PROBABILITY = "probability"
"""Column of LUNA16's tables. It ranks detections, unless the segmentation's own probability is to do so."""
BANDS = (("below 6 mm", 0.0, 6.0), ("6 to 10 mm", 6.0, 10.0), ("10 mm and above", 10.0, np.inf))
"""Bands of diameters: name, first diameter, and the first of the next band, mm."""


@dataclass(frozen=True, kw_only=True)
class Luna16Result:
    """The free-response curves of point detections."""

    unlisted_candidates: int
    """Ignored candidates in scans that are not listed."""
    unlisted_findings: int
    """Findings in scans that are not listed: not among those of the curve."""
    left_out_rows: int
    """Rows of the table of nodules that a store has not as findings, or not as they stand."""
    resampled: Literal["scans", "patients"]
    """What the intervals are over."""
    ranked_by: str
    """Column of the detections that ranks them."""
    response: FreeResponse | NoFindings
    malignancy: MalignancyScores | None = None
    """Malignancy by patient; None without it in candidates or findings."""
    parts: Mapping[str, FreeResponse | NoFindings]
    """Diameter band or group -> its curve. Findings of other parts are neither hits nor false positives in it."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as it is written to froc.json."""
        return {
            "rules": "LUNA16",
            "candidates_of_unlisted_scans": self.unlisted_candidates,
            "findings_of_unlisted_scans": self.unlisted_findings,
            "rows_left_out_of_store": self.left_out_rows,
            "intervals_over": self.resampled,
            "ranked_by": self.ranked_by,
            **to_document(self.response),
            "malignancy": None if self.malignancy is None else self.malignancy.as_json(),
            "parts": {name: to_document(one) for name, one in self.parts.items()},
        }


def score_points(results: Path, findings: Findings, ranked_by: str = PROBABILITY) -> Luna16Result:
    """Score point detections from a file in LUNA16's format. Candidates of unlisted scans are ignored and counted.

    `ranked_by`: the column that ranks them, the highest first.

    Raises
    ------
    InputError
        The file cannot be read, lacks a column, has a value that is not a number, a name of several scans, or two names
        of one.
    """
    candidates = read_candidates(results, findings, ranked_by)
    patients = None
    if findings.patients is not None:
        patients = [findings.patients[name] for name in findings.scans]
    listed = set(findings.scans)
    parts = {
        name: analyze_free_response(find_all_hits(candidates, findings, chosen), patients)
        for name, chosen in _choose_parts(findings).items()
    }
    return Luna16Result(
        unlisted_candidates=sum(len(points) for name, points in candidates.items() if name not in listed),
        unlisted_findings=sum(findings.unlisted.values()),
        left_out_rows=findings.left_out,
        resampled="scans" if patients is None else "patients",
        ranked_by=ranked_by,
        response=analyze_free_response(find_all_hits(candidates, findings, None), patients),
        parts=parts,
    )


def read_candidates(results: Path, findings: Findings, ranked_by: str = PROBABILITY) -> dict[str, Floats]:
    """Read point detections: scan -> float64[n, 4], x, y, z in mm, probability; see `score_points` for errors."""
    points = read_points(results, ranked_by)
    scans = findings.aliases.resolve_all(points, results)
    return {scans[name]: rows for name, rows in points.items()}


Chosen = Mapping[str, npt.NDArray[np.bool_]]
"""Scan -> bool[m]: which of its included findings belong to a part."""


def _choose_parts(findings: Findings) -> dict[str, Chosen]:
    """Return the diameter bands, and then the groups."""
    parts: dict[str, Chosen] = {}
    for name, low, high in BANDS:
        parts[name] = {
            scan: (sizes >= low) & (sizes < high)
            for scan, points in findings.included.items()
            for sizes in [_diameters(points)]
        }
    for group in sorted({name for names in findings.groups.values() for name in names}):
        parts[group] = {
            scan: np.array([name == group for name in names], dtype=bool) for scan, names in findings.groups.items()
        }
    return parts


def find_all_hits(candidates: Mapping[str, Floats], findings: Findings, chosen: Chosen | None) -> list[ScanHits]:
    """Divide the candidates of all scans, those of `read_candidates`, into hits and false positives.

    `chosen` has the findings that count; candidates in the others are ignored. None: all count.
    """
    none = np.empty((0, 4))
    hits = []
    for name in findings.scans:
        included, excluded = findings.included.get(name, none), findings.excluded.get(name, none)
        if chosen is not None and name in chosen:
            excluded = np.concatenate([excluded, included[~chosen[name]]])
            included = included[chosen[name]]
        hits.append(find_hits(candidates.get(name, none), included, excluded))
    return hits


def _diameters(points: Floats) -> Floats:
    return np.where(points[:, 3] >= 0, points[:, 3], UNKNOWN_DIAMETER_MM)


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
    hits = [are_near(kept, finding) for finding in included]
    not_false = np.zeros(len(kept), dtype=bool)
    for hit in [*hits, *(are_near(kept, finding) for finding in excluded)]:
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


def are_near(candidates: Floats, finding: Floats) -> npt.NDArray[np.bool_]:
    """Return bool[n]: which candidates hit a finding."""
    diameter = finding[3] if finding[3] >= 0 else UNKNOWN_DIAMETER_MM
    return np.asarray(((candidates[:, :3] - finding[:3]) ** 2).sum(axis=1) < (diameter / 2) ** 2, dtype=bool)
