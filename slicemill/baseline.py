"""The trivial baseline: tumor is what lies in one HU band, inside the reference organ where there is one.

The band is the best there is for the training cases, found exactly: for every pair of limits at once, from the HU
histograms of tumor and of everything else that the band could take in. Knowing the reference organ flatters it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import StoreError
from slicemill.ct.overlap import Overlap, mean_of
from slicemill.store.reader import Case, Store

LOW, HIGH = -200, 400
"""Limits that are tried, every HU in between."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A fitted band and how it does on cases it was not fitted on."""

    low: int
    high: int
    """The band is low <= HU < high."""
    dice_per_case: float
    dice_global: float
    by_case: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a results file."""
        return {
            "band_hu": [self.low, self.high],
            "dice_per_case": self.dice_per_case,
            "dice_global": self.dice_global,
            "by_case": {case_id: None if np.isnan(dice) else dice for case_id, dice in self.by_case.items()},
        }


def histograms(case: Case) -> tuple[Counts, Counts, int]:
    """Return how many voxels of tumor, and of the rest of the organ (or scan), have each HU in LOW..HIGH, and all tumor voxels."""
    labels = case.info.labels
    if labels is None or labels.tumor is None or case.label is None:
        raise StoreError(f"{case.info.case_id}: the baseline needs a tumor label.")
    image, label = case.image[:], case.label[:]
    tumor = label == labels.tumor_value()
    rest = (np.isin(label, labels.organ_values()) if labels.organ else np.ones_like(tumor)) & ~tumor
    bins = [
        np.bincount(image[mask & (image >= LOW) & (image < HIGH)] - LOW, minlength=HIGH - LOW) for mask in (tumor, rest)
    ]
    return bins[0].astype(np.int64), bins[1].astype(np.int64), int(tumor.sum())


def fit_band(parts: Sequence[tuple[Counts, Counts, int]]) -> tuple[int, int]:
    """Return the band low <= HU < high of the highest mean Dice per case; cases without tumor are left out.

    >>> tumor, rest = np.zeros(600, np.int64), np.full(600, 5)
    >>> tumor[250:260], rest[250:260] = 5, 0
    >>> fit_band([(tumor, rest, 50)])
    (50, 60)
    """
    total = np.zeros((HIGH - LOW + 1, HIGH - LOW + 1))
    for tumor, rest, size in parts:
        if size:
            inside, outside = (np.concatenate([[0], np.cumsum(counts)]) for counts in (tumor, rest))
            hit = inside[None] - inside[:, None]
            total += np.where(hit > 0, 2 * hit / np.maximum(hit + outside[None] - outside[:, None] + size, 1), 0)
    low, high = np.unravel_index(np.argmax(np.triu(total)), total.shape)
    return int(low) + LOW, int(high) + LOW


def score_band(part: tuple[Counts, Counts, int], low: int, high: int) -> Overlap:
    """Count what a band takes in of one case."""
    tumor, rest, size = part
    hit = int(tumor[low - LOW : high - LOW].sum())
    return Overlap(hit, int(rest[low - LOW : high - LOW].sum()), size - hit)


def threshold_baseline(store: Store, train: Sequence[str], test: Sequence[str]) -> Baseline:
    """Fit the band on the training cases and score it on the test cases."""
    low, high = fit_band([histograms(store[case_id]) for case_id in train])
    scores = {case_id: score_band(histograms(store[case_id]), low, high) for case_id in test}
    return Baseline(
        low=low,
        high=high,
        dice_per_case=mean_of([counts.dice for counts in scores.values()]),
        dice_global=sum(scores.values(), Overlap()).dice,
        by_case={case_id: counts.dice for case_id, counts in scores.items()},
    )
