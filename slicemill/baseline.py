"""The trivial baseline: every voxel in one HU band is tumor, inside the reference organ if there is one.

The band is the best one for the training cases. The search is exhaustive: the Dice of every pair of limits is computed
at once from the HU histograms of the tumor and of the other voxels that a band could include. The reference organ
flatters the baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.bench.records.demo_scores import BandScores
from slicemill.common.errors import StoreError
from slicemill.ct.overlap import Overlap, mean_without_nan
from slicemill.store.reader import Case, Store

LOW, HIGH = -200, 400
"""Range of the tried limits; every HU in between is tried."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class HuHistograms:
    """HU histograms of one case."""

    tumor: Counts
    """int64[HIGH - LOW], tumor voxels by HU."""
    rest: Counts
    """int64[HIGH - LOW], other voxels of the organ (or of the scan) by HU."""
    tumor_voxels: int
    """All tumor voxels, including those outside LOW..HIGH."""


def hu_histograms(case: Case) -> HuHistograms:
    """Count the voxels of a case by HU.

    Raises
    ------
    StoreError
        The case has no tumor label.
    """
    labels = case.info.labels
    if labels is None or labels.tumor is None or case.label is None:
        raise StoreError(f"{case.info.case_id}: the baseline needs a tumor label.")
    image, label = case.image[:], case.label[:]
    tumor = label == labels.tumor_value()
    rest = (np.isin(label, labels.organ_values()) if labels.organ else np.ones_like(tumor)) & ~tumor
    in_range = (image >= LOW) & (image < HIGH)

    def count(mask: npt.NDArray[np.bool_]) -> Counts:
        return np.bincount(image[mask & in_range] - LOW, minlength=HIGH - LOW).astype(np.int64)

    return HuHistograms(tumor=count(tumor), rest=count(rest), tumor_voxels=int(tumor.sum()))


def fit_band(cases: Sequence[HuHistograms]) -> tuple[int, int]:
    """Return the band low <= HU < high with the highest mean Dice over cases. Cases without tumor are left out.

    >>> tumor, rest = np.zeros(600, np.int64), np.full(600, 5)
    >>> tumor[250:260], rest[250:260] = 5, 0
    >>> fit_band([HuHistograms(tumor=tumor, rest=rest, tumor_voxels=50)])
    (50, 60)
    """
    total = np.zeros((HIGH - LOW + 1, HIGH - LOW + 1))
    for case in cases:
        if case.tumor_voxels:
            # With cumulative counts, element [low, high] of the difference is the count of the band low..high.
            tumor, rest = (np.concatenate([[0], np.cumsum(counts)]) for counts in (case.tumor, case.rest))
            hit, false_alarm = tumor[None] - tumor[:, None], rest[None] - rest[:, None]
            total += np.where(hit > 0, 2 * hit / np.maximum(hit + false_alarm + case.tumor_voxels, 1), 0)
    low, high = np.unravel_index(np.argmax(np.triu(total)), total.shape)
    return int(low) + LOW, int(high) + LOW


def score_band(case: HuHistograms, low: int, high: int) -> Overlap:
    """Count the overlap of a band with the tumor of one case."""
    hit = int(case.tumor[low - LOW : high - LOW].sum())
    return Overlap(hit, int(case.rest[low - LOW : high - LOW].sum()), case.tumor_voxels - hit)


def score_baseline(store: Store, train: Sequence[str], test: Sequence[str]) -> BandScores:
    """Fit the band on the training cases and score it on the test cases."""
    low, high = fit_band([hu_histograms(store[case_id]) for case_id in train])
    overlaps = {case_id: score_band(hu_histograms(store[case_id]), low, high) for case_id in test}
    return BandScores(
        band_hu=(low, high),
        dice_per_case=mean_without_nan([overlap.dice for overlap in overlaps.values()]),
        dice_global=sum(overlaps.values(), Overlap()).dice,
        by_case={case_id: None if math.isnan(overlap.dice) else overlap.dice for case_id, overlap in overlaps.items()},
    )
