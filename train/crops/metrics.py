"""How well a classifier tells two classes of crops apart, beside what size alone would tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from slicemill.ct.overlap import Detection, area_under_roc, score_detection
from slicemill.train.crops.samples import Sample

DENSE_HU = -500
"""Lower limit of what counts for the size of a crop's lump; ground glass is below it."""
REACH = 16
"""Half of the side of the cube in which the lump is measured, samples."""


ALIKE = 1.25
"""Sizes are alike if the larger one is below this times the smaller."""
LEAST_PAIRS = 50
"""Pairs of like size, below which their AUC is not computed: a few pairs are right by chance."""


@dataclass(frozen=True, kw_only=True)
class CropEpoch:
    """The metrics of one epoch, a row of ``metrics.csv``; scores of validation crops, without augmentation."""

    epoch: int
    loss: float
    """Mean cross-entropy of the training crops, augmented."""
    learning_rate: float
    crops_per_second: float
    validation_loss: float
    validation_positive_correct: int
    validation_positive_total: int
    validation_negative_correct: int
    validation_negative_total: int
    validation_precision: float | None
    validation_recall: float | None
    validation_f1: float | None
    validation_auc: float
    validation_auc_size: float
    """AUC of the size alone: of the annotated diameter if both classes have one, else of the lump in the middle."""
    validation_auc_alike: float | None = None
    """Share of the pairs of like size (`area_among_alike`) in which the positive crop has the higher probability."""


def measure_epoch(
    numbers: tuple[int, float, float, float],
    samples: Sequence[Sample],
    probability: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.float64],
) -> CropEpoch:
    """Return the metrics of an epoch.

    Parameters
    ----------
    numbers
        Number of the epoch, loss, learning rate, crops per second.
    samples
        The validation samples.
    probability, sizes
        float64[n]: their probability of the positive class, and their size.
    """
    epoch, loss, rate, speed = numbers
    truth = np.array([sample.positive for sample in samples])
    scored: Detection = score_detection(truth.tolist(), (probability >= 0.5).tolist(), probability.tolist())
    found, missed, false = scored.true_positive, scored.false_negative, scored.false_positive
    clipped = np.clip(np.where(truth, probability, 1 - probability), 1e-7, 1)
    return CropEpoch(
        epoch=epoch,
        loss=loss,
        learning_rate=rate,
        crops_per_second=speed,
        validation_loss=float(-np.log(clipped).mean()),
        validation_positive_correct=found,
        validation_positive_total=found + missed,
        validation_negative_correct=scored.true_negative,
        validation_negative_total=scored.true_negative + false,
        validation_precision=_ratio(found, found + false),
        validation_recall=_ratio(found, found + missed),
        validation_f1=_ratio(2 * found, 2 * found + missed + false),
        validation_auc=scored.auc,
        validation_auc_size=area_under_roc(truth, sizes),
        validation_auc_alike=area_among_alike(truth, probability, sizes),
    )


def area_among_alike(
    truth: npt.NDArray[np.bool_], score: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]
) -> float | None:
    """Return the AUC over pairs whose sizes differ by less than ALIKE; None with fewer pairs than LEAST_PAIRS.

    The sizes themselves are near 0.5: 0.57 for the nodules of synthetic chests, where their AUC is 0.77.

    >>> truth, sizes = np.repeat([True, False, False], 10), np.repeat([9.0, 8.0, 4.0], 10)
    >>> area_among_alike(truth, np.repeat([0.5, 0.2, 0.9], 10), sizes)
    1.0
    """
    other_sizes, other_scores = sizes[~truth], score[~truth]
    pairs, right = 0, 0.0
    for size, value in zip(sizes[truth], score[truth], strict=True):
        alike = np.maximum(size, other_sizes) < ALIKE * np.minimum(size, other_sizes)
        difference = value - other_scores[alike | (other_sizes == size)]
        pairs += len(difference)
        right += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
    return right / pairs if pairs >= LEAST_PAIRS else None


def measure_sizes(samples: Sequence[Sample], crops: Sequence[npt.NDArray[np.int16]]) -> npt.NDArray[np.float64]:
    """Return float64[n], mm: the annotated diameters if all samples have one, else those of the lumps in the middle."""
    diameters = [sample.diameter_mm for sample in samples]
    if None not in diameters:
        return np.array(diameters, dtype=np.float64)
    return np.array([measure_lump(crop) for crop in crops])


def measure_lump(crop: npt.NDArray[np.int16]) -> float:
    """Return the diameter in mm of the ball as large as the lump in the middle of a crop int16[z, y, x]; 0 without one.

    A lump is the voxels above DENSE_HU that are connected with one of the middle 4 mm.
    """
    middle = crop.shape[0] // 2
    box = slice(middle - REACH, middle + REACH)
    numbers, _ = ndimage.label(crop[box, box, box] > DENSE_HU)
    core = slice(REACH - 2, REACH + 2)
    touched = np.unique(numbers[core, core, core])
    voxels = int(np.isin(numbers, touched[touched > 0]).sum())
    return float((6 * voxels / math.pi) ** (1 / 3))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
