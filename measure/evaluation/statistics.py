"""Intervals over cases, and paired comparisons of two recipes over the same patients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000
DRAWS = 20
"""Parts in which they are drawn, so that thousands of cases take little memory."""
EXACT = 30
"""Up to so many differences the test is exact; above, the normal approximation is good to three digits."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a recipe gains over another, patient by patient."""

    patients: int
    mean: float
    low: float
    high: float
    """The 95 % interval of the mean."""
    p: float
    """Of the Wilcoxon signed-rank test, two-sided."""
    better: int
    """Patients in which it is higher."""


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compare two recipes over the same patients, in the same order; NaN on either side leaves a patient out."""
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


def with_right_silence(pairs: Sequence[tuple[float, float]], best: float) -> list[tuple[float, float]]:
    """Return pairs of figures of the same cases to compare; NaN is the figure of one that rightly finds nothing.

    Where only one of the two does, the other has raised a false alarm: the first has the `best` figure there. Without that, false
    alarms would leave the comparison, and who raises them would look better than who does not. Where both are silent, both are NaN.

    >>> with_right_silence([(float("nan"), 0.0), (0.5, 0.6)], best=1.0)
    [(1.0, 0.0), (0.5, 0.6)]
    """
    return [
        (a, b) if math.isnan(a) == math.isnan(b) else (best if math.isnan(a) else a, best if math.isnan(b) else b)
        for a, b in pairs
    ]


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean (Efron and Tibshirani 1993), drawn with a fixed seed; NaN below two values.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    if len(values) < 2:
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(array), (resamples, len(array)))
    low, high = np.percentile(array[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def ratio_interval(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of sum(parts) / sum(wholes) over draws of cases; NaN below two cases.

    A mean is a ratio whose wholes are 1. Draws without any whole are left out.

    >>> ratio_interval([1.0, 1.0], [2.0, 2.0])
    (0.5, 0.5)
    """
    if len(parts) < 2:
        return math.nan, math.nan
    sums = np.stack([np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)], axis=1)
    rng = np.random.default_rng(0)
    drawn = np.concatenate(
        [
            rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES // DRAWS).astype(np.float64) @ sums
            for _ in range(DRAWS)
        ]
    )
    drawn = drawn[drawn[:, 1] > 0]
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return float(low), float(high)


def wilcoxon_p(deltas: Sequence[float]) -> float:
    """Return the two-sided p of the signed-rank test that differences lie about 0; NaN where all are 0.

    Zeros are dropped and ties share their mean rank (Wilcoxon 1945). Up to EXACT differences the p is exact, ties counted
    in: every choice of signs is as likely as any other, so the sums of ranks are counted by convolution. Above, the normal
    approximation with correction for ties.

    >>> wilcoxon_p([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625
    """
    kept = np.asarray([delta for delta in deltas if delta != 0], dtype=np.float64)
    if not len(kept):
        return math.nan
    ranks = mean_ranks(np.abs(kept))
    total = float(ranks.sum())
    smaller = min(float(ranks[kept > 0].sum()), float(ranks[kept < 0].sum()))
    if len(kept) > EXACT:
        return _normal_p(ranks, smaller)
    ways = np.ones(1)
    for doubled in (2 * ranks).round().astype(int):  # doubled, so that mean ranks are whole
        ways = np.concatenate([ways, np.zeros(doubled)]) + np.concatenate([np.zeros(doubled), ways])
    below = float(ways[: round(2 * smaller) + 1].sum() / ways.sum())
    return 1.0 if 2 * smaller >= total else min(1.0, 2 * below)


def mean_ranks(values: Floats) -> Floats:
    """Return the rank of each value from 1 on, ties sharing their mean.

    >>> mean_ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, side="left")
    last = np.searchsorted(ordered, values, side="right")
    return np.asarray((first + last + 1) / 2, dtype=np.float64)


def _normal_p(ranks: Floats, smaller: float) -> float:
    """Return the two-sided p by the normal approximation; the sum of squared ranks is the variance times 4, ties or not."""
    z = (smaller - float(ranks.sum()) / 2) / math.sqrt(float((ranks**2).sum()) / 4)
    return min(1.0, math.erfc(-z / math.sqrt(2)))
