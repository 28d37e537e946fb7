"""The files of candidates: JSON and page next to each mask, and a table, a JSON and a page of all scans of a run.

``candidates.csv`` has LUNA16's columns (``seriesuid,coordX,coordY,coordZ,probability``) and further ones, so that the
challenge's program and `slicemill froc` read it. Every candidate is in it, whatever its probability.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from slicemill.common.documents import read_document, to_document
from slicemill.common.files import write_csv, write_json

ENDING = ".candidates.json"
"""End of the file next to a mask."""
PAGE_ENDING = ".candidates.html"
"""End of the page next to a mask (`slicemill.infer.candidates.page`)."""
TABLES = re.compile(r"candidates(-\d+-of-\d+)?\.(json|csv|html)")
COLUMNS = (
    "seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm", "volume_ml", "slice", "malignancy",
    "segmentation_mean",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """One candidate."""

    number: int
    """1 for the most probable."""
    x_mm: float
    """Center in LPS mm."""
    y_mm: float
    z_mm: float
    probability: float
    """Probability of a nodule, by the classifier; without one, the mean of its voxels."""
    diameter_mm: float
    """Diameter of the ball of its volume."""
    volume_ml: float
    slice: int
    """Slice of the center, from the lowest, 0."""
    peak: float
    """Highest probability of the segmentation."""
    segmentation_mean: float | None = None
    """Mean probability of the segmentation over its voxels; None in files of earlier versions."""
    malignancy: float | None = None
    """Probability that the nodule is malignant; None if the classifier does not output it."""


@dataclass(frozen=True, kw_only=True)
class ThresholdAtRate:
    """A threshold that `tune` chose."""

    rate: float
    """False alarms a scan, at most, on the cases it was chosen on."""
    threshold: float
    """A candidate counts from this probability on."""
    sensitivity: float | None = None
    """Share of the nodules that reach it on these cases; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class ScanCandidates:
    """The candidates of one scan. The fields are the keys of its JSON, in this order."""

    scan: str
    """Relative path of the scan's mask."""
    model_sha256: str
    """Hash of the segmentation model."""
    classifier: str
    """File name of the classifier; empty without one."""
    classifier_sha256: str
    """Its hash; empty without one."""
    thresholds: dict[str, float]
    """Threshold of the probability by false alarms a scan; empty if the classifier has none."""
    sensitivity: dict[str, float] = field(default_factory=dict)
    """Share of the nodules of the tuning cases that reach each threshold; empty if unknown."""
    calibration: dict[str, float] | None = None
    """The numbers that the classifier's output was calibrated with (`slicemill.infer.calibration`); None if it was
    not."""
    malignancy_calibration: dict[str, float] | None = None
    """The numbers by which malignancy follows from output and diameter (`slicemill.infer.malignancy`); None if it is
    the output, or there is none."""
    found: int
    """Lumps of the segmentation's probability."""
    outside_organ: int
    """Lumps that were left out, because they are too far from the organ."""
    merged: int
    """Lumps that became part of another."""
    cut: int
    """Lumps that were left out beyond the limit of a scan."""
    warnings: tuple[str, ...] = ()
    candidates: tuple[CandidateRow, ...]
    """The most probable first."""

    @property
    def rates(self) -> tuple[ThresholdAtRate, ...]:
        """Return the thresholds, the fewest false alarms first."""
        return sort_thresholds(self.thresholds, self.sensitivity)

    @property
    def answer(self) -> str:
        """Return the main result as one line: how many candidates reach each threshold."""
        if not self.candidates:
            return "candidates of nodules: none"
        counts = [
            f"{sum(one.probability >= rate.threshold for one in self.candidates)} at {rate.threshold:.3f} or above "
            f"({count_marks(rate.rate)})"
            for rate in self.rates
        ]
        listed = "; ".join(counts or [str(len(self.candidates))])
        return f"candidates of nodules: {listed}; highest probability {self.candidates[0].probability:.2f}"


def count_marks(rate: float) -> str:
    """Return a rate of false alarms in words.

    >>> count_marks(1.0), count_marks(0.5)
    ('about 1 false mark a scan', 'about 0.5 false marks a scan')
    """
    return f"about {rate:g} false mark{'' if rate == 1 else 's'} a scan"


def sort_thresholds(
    thresholds: Mapping[str, float], sensitivity: Mapping[str, float] = MappingProxyType({})
) -> tuple[ThresholdAtRate, ...]:
    """Return the thresholds of a classifier's metadata, the fewest false alarms first.

    >>> [one.rate for one in sort_thresholds({"4": 0.2, "0.5": 0.9})]
    [0.5, 4.0]
    """
    rates = [
        ThresholdAtRate(rate=float(rate), threshold=value, sensitivity=sensitivity.get(rate))
        for rate, value in thresholds.items()
    ]
    return tuple(sorted(rates, key=lambda one: one.rate))


def is_candidate_table(name: str) -> bool:
    """Return whether a relative path in an output folder is that of a run's candidates.

    >>> is_candidate_table("candidates.csv"), is_candidate_table("p1/candidates.csv")
    (True, False)
    """
    return TABLES.fullmatch(name) is not None


def read_scans(out: Path, names: Mapping[str, str]) -> dict[str, ScanCandidates]:
    """Return the candidates of the scans of a run by the name of the scan, from the files next to their masks.

    `names`: relative path of each mask without suffix -> the name of the scan, unique among all runs into the folder.
    """
    return {
        names[stem]: read_document(ScanCandidates, out / f"{stem}{ENDING}")
        for stem in sorted(names)
        if (out / f"{stem}{ENDING}").exists()
    }


def write_candidate_tables(out: Path, scans: Mapping[str, ScanCandidates], part: str = "") -> None:
    """Write the candidates of all scans of a run, by name, as CSV and JSON.

    Parameters
    ----------
    part
        End of the files' names, for one of several runs into a folder.
    """
    write_candidate_csv(out / f"candidates{part}.csv", scans)
    write_json(out / f"candidates{part}.json", {"scans": [to_document(scan) for scan in scans.values()]})


def write_candidate_csv(path: Path, scans: Mapping[str, ScanCandidates]) -> None:
    """Write the candidates of scans, by name, in LUNA16's form with further columns."""
    rows = [
        dict(zip(COLUMNS, (name, one.x_mm, one.y_mm, one.z_mm, one.probability, one.diameter_mm, one.volume_ml,
                           one.slice, one.malignancy, one.segmentation_mean), strict=True))
        for name, scan in scans.items()
        for one in scan.candidates
    ]  # fmt: skip
    write_csv(path, rows, COLUMNS)
