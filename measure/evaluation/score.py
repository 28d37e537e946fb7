"""Scores of one case: overlap, distances, volumes, burden, lesions, and presence of tumor per slice."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import UsageError
from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import bounding_box
from slicemill.ct.overlap import Overlap, count_overlap
from slicemill.measure.evaluation.detection import (
    THRESHOLDS,
    Matching,
    Mode,
    Numbers,
    SharedVoxels,
    count_shared_voxels,
    match_lesions,
    measure_diameters,
    number_components,
)
from slicemill.measure.evaluation.froc import ScanHits
from slicemill.measure.evaluation.surface import surface_distances
from slicemill.measure.inputs.infer_output import InferReport, read_own_report, read_tumor_probability
from slicemill.measure.inputs.masks import PairMasks, check_values
from slicemill.measure.inputs.pairs import Pair

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.uint8]
TOLERANCE_MM = 2.0
"""Default tolerance: about the intra-reader variability of liver contours."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Labels and rules of an evaluation."""

    labels: Labels
    mode: Mode = "corrected"
    tolerance_mm: float = TOLERANCE_MM
    """Tolerance of the surface Dice, mm."""
    ignored: int | None = None
    """Value of the references' voxels that are left out; None to score all."""

    def __post_init__(self) -> None:
        """Check that the tolerance is a valid length."""
        if not 0 <= self.tolerance_mm < math.inf:
            raise UsageError(f"--tolerance-mm {self.tolerance_mm}: must be a length in mm, 0 or more, like 2.")


@dataclass(frozen=True, kw_only=True)
class SurfaceMeasures:
    """Distances between two surfaces; NaN if one mask is empty."""

    assd_mm: float
    """Average symmetric surface distance."""
    rmsd_mm: float
    """Root mean square symmetric surface distance."""
    mssd_mm: float
    """Maximum symmetric surface distance."""
    hd95_mm: float
    """The larger of the two directed 95th percentiles."""
    surface_dice: float
    """Share of the surface voxels within the tolerance, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class DetectedLesion:
    """Segmentation scores of a lesion that was detected above the highest threshold."""

    dice: float
    jaccard: float
    voe: float
    rvd: float
    rvd_lits: float
    assd_mm: float
    rmsd_mm: float
    mssd_mm: float
    hd95_mm: float
    surface_dice: float


@dataclass(frozen=True, kw_only=True)
class LesionScores:
    """Lesion detection of a case."""

    matchings: dict[float, Matching]
    """Threshold of overlap -> matching."""
    diameters_mm: tuple[tuple[float, ...], tuple[float, ...]]
    """Longest axial diameters of the predictions, and of the references."""
    references_ml: tuple[float, ...]
    """Volumes of the references."""
    detected: tuple[DetectedLesion, ...]
    """The lesions that were detected above the highest threshold."""
    by_probability: ScanHits | None
    """Hits scored by mean probability; None if the prediction has no probability map."""
    by_volume: ScanHits
    """Hits scored by volume, ml."""


@dataclass(frozen=True, kw_only=True)
class TumorScores:
    """Tumor scores of each slice and of the case; higher means more likely tumor."""

    slices: tuple[float, ...]
    case: float


@dataclass(frozen=True, kw_only=True)
class TumorPresence:
    """Presence of tumor in each slice of a case."""

    truth: tuple[bool, ...]
    """Whether the reference has tumor in a slice."""
    predicted: tuple[bool, ...]
    """Whether the prediction has tumor in a slice."""
    voxels: TumorScores
    """Predicted tumor voxels."""
    reported: TumorScores | None
    """Scores of the prediction's report; None unless all slices have finite scores."""


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """The scores of one case."""

    case_id: str
    regions: dict[str, Overlap]
    """Region -> overlap of prediction and reference."""
    surfaces: dict[str, SurfaceMeasures]
    """Region -> distances."""
    volumes_ml: dict[str, tuple[float, float]]
    """Region -> volume of reference and prediction."""
    burden: tuple[float, float] | None = None
    """Tumor over organ with tumors, of reference and prediction; NaN without organ, None without these labels."""
    lesions: LesionScores | None = None
    """None without a tumor label."""
    tumor: TumorPresence | None = None
    """None without a tumor label."""


def score_case(pair: Pair, masks: PairMasks, rules: Rules) -> CaseScores:
    """Score a prediction against its reference.

    Raises
    ------
    InputError
        A mask has values without a label, or the probability map has another grid.
    """
    labels, grid = rules.labels, masks.grid
    check_values(masks.truth, labels, pair.reference.case_id)
    check_values(masks.predicted, labels, pair.name)
    # outside this box, both masks are background
    box = bounding_box((masks.truth > 0) | (masks.predicted > 0)) or (slice(0, 1),) * 3
    regions = {
        name: (np.isin(masks.truth[box], values), np.isin(masks.predicted[box], values))
        for name, values in labels.regions().items()
    }
    overlaps = {name: count_overlap(truth, predicted) for name, (truth, predicted) in regions.items()}
    per_voxel = voxel_ml(grid.affine_lps)
    tumor, lesions = None, None
    if labels.tumor is not None:
        value = labels.tumor_value()
        truth, predicted = masks.truth == value, masks.predicted == value
        is_file = pair.stored is None
        tumor = compare_slices(truth, predicted, read_own_report(pair.prediction) if is_file else None)
        probability = read_tumor_probability(pair.prediction, labels, grid) if is_file else None
        lesions = score_lesions(truth, predicted, grid, rules, probability)
    return CaseScores(
        case_id=pair.reference.case_id,
        regions=overlaps,
        surfaces={
            name: measure_surfaces(predicted, truth, grid, rules.tolerance_mm)
            for name, (truth, predicted) in regions.items()
        },
        volumes_ml={name: (one.reference * per_voxel, one.predicted * per_voxel) for name, one in overlaps.items()},
        burden=compute_burden(overlaps, labels),
        lesions=lesions,
        tumor=tumor,
    )


def measure_surfaces(predicted: Mask, truth: Mask, grid: Grid, tolerance_mm: float) -> SurfaceMeasures:
    """Measure the distances of two masks bool[z, y, x] on one grid, or on the same part of it."""
    distances = surface_distances(predicted, truth, grid.spacing_mm)
    return SurfaceMeasures(
        assd_mm=distances.assd,
        rmsd_mm=distances.rmsd,
        mssd_mm=distances.mssd,
        hd95_mm=distances.hd95,
        surface_dice=distances.surface_dice(tolerance_mm),
    )


def compute_burden(overlaps: dict[str, Overlap], labels: Labels) -> tuple[float, float] | None:
    """Return tumor over organ with tumors, of reference and prediction; NaN without organ voxels."""
    if labels.organ is None or labels.tumor is None:
        return None
    organ, tumor = overlaps[labels.organ], overlaps[labels.tumor]
    return (
        tumor.reference / organ.reference if organ.reference else math.nan,
        tumor.predicted / organ.predicted if organ.predicted else math.nan,
    )


def score_lesions(truth: Mask, predicted: Mask, grid: Grid, rules: Rules, probability: Label | None) -> LesionScores:
    """Find and match the lesions of two masks bool[z, y, x] of a complete scan.

    Parameters
    ----------
    truth, predicted
        bool[z, y, x]: tumor voxels.
    probability
        uint8[z, y, x], 255 is certain; None if there is no map.
    """
    box = bounding_box(truth | predicted) or (slice(0, 1),) * 3
    predictions, references = (number_components(mask[box], grid, rules.mode) for mask in (predicted, truth))
    overlaps = count_shared_voxels(predictions, references)
    matchings = {threshold: match_lesions(overlaps, threshold, rules.mode) for threshold in THRESHOLDS}
    volumes_ml, references_ml = (
        tuple(voxels * voxel_ml(grid.affine_lps) for voxels in counts)
        for counts in (overlaps.predictions, overlaps.references)
    )
    probabilities = None if probability is None else mean_probabilities(probability[box], predictions)
    groups = matchings[THRESHOLDS[-1]]
    return LesionScores(
        matchings=matchings,
        diameters_mm=(
            measure_diameters(predictions, grid.affine_lps),
            measure_diameters(references, grid.affine_lps),
        ),
        references_ml=references_ml,
        detected=tuple(score_detected(predictions, references, groups, grid, rules.tolerance_mm)),
        by_probability=None if probabilities is None else find_hits(overlaps, probabilities),
        by_volume=find_hits(overlaps, volumes_ml),
    )


def score_detected(
    predictions: Numbers, references: Numbers, matching: Matching, grid: Grid, tolerance_mm: float
) -> Iterator[DetectedLesion]:
    """Yield the segmentation scores of each detected lesion, computed in the lesion's box."""
    from scipy.ndimage import find_objects

    boxes = [find_objects(numbers.astype(np.int32)) for numbers in (predictions, references)]
    for group in matching.groups:
        parts = [slices[number - 1] for slices, numbers in zip(boxes, group, strict=True) for number in numbers]
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*parts, strict=True))
        predicted, truth = np.isin(predictions[box], group[0]), np.isin(references[box], group[1])
        one = count_overlap(truth, predicted)
        yield DetectedLesion(
            dice=one.dice,
            jaccard=one.jaccard,
            voe=one.voe,
            rvd=one.rvd,
            rvd_lits=one.rvd_lits,
            **vars(measure_surfaces(predicted, truth, grid, tolerance_mm)),
        )


def find_hits(overlaps: SharedVoxels, scores: Sequence[float]) -> ScanHits:
    """Divide the predicted lesions into hits and false positives; `scores` has one value for each prediction.

    A prediction hits every reference with which it shares a voxel. As in LUNA16's rules for points, a reference counts
    once, with its best hit, and no hit is a false positive.
    """
    best: dict[int, float] = {}
    for p, r in overlaps.shared:
        best[r] = max(best.get(r, -math.inf), scores[p - 1])
    hitting = {p for p, _ in overlaps.shared}
    return ScanHits(
        found=tuple(best.values()),
        missed=len(overlaps.references) - len(best),
        false=tuple(score for p, score in enumerate(scores, start=1) if p not in hitting),
    )


def mean_probabilities(probability: Label, numbers: Numbers) -> list[float]:
    """Return the mean of uint8[z, y, x] in components 1 to n, 0 to 1."""
    voxels = np.bincount(numbers.ravel())
    sums = np.bincount(numbers.ravel(), weights=probability.ravel())
    return [float(value) for value in sums[1:] / voxels[1:] / 255]


def compare_slices(truth: Mask, predicted: Mask, report: InferReport | None) -> TumorPresence:
    """Compare the presence of tumor in the slices of two masks bool[z, y, x]; add the scores of voxels and report."""
    real, voxels = (np.count_nonzero(mask.reshape(len(mask), -1), axis=1) for mask in (truth, predicted))
    reported = None
    if report is not None and report.tumor_score is not None and len(report.slice_tumor_scores or ()) == len(truth):
        reported = TumorScores(slices=report.slice_tumor_scores or (), case=report.tumor_score)
    return TumorPresence(
        truth=tuple(real.astype(bool).tolist()),
        predicted=tuple(voxels.astype(bool).tolist()),
        voxels=TumorScores(slices=tuple(map(float, voxels.tolist())), case=float(voxels.sum())),
        reported=reported,
    )
