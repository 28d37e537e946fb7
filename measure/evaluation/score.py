"""One case's scores: overlap, distances, volumes, burden, lesions, tumor yes or no per slice."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, UsageError
from slicemill.ct.formats.nifti.header import read_header
from slicemill.ct.formats.nifti.stream import bytes_of, open_voxels, read_exactly, skip
from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import bounding_box
from slicemill.ct.overlap import Overlap, overlap
from slicemill.measure.evaluation.detection import (
    THRESHOLDS,
    Crossing,
    Matching,
    Mode,
    Numbers,
    cross,
    diameters,
    match,
    numbered,
)
from slicemill.measure.evaluation.froc import Marks
from slicemill.measure.evaluation.surface import SurfaceDistances, surface_distances
from slicemill.measure.pairs import Pair, check_values, masks_of, probability_path, report_of

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.uint8]
LARGE = 9001.0
"""What the LiTS program puts for a distance that does not exist, mm, and for a burden without a predicted organ."""
TOLERANCE_MM = 2.0
"""About a reader's own spread along the border of a liver; state yours."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is scored how."""

    labels: Labels
    mode: Mode = "corrected"
    tolerance_mm: float = TOLERANCE_MM
    """Of the surface Dice."""

    def __post_init__(self) -> None:
        """Check that the tolerance is a length."""
        if not 0 <= self.tolerance_mm < math.inf:
            raise UsageError(f"--tolerance-mm {self.tolerance_mm}: must be a length in mm, 0 or more, like 2.")


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Distances between two surfaces, mm; NaN where one mask is empty."""

    assd_mm: float
    rmsd_mm: float
    mssd_mm: float
    hd95_mm: float
    surface_dice: float


@dataclass(frozen=True, kw_only=True)
class LesionScores:
    """How the lesions of a case were detected."""

    matchings: dict[float, Matching]
    """Threshold of overlap -> matching."""
    diameters_mm: tuple[tuple[float, ...], tuple[float, ...]]
    """Longest axial diameter of each prediction, and of each reference."""
    segmented: tuple[dict[str, float], ...]
    """Scores of each pair detected above 0.5."""
    by_probability: Marks | None
    """Judged candidates with their mean probability; None where a prediction has no map beside it."""
    by_volume: Marks
    """The same with their voxels' volume in ml."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How likely a tumor is, in each slice and in the whole case."""

    slices: tuple[float, ...]
    case: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Tumor yes or no."""

    truth: tuple[bool, ...]
    """Of each slice."""
    found: tuple[bool, ...]
    voxels: Scores
    """Predicted ones."""
    reported: Scores | None
    """Probabilities of the report beside the prediction; None where it has none that are finite."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A case that was compared."""

    case_id: str
    regions: dict[str, Overlap]
    surfaces: dict[str, Surface]
    volumes_ml: dict[str, tuple[float, float]]
    """Reference and prediction."""
    burden: tuple[float, float] | None = None
    """Tumor over organ with tumor, reference and prediction; None where no organ or tumor is named, NaN without organ."""
    lesions: LesionScores | None = None
    tumor: Answers | None = None
    """None where no tumor is named."""


def score(pair: Pair, rules: Rules) -> tuple[Scored, Label, Label]:
    """Compare a prediction with its reference; return the scores, the reference and the prediction uint8[z, y, x].

    Raises
    ------
    InputError
        A mask cannot be read, they lie on different grids, or hold values that no label has.
    """
    labels = rules.labels
    predicted, truth, grid = masks_of(pair)
    check_values(truth, labels, pair.reference.case_id)
    check_values(predicted, labels, pair.name)
    box = bounding_box((truth > 0) | (predicted > 0)) or (slice(0, 1),) * 3
    masks = {
        name: (np.isin(truth[box], values), np.isin(predicted[box], values))
        for name, values in labels.regions().items()
    }
    counts = {name: overlap(*both) for name, both in masks.items()}
    per_voxel = voxel_ml(grid.affine_lps)
    tumor, lesions = None, None
    if labels.tumor is not None:
        value = labels.tumor_value()
        tumor = tumor_answers(truth == value, predicted == value, report_of(pair))
        probability = None if pair.case is not None else probability_beside(pair.prediction, labels, grid)
        lesions = lesion_scores(truth == value, predicted == value, grid, rules, probability)
    scored = Scored(
        case_id=pair.reference.case_id,
        regions=counts,
        surfaces={name: surface_of(both[1], both[0], grid, rules.tolerance_mm) for name, both in masks.items()},
        volumes_ml={name: (one.reference * per_voxel, one.predicted * per_voxel) for name, one in counts.items()},
        burden=burden_of(counts, labels),
        lesions=lesions,
        tumor=tumor,
    )
    return scored, truth, predicted


def surface_of(predicted: Mask, truth: Mask, grid: Grid, tolerance_mm: float) -> Surface:
    """Return the distances of two masks bool[z, y, x] on one grid, or on the same part of it."""
    return summed_up(surface_distances(predicted, truth, grid.spacing_mm), tolerance_mm)


def summed_up(found: SurfaceDistances, tolerance_mm: float) -> Surface:
    """Return what distances amount to."""
    return Surface(
        assd_mm=found.assd,
        rmsd_mm=found.rmsd,
        mssd_mm=found.mssd,
        hd95_mm=found.hd95,
        surface_dice=found.surface_dice(tolerance_mm),
    )


def burden_of(counts: dict[str, Overlap], labels: Labels) -> tuple[float, float] | None:
    """Return tumor over organ with tumor, of reference and prediction; NaN where there is no organ."""
    if labels.organ is None or labels.tumor is None:
        return None
    organ, tumor = counts[labels.organ], counts[labels.tumor]
    return (
        tumor.reference / organ.reference if organ.reference else math.nan,
        tumor.predicted / organ.predicted if organ.predicted else math.nan,
    )


def lesion_scores(truth: Mask, predicted: Mask, grid: Grid, rules: Rules, probability: Label | None) -> LesionScores:
    """Find and match the lesions of two whole masks bool[z, y, x]; `probability`: uint8[z, y, x], 255 is certain."""
    box = bounding_box(truth | predicted) or (slice(0, 1),) * 3
    crops = [numbered(mask[box], grid, rules.mode) for mask in (predicted, truth)]
    crossing = cross(*crops)
    matchings = {threshold: match(crossing, threshold, rules.mode) for threshold in THRESHOLDS}
    volumes = [voxels * voxel_ml(grid.affine_lps) for voxels in crossing.predictions]
    scores = None if probability is None else mean_in(probability[box], crops[0])
    return LesionScores(
        matchings=matchings,
        diameters_mm=(diameters(crops[0], grid.affine_lps), diameters(crops[1], grid.affine_lps)),
        segmented=tuple(segmented(crops, matchings[THRESHOLDS[-1]], grid, rules.tolerance_mm)),
        by_probability=None if scores is None else judged(crossing, scores),
        by_volume=judged(crossing, volumes),
    )


def segmented(
    crops: Sequence[Numbers], matching: Matching, grid: Grid, tolerance_mm: float
) -> Iterator[dict[str, float]]:
    """Yield the scores of each detected lesion of prediction and reference, uint32[z, y, x], looking at its own box only."""
    from scipy.ndimage import find_objects

    boxes = [find_objects(numbers.astype(np.int32)) for numbers in crops]
    for group in matching.groups:
        sides = [found[number - 1] for found, numbers in zip(boxes, group, strict=True) for number in numbers]
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*sides, strict=True))
        yield pair_scores(np.isin(crops[0][box], group[0]), np.isin(crops[1][box], group[1]), grid, tolerance_mm)


def pair_scores(predicted: Mask, truth: Mask, grid: Grid, tolerance_mm: float) -> dict[str, float]:
    """Return overlap and distances of one detected lesion."""
    one = overlap(truth, predicted)
    surface = surface_of(predicted, truth, grid, tolerance_mm)
    return {"dice": one.dice, "jaccard": one.jaccard, "voe": one.voe, "rvd": one.rvd, "rvd_lits": one.rvd_lits} | vars(
        surface
    )


def judged(crossing: Crossing, scores: Sequence[float]) -> Marks:
    """Judge predicted lesions as candidates: one hits every reference with which it shares a voxel.

    A reference scores with its best hit, and no hit is a false positive, as in LUNA16's rules for points.
    """
    best: dict[int, float] = {}
    for p, r in crossing.shared:
        best[r] = max(best.get(r, -math.inf), scores[p - 1])
    hitting = {p for p, _ in crossing.shared}
    return Marks(
        found=tuple(best.values()),
        missed=len(crossing.references) - len(best),
        false=tuple(score for p, score in enumerate(scores, start=1) if p not in hitting),
    )


def mean_in(probability: Label, numbers: npt.NDArray[np.uint32]) -> list[float]:
    """Return the mean of uint8[z, y, x] in components 1 to n, 0 to 1."""
    voxels = np.bincount(numbers.ravel())
    sums = np.bincount(numbers.ravel(), weights=probability.ravel())
    return [float(value) for value in sums[1:] / voxels[1:] / 255]


def probability_beside(mask: Path, labels: Labels, grid: Grid) -> Label | None:
    """Return the tumor's probability that `infer --probability` wrote beside a mask, uint8[z, y, x]; None where there is none."""
    path = probability_path(mask, labels)
    return read_probability(path, grid) if path is not None and path.exists() else None


def read_probability(path: Path, grid: Grid) -> Label:
    """Return a map of `infer --probability`, stored as 0 to 255, on the grid of its mask, uint8[z, y, x].

    Raises
    ------
    GeometryError
        It has another shape, or other voxels than bytes.
    """
    header = read_header(path)
    if header.grid.shape != grid.shape or header.dtype != np.uint8:
        raise GeometryError(
            f"{path}: must hold bytes on its mask's grid {grid.shape}; found {header.dtype}, {header.grid.shape}. Write it again with `infer`."
        )
    ni, nj, nk = header.grid.shape
    voxels = np.empty((nk, nj, ni), dtype=np.uint8)
    stream, _ = open_voxels(path, hashed=False)
    try:
        skip(stream, header.data_offset, path)
        read_exactly(stream, bytes_of(voxels), path)
    finally:
        stream.close()
    return np.ascontiguousarray(grid.to_stored(voxels), dtype=np.uint8)


def tumor_answers(truth: Mask, predicted: Mask, report: dict[str, Any]) -> Answers:
    """Return the answers of two masks bool[z, y, x], with both kinds of scores."""
    real, voxels = (np.count_nonzero(mask.reshape(len(mask), -1), axis=1) for mask in (truth, predicted))
    scores, case_score = report.get("slice_tumor_scores"), report.get("tumor_score")
    usable = isinstance(scores, list) and len(scores) == len(truth) and all(map(_is_finite, [*scores, case_score]))
    return Answers(
        truth=tuple(real.astype(bool).tolist()),
        found=tuple(voxels.astype(bool).tolist()),
        voxels=Scores(slices=tuple(map(float, voxels.tolist())), case=float(voxels.sum())),
        reported=Scores(slices=tuple(map(float, scores or ())), case=float(case_score or 0)) if usable else None,
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
