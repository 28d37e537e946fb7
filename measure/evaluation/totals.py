"""Scores over all cases, with 95 % intervals.

A measure is averaged over the cases in which it is defined. Measures named global are computed from sums over all
voxels or lesions. Intervals are 95 % bootstrap percentiles over cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from slicemill.common.documents import to_document
from slicemill.ct.overlap import Detection, Overlap, mean_without_nan, score_detection
from slicemill.measure.evaluation.detection import SIZES_MM, THRESHOLDS, Mode, SizeCounts, count_by_size, f1
from slicemill.measure.evaluation.froc import FreeResponse, NoFindings, analyze_free_response
from slicemill.measure.evaluation.region import MISSING_DISTANCE_MM, OVERLAPS, measure_region
from slicemill.measure.evaluation.score import (
    CaseScores,
    DetectedLesion,
    LesionScores,
    Rules,
    TumorPresence,
    TumorScores,
)
from slicemill.measure.evaluation.statistics import nan_to_none, ratio_interval

Interval = tuple[float | None, float | None]
"""Lower and upper end; None below two cases."""
EMPTY_REGIONS: dict[Mode, str] = {
    "corrected": "cases in which neither mask has the region are left out of means and counted; a false alarm scores 0",
    "official": "a case in which neither mask has the region scores Dice 1; a distance that does not exist is 9001 mm",
}
"""Treatment of cases without a region. This text is written to evaluation.json."""
SIZES = f"below {SIZES_MM[0]:g}, below {SIZES_MM[1]:g}, and from {SIZES_MM[1]:g} mm longest axial diameter on"
HIT = "a predicted lesion hits every reference lesion with which it shares a voxel"


@dataclass(frozen=True, kw_only=True)
class RegionTotals:
    """The scores of one region over all cases."""

    dice_per_case: float | None
    cases_without_region: int
    """Cases in which neither mask has the region."""
    cases_without_distances: int
    """Cases in which at least one mask lacks the region."""
    dice_global: float | None
    precision_global: float | None
    recall_global: float | None
    means: dict[str, float | None]
    """Measure -> mean over the cases that have it."""
    cases_counted: dict[str, int]
    """Measure -> cases that have it."""
    intervals: dict[str, Interval]
    """Measure -> 95 % interval."""

    def measures(self) -> dict[str, float | None]:
        """Return all measures with their values, in order."""
        first = ("dice_per_case", "dice_global", "precision_global", "recall_global")
        return {name: getattr(self, name) for name in first} | self.means

    def as_json(self) -> dict[str, Any]:
        """Return the totals as they are written, with the means next to the other measures."""
        document = to_document(self)
        means, counted, intervals = (document.pop(key) for key in ("means", "cases_counted", "intervals"))
        return {**document, **means, "cases_counted": counted, "intervals": intervals}


@dataclass(frozen=True, kw_only=True)
class BurdenTotals:
    """The errors of tumor burden, reference minus prediction."""

    rmse: float | None
    """Root mean square error."""
    maximum: float | None
    """Largest error; `maximum_is` explains its sign."""
    maximum_is: str
    cases: int
    """Cases with an error."""
    cases_without_organ: int
    """Cases left out, because a mask has no organ."""


@dataclass(frozen=True, kw_only=True)
class DetectionTotals:
    """Lesions detected at one threshold of overlap, over all cases."""

    true_positive: int
    false_positive: int
    false_negative: int
    precision: float | None
    recall: float | None
    f1: float | None
    intervals: dict[Literal["precision", "recall", "f1"], Interval]
    cases_without_reference_lesion: int
    by_size: dict[str, SizeCounts]
    sizes: str = SIZES
    """Explains the sizes."""


@dataclass(frozen=True, kw_only=True)
class LesionTotals:
    """Lesion detection over all cases."""

    by_threshold: dict[float, DetectionTotals]
    """Threshold of overlap -> detection."""
    segmentation: dict[str, float | None]
    """Measure -> mean over the lesions that were detected above the highest threshold; empty without any."""
    detected: int
    """Lesions that were detected above the highest threshold."""
    response: FreeResponse | NoFindings
    ranked_by: str
    """Score that ranks the lesions in the free-response curve."""

    def as_json(self) -> dict[str, Any]:
        """Return the totals as they are written."""
        return {
            **{overlap_name(threshold): to_document(one) for threshold, one in self.by_threshold.items()},
            f"segmentation_of_detected_above_{THRESHOLDS[-1]:g}": self.segmentation | {"lesions": self.detected},
            "froc": to_document(self.response) | {"score": self.ranked_by, "hit": HIT},
        }


@dataclass(frozen=True, kw_only=True)
class TumorTotals:
    """Classification of cases or slices: tumor or no tumor."""

    positives: int
    negatives: int
    accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    auc: float | None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """All scores over all cases."""

    mode: Mode
    cases: int
    empty_regions: str
    """Treatment of cases without a region."""
    tolerance_mm: float
    regions: dict[str, RegionTotals]
    burden: BurdenTotals | None
    """None without labels of organ and tumor."""
    lesions: LesionTotals | None
    """None without a tumor label."""
    tumor_by_case: TumorTotals | None
    tumor_by_slice: TumorTotals | None
    tumor_ranked_by: str | None
    """The scores that the AUC is computed from."""

    def as_json(self) -> dict[str, Any]:
        """Return the totals as they are written to evaluation.json."""
        return to_document(self) | {
            "regions": {name: one.as_json() for name, one in self.regions.items()},
            "lesions": self.lesions.as_json() if self.lesions else None,
        }


def overlap_name(threshold: float) -> str:
    """Return the key of a threshold of overlap in evaluation.json.

    >>> overlap_name(0.5)
    'overlap_above_0.5'
    """
    return f"overlap_above_{threshold:g}"


def sum_up(cases: Sequence[CaseScores], rules: Rules) -> Totals:
    """Compute the scores over all cases."""
    presence = [case.tumor for case in cases if case.tumor is not None]
    scores_are_complete = all(one.reported is not None for one in presence)
    return Totals(
        mode=rules.mode,
        cases=len(cases),
        empty_regions=EMPTY_REGIONS[rules.mode],
        tolerance_mm=rules.tolerance_mm,
        regions={name: sum_up_region(cases, name, rules.mode) for name in rules.labels.regions()},
        burden=sum_up_burden(cases, rules.mode),
        lesions=sum_up_lesions([case.lesions for case in cases if case.lesions is not None]),
        tumor_by_case=_sum_up_cases(presence) if presence else None,
        tumor_by_slice=_sum_up_slices(presence) if presence else None,
        tumor_ranked_by=None if not presence else "the reports' scores" if scores_are_complete else "predicted voxels",
    )


def sum_up_region(cases: Sequence[CaseScores], name: str, mode: Mode) -> RegionTotals:
    """Compute the scores of one region over all cases."""
    counts = [case.regions[name] for case in cases]
    pooled = sum(counts, Overlap())
    hits, predicted = [one.true_positive for one in counts], [one.predicted for one in counts]
    reference = [one.reference for one in counts]
    both = [a + b for a, b in zip(reference, predicted, strict=True)]
    intervals = {
        "dice_global": _optional(ratio_interval([2 * hit for hit in hits], both)),
        "precision_global": _optional(ratio_interval(hits, predicted)),
        "recall_global": _optional(ratio_interval(hits, reference)),
    }
    counted = dict.fromkeys(intervals, len(cases))
    means: dict[str, float | None] = {}
    measures = [dict(measure_region(case, name, mode).items()) for case in cases]
    for measure in measures[0] if measures else ():
        kept = [one[measure] for one in measures if not math.isnan(one[measure])]
        key = f"{measure}_per_case" if measure in OVERLAPS else measure
        means[key] = nan_to_none(mean_without_nan(kept))
        intervals[key] = _optional(ratio_interval(kept, [1.0] * len(kept)))
        counted[key] = len(kept)
    return RegionTotals(
        dice_per_case=means.get("dice_per_case"),
        cases_without_region=sum(not one.reference and not one.predicted for one in counts),
        cases_without_distances=sum(not one.reference or not one.predicted for one in counts),
        dice_global=nan_to_none(pooled.dice),
        precision_global=nan_to_none(pooled.precision),
        recall_global=nan_to_none(pooled.recall),
        means=means,
        cases_counted=counted,
        intervals=intervals,
    )


def sum_up_burden(cases: Sequence[CaseScores], mode: Mode) -> BurdenTotals | None:
    """Compute the errors of tumor burden over the cases that have one; None without such cases."""
    pairs = [case.burden for case in cases if case.burden is not None]
    if not pairs:
        return None
    official = mode == "official"
    errors = [
        MISSING_DISTANCE_MM if official and math.isnan(predicted) else truth - predicted for truth, predicted in pairs
    ]
    kept = [error for error in errors if not math.isnan(error)]
    return BurdenTotals(
        rmse=math.sqrt(sum(error**2 for error in kept) / len(kept)) if kept else None,
        maximum=max(kept if official else map(abs, kept), default=None),
        maximum_is="the largest signed error" if official else "the largest absolute error",
        cases=len(kept),
        cases_without_organ=len(errors) - len(kept),
    )


def sum_up_lesions(lesions: Sequence[LesionScores]) -> LesionTotals | None:
    """Compute lesion detection over all cases; None without cases.

    The free-response curve is ranked by mean probability if every case has a probability map, or else by volume.
    """
    if not lesions:
        return None
    detected = [one for scores in lesions for one in scores.detected]
    names = [field.name for field in fields(DetectedLesion)] if detected else []
    by_probability = [one.by_probability for one in lesions if one.by_probability is not None]
    complete = len(by_probability) == len(lesions)
    return LesionTotals(
        by_threshold={threshold: sum_up_detection(lesions, threshold) for threshold in THRESHOLDS},
        segmentation={name: nan_to_none(mean_without_nan([getattr(one, name) for one in detected])) for name in names},
        detected=len(detected),
        response=analyze_free_response(by_probability if complete else [one.by_volume for one in lesions]),
        ranked_by="mean probability" if complete else "volume",
    )


def sum_up_detection(lesions: Sequence[LesionScores], threshold: float) -> DetectionTotals:
    """Compute lesion detection at one threshold of overlap."""
    matchings = [one.matchings[threshold] for one in lesions]
    hits = [one.true_positive for one in matchings]
    predictions, references = [one.predictions for one in matchings], [one.references for one in matchings]
    both = [a + b for a, b in zip(predictions, references, strict=True)]
    found, predicted, real = sum(hits), sum(predictions), sum(references)
    return DetectionTotals(
        true_positive=found,
        false_positive=predicted - found,
        false_negative=real - found,
        precision=found / predicted if predicted else None,
        recall=found / real if real else None,
        f1=nan_to_none(f1(found, predicted, real)),
        intervals={
            "precision": _optional(ratio_interval(hits, predictions)),
            "recall": _optional(ratio_interval(hits, references)),
            "f1": _optional(ratio_interval([2 * hit for hit in hits], both)),
        },
        cases_without_reference_lesion=sum(not number for number in references),
        by_size=count_by_size(matchings, [one.diameters_mm for one in lesions]),
    )


def _sum_up_cases(cases: Sequence[TumorPresence]) -> TumorTotals:
    return _to_totals(
        score_detection(
            [any(one.truth) for one in cases],
            [any(one.predicted) for one in cases],
            [scores.case for scores in _scores(cases)],
        )
    )


def _sum_up_slices(cases: Sequence[TumorPresence]) -> TumorTotals:
    return _to_totals(
        score_detection(
            [value for one in cases for value in one.truth],
            [value for one in cases for value in one.predicted],
            [value for scores in _scores(cases) for value in scores.slices],
        )
    )


def _scores(cases: Sequence[TumorPresence]) -> list[TumorScores]:
    """Return the reports' scores if every case has them, or else the predicted voxels for all cases."""
    reported = [one.reported for one in cases if one.reported is not None]
    return reported if len(reported) == len(cases) else [one.voxels for one in cases]


def _to_totals(counts: Detection) -> TumorTotals:
    return TumorTotals(
        positives=counts.true_positive + counts.false_negative,
        negatives=counts.true_negative + counts.false_positive,
        accuracy=nan_to_none(counts.accuracy),
        sensitivity=nan_to_none(counts.sensitivity),
        specificity=nan_to_none(counts.specificity),
        auc=nan_to_none(counts.auc),
    )


def _optional(interval: tuple[float, float]) -> Interval:
    return nan_to_none(interval[0]), nan_to_none(interval[1])
