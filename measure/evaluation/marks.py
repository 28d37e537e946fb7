"""What each mark of a detector is at one threshold: a nodule found, a nodule missed, or a false mark.

The threshold is the lowest with at most RATE false positives a scan by LUNA16's rules, over all scans that are scored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.ct.pictures import pick_evenly
from slicemill.ct.points import UNKNOWN_DIAMETER_MM
from slicemill.measure.evaluation.findings import Findings
from slicemill.measure.evaluation.luna16 import are_near, keep_most_probable

Floats = npt.NDArray[np.float64]
MarkKind = Literal["found", "missed", "false"]
KINDS: tuple[MarkKind, ...] = ("found", "missed", "false")
RATE = 1
"""False positives a scan."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A nodule, or a false mark."""

    kind: MarkKind
    scan: str
    xyz_mm: tuple[float, float, float]
    """Center of the nodule, else of the candidate, LPS mm."""
    diameter_mm: float | None
    """Diameter of the nodule; None if it is not known, and for a false mark."""
    probability: float | None
    """Highest probability of its candidates; None for a nodule without any."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """All marks of the scans."""

    threshold: float
    """Next float above the probability from which on there would be too many false marks; -inf if all count."""
    false_per_scan: float
    by_kind: Mapping[MarkKind, tuple[Mark, ...]]


def divide_marks(candidates: Mapping[str, Floats], findings: Findings) -> Marks:
    """Return the marks of all scans at the threshold for RATE.

    Parameters
    ----------
    candidates
        Scan -> float64[n, 4]: x, y, z in mm, probability.
    """
    none = np.empty((0, 4))
    marks = [
        mark
        for name in findings.scans
        for mark in _mark_scan(
            name,
            keep_most_probable(candidates.get(name, none)),
            findings.included.get(name, none),
            findings.excluded.get(name, none),
        )
    ]
    false = sorted((one.probability or 0.0 for one in marks if one.kind == "false"), reverse=True)
    allowed = RATE * len(findings.scans)
    # just above the first false mark that would be one too many; equal probabilities count together
    threshold = -math.inf if len(false) <= allowed else math.nextafter(false[allowed], math.inf)
    by_kind: dict[MarkKind, list[Mark]] = {kind: [] for kind in KINDS}
    for one in marks:
        reaches = one.probability is not None and one.probability >= threshold
        if one.kind != "false":
            kind: MarkKind = "found" if reaches else "missed"
            by_kind[kind].append(replace(one, kind=kind))
        elif reaches:
            by_kind["false"].append(one)
    return Marks(
        threshold=threshold,
        false_per_scan=len(by_kind["false"]) / len(findings.scans),
        by_kind={
            kind: tuple(sorted(ones, key=_by_probability if kind == "false" else _by_size))
            for kind, ones in by_kind.items()
        },
    )


def choose_marks(marks: Sequence[Mark], most: int) -> list[Mark]:
    """Return the marks that are shown: false ones by probability, missed ones by size, found ones of all sizes."""
    if marks and marks[0].kind == "found":
        return pick_evenly(marks, most)
    return list(marks[:most])


def _mark_scan(name: str, kept: Floats, included: Floats, excluded: Floats) -> list[Mark]:
    """Return the nodules of a scan with their best candidate, and the candidates that hit nothing."""
    marks = []
    is_false = np.ones(len(kept), dtype=bool)
    for finding in included:
        hits = are_near(kept, finding)
        is_false &= ~hits
        marks.append(
            Mark(
                kind="found",
                scan=name,
                xyz_mm=_place(finding),
                diameter_mm=float(finding[3]) if finding[3] >= 0 else None,
                probability=float(kept[hits, 3].max()) if hits.any() else None,
            )
        )
    for finding in excluded:
        is_false &= ~are_near(kept, finding)
    false = (
        Mark(kind="false", scan=name, xyz_mm=_place(row), diameter_mm=None, probability=float(row[3]))
        for row in kept[is_false]
    )
    return [*marks, *false]


def _place(row: Floats) -> tuple[float, float, float]:
    return float(row[0]), float(row[1]), float(row[2])


def _by_size(one: Mark) -> float:
    return -(UNKNOWN_DIAMETER_MM if one.diameter_mm is None else one.diameter_mm)


def _by_probability(one: Mark) -> float:
    return -(one.probability or 0.0)
