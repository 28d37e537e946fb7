"""Confidence intervals over cases, and paired comparisons over the same patients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000
BATCH = 500
"""Resamples drawn at a time, to limit memory with thousands of cases."""
EXACT = 30
"""Largest number of differences for an exact Wilcoxon p. Above it, the normal approximation has three digits."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference between two recipes over the same patients."""

    patients: int
    """Patients with a value in both recipes."""
    mean: float
    """Mean difference; NaN without patients."""
    low: float
    """Lower end of the 95 % interval of the mean; NaN below two patients."""
    high: float
    """Upper end of that interval."""
    p: float
    """Two-sided p of Wilcoxon's signed-rank test; NaN if all differences are 0."""
    better: int
    """Patients with a higher value than the reference."""


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compare two recipes over the same patients in the same order. Patients with NaN are left out."""
    deltas = [a - b for a, b in zip(values, reference, strict=True) if not (math.isnan(a) or math.isnan(b))]
    low, high = bootstrap_interval(deltas)
    return Difference(
        patients=len(deltas),
        mean=sum(deltas) / len(deltas) if deltas else math.nan,
        low=low,
        high=high,
        p=wilcoxon_p(deltas),
        better=sum(delta > 0 for delta in deltas),
    )


def score_true_negatives(pairs: Sequence[tuple[float, float]], best: float) -> list[tuple[float, float]]:
    """Replace NaN, the score of a correct empty prediction, by the `best` score if the other run has a score.

    In such a case the other run has a false positive. Without this rule the case would be left out of the comparison,
    which favors runs with false positives. If both predictions are correctly empty, both scores remain NaN.

    >>> score_true_negatives([(float("nan"), 0.0), (0.5, 0.6)], best=1.0)
    [(1.0, 0.0), (0.5, 0.6)]
    """
    return [
        (a, b) if math.isnan(a) == math.isnan(b) else (best if math.isnan(a) else a, best if math.isnan(b) else b)
        for a, b in pairs
    ]


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean (Efron and Tibshirani 1993), fixed seed; NaN below two values.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    if len(values) < 2:
        return math.nan, math.nan
    from scipy import stats

    low, high = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(low), float(high)


def ratio_interval(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of sum(parts) / sum(wholes) over resampled cases; NaN below two cases.

    A mean is a ratio with all wholes equal to 1. Resamples whose wholes sum to 0 are left out. `scipy.stats.bootstrap`
    does not allow that: a single undefined ratio makes its interval NaN.

    >>> ratio_interval([1.0, 1.0], [2.0, 2.0])
    (0.5, 0.5)
    """
    cases = len(parts)
    if cases < 2:
        return math.nan, math.nan
    pairs = np.stack([np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)], axis=1)
    rng = np.random.default_rng(0)
    # the sums of a resample: number of draws of each case, times its part and whole
    draws = (rng.multinomial(cases, np.full(cases, 1 / cases), BATCH) for _ in range(RESAMPLES // BATCH))
    sums = np.concatenate([counts.astype(np.float64) @ pairs for counts in draws])
    sums = sums[sums[:, 1] > 0]
    if not len(sums):
        return math.nan, math.nan
    low, high = np.percentile(sums[:, 0] / sums[:, 1], (2.5, 97.5))
    return float(low), float(high)


def wilcoxon_p(deltas: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; NaN if all differences are 0.

    Zeros are dropped and ties share their mean rank (Wilcoxon 1945). Up to EXACT differences p is exact, also with
    ties: all combinations of signs are equally likely, so convolution yields the distribution of the rank sum. Above
    EXACT, the normal approximation corrects for ties.

    Without ties and zeros, `scipy.stats.wilcoxon` returns the same p. With them, its exact method uses the distribution
    of untied ranks, and its permutation method cannot enumerate the signs of 30 differences.

    >>> wilcoxon_p([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625
    """
    kept = np.asarray([delta for delta in deltas if delta != 0], dtype=np.float64)
    if not len(kept):
        return math.nan
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(kept))
    total = float(ranks.sum())
    smaller = min(float(ranks[kept > 0].sum()), float(ranks[kept < 0].sum()))
    if len(kept) > EXACT:
        return _normal_p(ranks, smaller)
    # ways[s]: number of sign combinations with the doubled rank sum s; doubled, because mean ranks may end in .5
    ways = np.ones(1)
    for doubled in (2 * ranks).round().astype(int):
        ways = np.concatenate([ways, np.zeros(doubled)]) + np.concatenate([np.zeros(doubled), ways])
    below = float(ways[: round(2 * smaller) + 1].sum() / ways.sum())
    return 1.0 if 2 * smaller >= total else min(1.0, 2 * below)


def _normal_p(ranks: Floats, smaller: float) -> float:
    """Return the two-sided p by the normal approximation; the rank sum's variance is sum(ranks**2) / 4."""
    z = (smaller - float(ranks.sum()) / 2) / math.sqrt(float((ranks**2).sum()) / 4)
    return min(1.0, math.erfc(-z / math.sqrt(2)))


def nan_to_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not support."""
    return None if math.isnan(value) else value
