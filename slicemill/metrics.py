"""Scores of masks in memory: overlap, distances of surfaces, lesions, and free-response curves.

The command `slicemill evaluate` computes these for files, with intervals over cases. Masks are arrays bool[...] of 3
axes, in any order, of a prediction and a reference on one grid.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, UsageError
from slicemill.ct.lesions import check_parts, label_components
from slicemill.ct.overlap import Overlap, count_overlap
from slicemill.measure.evaluation.detection import Matching, count_shared_voxels, f1, match_lesions
from slicemill.measure.evaluation.froc import Curve, FreeResponse, NoFindings, ScanHits, analyze_free_response
from slicemill.measure.evaluation.score import find_hits, mean_probabilities
from slicemill.measure.evaluation.surface import SurfaceDistances
from slicemill.measure.evaluation.surface import surface_distances as measure_distances

__all__ = [
    "Curve",
    "FreeResponse",
    "Matching",
    "NoFindings",
    "Overlap",
    "ScanHits",
    "SurfaceDistances",
    "detect_lesions",
    "dice",
    "f1",
    "froc",
    "overlap",
    "scan_hits",
    "surface_distances",
]

Mask = npt.NDArray[Any]
"""bool[...], or an array of 0 and 1. A segmentation with several labels is refused: compare one, ``label == 2``."""


def dice(prediction: Mask, reference: Mask) -> float:
    """Return 2 |P and R| / (|P| + |R|) of two masks bool[...]; NaN if both are empty.

    Raises
    ------
    InputError
        The masks have different shapes, or other values than 0 and 1.

    >>> dice(np.array([[[1, 1, 0]]]), np.array([[[1, 0, 1]]]))
    0.5
    """
    return overlap(prediction, reference).dice


def overlap(prediction: Mask, reference: Mask) -> Overlap:
    """Return the counts of two masks bool[...], with Dice, Jaccard, VOE, RVD, precision and recall.

    Raises
    ------
    InputError
        The masks have different shapes, or other values than 0 and 1.

    >>> overlap(np.array([1, 1, 0]), np.array([1, 0, 0])).precision
    0.5
    """
    predicted, truth = _check_masks(prediction, reference)
    return count_overlap(truth, predicted)


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks bool[...] of 3 axes, mm.

    The result has the average (`assd`), the root mean square (`rmsd`), the largest (`mssd`), the 95th percentile
    (`hd95`), and `surface_dice(tolerance_mm)`. They are NaN if a mask is empty.

    Parameters
    ----------
    spacing_mm
        Size of a voxel along the masks' axes in their order, mm.

    Raises
    ------
    InputError
        The masks have different shapes, other values than 0 and 1, or the spacing is not three lengths.

    >>> one, other = np.zeros((2, 1, 1, 4), dtype=bool)
    >>> one[0, 0, 0] = other[0, 0, 3] = True
    >>> surface_distances(one, other, (5.0, 1.0, 0.5)).assd
    1.5
    """
    predicted, truth = _check_masks(prediction, reference, axes=3)
    steps = [float(step) for step in spacing_mm]
    if len(steps) != 3 or not all(0 < step < np.inf for step in steps):
        raise UsageError(f"spacing_mm = {steps}: must be three lengths in mm, in the order of the masks' axes.")
    return measure_distances(predicted, truth, (steps[0], steps[1], steps[2]))


def detect_lesions(prediction: Mask, reference: Mask, *, overlap_above: float = 0.0) -> Matching:
    """Match the connected components (26 neighbors) of two masks bool[...] of 3 axes.

    A lesion is detected if the intersection over union with its predicted lesion is above `overlap_above`. Each
    predicted lesion is matched with at most one reference. `Matching` has `true_positive`, `predictions` and
    `references`; `f1(true_positive, predictions, references)` combines them.

    Raises
    ------
    InputError
        The masks have different shapes, other values than 0 and 1, or too many pieces; or `overlap_above` is not a
        share below 1.

    >>> found = detect_lesions(np.array([[[1, 1, 0, 0, 1]]]), np.array([[[1, 1, 1, 0, 0]]]))
    >>> found.true_positive, found.predictions, found.references
    (1, 2, 1)
    """
    if not 0 <= overlap_above < 1:
        raise UsageError(f"overlap_above = {overlap_above}: must be at least 0 and below 1.")
    predicted, truth = (_number(mask) for mask in _check_masks(prediction, reference, axes=3))
    return match_lesions(count_shared_voxels(predicted, truth), overlap_above, "corrected")


def scan_hits(prediction: Mask, reference: Mask, probability: npt.NDArray[Any] | None = None) -> ScanHits:
    """Return the hits and false positives of one scan, for `froc`.

    A predicted lesion that shares a voxel with a reference lesion is a hit.

    Parameters
    ----------
    prediction, reference
        Masks bool[...] of 3 axes.
    probability
        Probability of tumor, uint8 (255 is certain) or float (1 is certain), of the masks' shape. Predicted lesions are
        ranked by its mean in them. Without it they are ranked by their voxels, which compares scans of one voxel size
        only.

    Raises
    ------
    InputError
        The arrays have different shapes, other values, or too many pieces.

    >>> scan_hits(np.array([[[1, 1, 0, 0, 1]]]), np.array([[[1, 1, 1, 0, 0]]]))
    ScanHits(found=(2.0,), missed=0, false=(1.0,))
    """
    predicted, truth = (_number(mask) for mask in _check_masks(prediction, reference, axes=3))
    shared = count_shared_voxels(predicted, truth)
    if probability is None:
        return find_hits(shared, [float(voxels) for voxels in shared.predictions])
    if probability.shape != predicted.shape:
        raise InputError(
            f"masks and probability must have one shape; they have {predicted.shape}, {probability.shape}."
        )
    if probability.dtype == np.uint8:
        return find_hits(shared, mean_probabilities(probability, predicted))
    values = np.asarray(probability, dtype=np.float64)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise InputError("probabilities must be uint8, or floats from 0 to 1.")
    sums = np.bincount(predicted.ravel(), weights=values.ravel())[1:]
    return find_hits(shared, (sums / shared.predictions).tolist())


def froc(scans: Sequence[ScanHits]) -> FreeResponse | NoFindings:
    """Return the free-response curve of all scans, and its mean sensitivity at 1/8 to 8 false positives per scan (CPM).

    Intervals are of 1000 bootstrap samples over scans. Scans without findings belong in the list too.

    Returns
    -------
    FreeResponse
        `curve`, `sensitivity_between` and `sensitivity_at_or_above` (the two definitions in use) and `cpm`;
        `NoFindings` if no scan has a reference lesion.

    Raises
    ------
    InputError
        There are no scans.

    >>> froc([ScanHits(found=(0.9,)), ScanHits(missed=1, false=(0.5,))]).cpm
    0.5
    """
    if not scans:
        raise InputError("a free-response curve needs at least one scan.")
    return analyze_free_response(scans)


def _check_masks(prediction: Mask, reference: Mask, axes: int | None = None) -> list[npt.NDArray[np.bool_]]:
    """Return two masks as bool.

    Raises
    ------
    InputError
        Their shapes differ, they do not have that number of axes, or a value is neither 0 nor 1.
    """
    arrays = [np.asarray(prediction), np.asarray(reference)]
    if arrays[0].shape != arrays[1].shape:
        raise InputError(f"the masks must have one shape; they have {arrays[0].shape} and {arrays[1].shape}.")
    if axes is not None and arrays[0].ndim != axes:
        raise InputError(f"the masks must have {axes} axes; they have the shape {arrays[0].shape}.")
    masks = [array.astype(bool) for array in arrays]
    for array, mask in zip(arrays, masks, strict=True):
        if not np.array_equal(array, mask):
            raise InputError("a mask has the values 0 and 1 only; of a segmentation, compare one label: label == 2.")
    return masks


def _number(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    numbers = label_components(mask)
    check_parts(int(numbers.max(initial=0)))
    return numbers
