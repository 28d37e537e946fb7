"""Overlap and detection measures (definitions: Bilic et al. 2023, The Liver Tumor Segmentation Benchmark).

An undefined measure, like Dice of two empty masks, is NaN and is left out of means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Voxel counts of a prediction against a reference."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
        )

    @property
    def dice(self) -> float:
        """Return 2 TP / (2 TP + FP + FN); NaN if both are empty."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def jaccard(self) -> float:
        """Return TP / (TP + FP + FN); NaN if both are empty."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def voe(self) -> float:
        """Return the volume overlap error, 1 - Jaccard; NaN if both are empty."""
        return 1 - self.jaccard

    @property
    def rvd(self) -> float:
        """Return the relative volume difference of the literature, (|P| - |R|) / |R|; NaN without a reference."""
        return _ratio(self.predicted - self.reference, self.reference)

    @property
    def rvd_lits(self) -> float:
        """Return RVD as the LiTS program computes it, (|R| - |P|) / |P|; NaN without a prediction.

        >>> both = Overlap(552_627, 584_513 - 552_627, 0)
        >>> round(both.rvd, 4), round(both.rvd_lits, 4)
        (0.0577, -0.0546)
        """
        return _ratio(self.reference - self.predicted, self.predicted)

    @property
    def reference(self) -> int:
        """Return the voxels of the reference."""
        return self.true_positive + self.false_negative

    @property
    def predicted(self) -> int:
        """Return the voxels of the prediction."""
        return self.true_positive + self.false_positive

    @property
    def precision(self) -> float:
        """Return TP / (TP + FP); NaN without a prediction."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Return TP / (TP + FN); NaN without a reference."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)


def count_overlap(reference: Mask, prediction: Mask) -> Overlap:
    """Count two masks of one shape.

    >>> count_overlap(np.array([True, True, False]), np.array([True, False, True])).dice
    0.5
    """
    both = int(np.count_nonzero(reference & prediction))
    return Overlap(both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both)


@dataclass(frozen=True, slots=True)
class Detection:
    """Yes-or-no decisions compared with the truth, and the separation of the classes by their scores."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    auc: float
    """Area under the ROC curve of the scores; NaN if only one class occurs."""

    @property
    def accuracy(self) -> float:
        """Return the share of correct decisions."""
        correct = self.true_positive + self.true_negative
        return _ratio(correct, correct + self.false_positive + self.false_negative)

    @property
    def sensitivity(self) -> float:
        """Return the share of positives that were detected; NaN without positives."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Return the share of negatives that were not detected; NaN without negatives."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)


def score_detection(truth: Sequence[bool], decision: Sequence[bool], score: Sequence[float]) -> Detection:
    """Compare yes-or-no decisions and their scores with the truth."""
    t, d = np.asarray(truth, dtype=bool), np.asarray(decision, dtype=bool)
    return Detection(
        true_positive=int((t & d).sum()),
        false_positive=int((~t & d).sum()),
        true_negative=int((~t & ~d).sum()),
        false_negative=int((t & ~d).sum()),
        auc=area_under_roc(t, np.asarray(score, dtype=np.float64)),
    )


def area_under_roc(truth: Mask, score: npt.NDArray[np.float64]) -> float:
    """Return the share of (positive, negative) pairs in which the positive scores higher; ties count half.

    That is the Mann-Whitney statistic, equal to the area under the ROC curve (Hanley and McNeil 1982).

    >>> area_under_roc(np.array([False, True, True]), np.array([0.1, 0.1, 0.9]))
    0.75
    """
    positive, negative = np.sort(score[truth]), np.sort(score[~truth])
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).sum() / 2 / len(positive) / len(negative))


def mean_without_nan(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _ratio(part: float, total: float) -> float:
    return part / total if total else math.nan
