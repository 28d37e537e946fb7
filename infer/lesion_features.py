"""What is known of each lesion of a segmentation, and which lesions the rules keep, in `infer` and in `tune`."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.runs import Runs, voxel_coordinates
from slicemill.store.model_card import LesionRule, PostprocessRules

Floats = npt.NDArray[np.float64]
Label = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ScanVolumes:
    """The arrays of a scan, all [z, y, x]."""

    label: Label
    """uint8, label values."""
    probability: npt.NDArray[np.uint8] | None = None
    """uint8, probability of tumor, 255 is certain; None if the model outputs none."""
    image: npt.NDArray[np.int16] | None = None
    """int16, HU; needed for a fitted rule only."""


@dataclass(frozen=True, kw_only=True)
class LesionFeatures:
    """The lesions of a scan, one element per lesion."""

    voxel_ml: float
    """Voxel volume, ml."""
    voxels: Floats
    probability_sums: Floats
    """Sum of 255 times the probability of tumor over each lesion; the probability is 1 if the model outputs none."""
    peaks: Floats
    """255 times the largest probability of tumor."""
    hu_over_organ: Floats
    """Mean HU, minus the mean HU of the organ without tumors; minus 0 without an organ."""
    depth_mm: Floats
    """Distance from the voxel nearest to the center to the outside of organ and tumor, along the nearest of the six
    directions of the axes; 0 if this voxel is outside, or without an organ. Of two voxels equally near, the later."""
    filled: Floats
    """Share of the smallest box around it that it fills, 0 to 1."""

    def columns(self) -> Floats:
        """Return the features of a fitted rule, float64[n, 6], in the order of `LesionRule.weights`."""
        sizes = np.maximum(self.voxels, 1)
        logs, means = np.log(sizes * self.voxel_ml), self.probability_sums / sizes / 255
        return np.stack([logs, means, self.peaks / 255, self.hu_over_organ, self.depth_mm, self.filled], axis=1)


def keep_lesions(found: LesionFeatures, rules: PostprocessRules) -> npt.NDArray[np.bool_]:
    """Return bool[n]: whether the rules keep each lesion."""
    kept = found.voxels >= rules.min_lesion_ml / found.voxel_ml
    kept &= found.probability_sums >= rules.min_lesion_probability * 255 * found.voxels
    kept &= found.peaks >= rules.min_lesion_peak * 255
    if rules.lesion_rule is not None:
        kept &= score_lesions(found.columns(), rules.lesion_rule) >= rules.lesion_rule.least_score
    return kept


def score_lesions(columns: Floats, rule: LesionRule) -> Floats:
    """Return the score of each lesion, 0 to 1: the logistic function of the weighted sum of its features."""
    logits = columns @ np.array(rule.weights) + rule.intercept
    scores: Floats = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return scores


def measure_lesions(
    scan: ScanVolumes, labels: Labels, grid: Grid, runs: Runs, numbers: npt.NDArray[np.int32], *, fitted: bool
) -> LesionFeatures:
    """Measure the lesions of a scan.

    Parameters
    ----------
    runs
        Runs of tumor.
    numbers
        int32[len(runs)]: the lesion of each run, from 0.
    fitted
        Whether to measure what only a fitted rule needs; else it is 0. This needs the scan's image.
    """
    count = int(numbers.max()) + 1 if len(numbers) else 0
    voxels = np.bincount(numbers, weights=runs.voxels, minlength=count).astype(np.float64)
    sums, hu = np.zeros(count), np.zeros(count)
    peaks = np.zeros(count)
    for part, where in voxel_coordinates(runs):
        owners = np.repeat(numbers[part], runs[part].voxels)
        if scan.probability is not None:
            sums += np.bincount(owners, weights=scan.probability[where], minlength=count)
            np.maximum.at(peaks, owners, scan.probability[where])
        if fitted and scan.image is not None:
            hu += np.bincount(owners, weights=scan.image[where], minlength=count)
    if scan.probability is None:
        sums, peaks = 255 * voxels, np.full(count, 255.0)
    none = np.zeros(count)
    shaped = fitted and count > 0
    return LesionFeatures(
        voxel_ml=voxel_ml(grid.affine_lps),
        voxels=voxels,
        probability_sums=sums,
        peaks=peaks,
        hu_over_organ=hu / voxels - _mean_organ_hu(scan, labels) if shaped else none,
        depth_mm=_measure_depths(scan.label, labels, grid, runs, numbers) if shaped else none,
        filled=voxels / _count_box_voxels(runs, numbers, count) if shaped else none,
    )


def _mean_organ_hu(scan: ScanVolumes, labels: Labels) -> float:
    if labels.organ is None or scan.image is None:
        return 0.0
    organ = scan.image[scan.label == labels.values[labels.organ]]
    return int(organ.sum(dtype=np.int64)) / len(organ) if len(organ) else 0.0


def _count_box_voxels(runs: Runs, numbers: npt.NDArray[np.int32], count: int) -> Floats:
    """Return the number of voxels of the smallest box around each lesion."""
    sizes = np.ones(count)
    for first, behind in ((runs.z, runs.z + 1), (runs.y, runs.y + 1), (runs.start, runs.stop)):
        lowest, highest = np.full(count, np.inf), np.zeros(count)
        np.minimum.at(lowest, numbers, first)
        np.maximum.at(highest, numbers, behind)
        sizes *= highest - lowest
    return sizes


def _measure_depths(label: Label, labels: Labels, grid: Grid, runs: Runs, numbers: npt.NDArray[np.int32]) -> Floats:
    count = int(numbers.max()) + 1
    if labels.organ is None:
        return np.zeros(count)
    weights = runs.voxels.astype(np.float64)
    totals = np.bincount(numbers, weights=weights, minlength=count)
    middles = (runs.z, runs.y, (runs.start + runs.stop - 1) / 2)
    centers = [np.bincount(numbers, weights=weights * middle, minlength=count) / totals for middle in middles]
    # Halves are rounded up: rounded to even, they would depend on where the array starts.
    places = np.floor(np.stack(centers, axis=1) + 0.5).astype(int)
    values = np.zeros(256, dtype=bool)
    values[labels.organ_values()] = True
    depths = np.zeros(count)
    for number, (z, y, x) in enumerate(places.tolist()):
        lines = ((label[:, y, x], z), (label[z, :, x], y), (label[z, y, :], x))
        steps = (_steps_outside(values[line], place) for line, place in lines)
        depths[number] = min(step * mm for step, mm in zip(steps, grid.spacing_mm, strict=True))
    return depths


def _steps_outside(inside: npt.NDArray[np.bool_], place: int) -> int:
    """Return the steps from a place to the nearest voxel of its line that is outside; beyond the ends is outside.

    >>> line = np.array([False, True, True, True, True])
    >>> _steps_outside(line, 2), _steps_outside(line, 4), _steps_outside(line, 0)
    (2, 1, 0)
    """
    outside = np.flatnonzero(~inside)
    nearest = int(np.abs(outside - place).min()) if len(outside) else len(inside)
    return min(nearest, place + 1, len(inside) - place)
