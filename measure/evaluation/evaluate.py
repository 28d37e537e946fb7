"""Predicted masks against references: every measure per case and over all cases, with what was left out and why.

Definitions: `slicemill.ct.overlap`, `slicemill.measure.evaluation.surface`,
`slicemill.measure.evaluation.detection`, `slicemill.measure.evaluation.froc`. The organ is scored with its tumors
(`Labels.regions`). Over all cases a measure is the mean of the cases that have it, or, where it is called global, one of
sums over all voxels or lesions. Intervals are 95 % percentiles over draws of cases.

In the mode `corrected` what has no meaning is left out of means and counted: Dice where neither mask has the region, distances
where one has not. In the mode `official` these are 1 where both masks are empty, and 9001 mm, as the LiTS program has it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.common.errors import InputError, LabelError
from slicemill.common.files import write_csv, write_json
from slicemill.common.progress import progress
from slicemill.common.terminal import format_cell, peak_mib
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Detection, Overlap, detection, mean_of, overlap
from slicemill.ct.pictures import Tile, draw_errors, evenly_spaced, gray, montage, save_png
from slicemill.ct.window import AIR_HU
from slicemill.measure.evaluation.detection import SIZES_MM, THRESHOLDS, Mode, by_size, f1
from slicemill.measure.evaluation.froc import froc_record
from slicemill.measure.evaluation.score import LARGE, TOLERANCE_MM, Answers, LesionScores, Rules, Scored, score
from slicemill.measure.evaluation.statistics import ratio_interval
from slicemill.measure.pairs import (
    Pair,
    check_agreement,
    image_of,
    labels_of_predictions,
    labels_of_references,
    pair_up,
)
from slicemill.measure.parallel import each

Mask = npt.NDArray[np.bool_]
Row = dict[str, Any]
ERROR_SLICES = 6
MEASURES = ("dice", "jaccard", "voe", "rvd", "rvd_lits", "precision", "recall")
DISTANCES = ("assd_mm", "rmsd_mm", "mssd_mm", "hd95_mm", "surface_dice")
EMPTY = {
    "corrected": "cases in which neither mask has the region are left out of means and counted; a false alarm scores 0",
    "official": "a case in which neither mask has the region scores Dice 1; a distance that does not exist is 9001 mm",
}
"""How cases without a region count, by mode."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All cases, and those that could not be compared."""

    rules: Rules
    cases: tuple[Scored, ...]
    failures: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    """References without a prediction."""
    alone: tuple[str, ...]
    """Predictions without a reference."""
    peak_mib: float = 0.0
    """The most memory that a process took which scored cases, MiB."""

    @property
    def labels(self) -> Labels:
        """Return the labels that were scored."""
        return self.rules.labels


@dataclass(frozen=True, kw_only=True)
class PairOutcome:
    """What became of a case."""

    scored: Scored | None = None
    reason: str = ""
    """Why it has no scores."""
    peak_mib: float = 0.0
    """Of the process, so far."""


def evaluate(
    predictions: Path,
    references: Path,
    out: Path | None,
    labels: Labels | None = None,
    *,
    mode: Mode = "corrected",
    tolerance_mm: float = TOLERANCE_MM,
    workers: int = 1,
) -> Evaluation:
    """Compare every prediction with its reference; write tables and pictures into `out`.

    Raises
    ------
    LabelError
        Nothing says what the label values mean, or the reports of the predictions and the references' store disagree.
    """
    pairing = pair_up(predictions, references)
    pairs = pairing.pairs
    if labels is None and (labels := labels_of_predictions(pairs)) is not None:
        check_agreement(pairs, labels)
    labels = labels or labels_of_references(pairs)
    if labels is None:
        raise LabelError(f"{predictions}: no report says what its label values mean; pass --labels liver=1,tumor=2.")
    rules = Rules(labels=labels, mode=mode, tolerance_mm=tolerance_mm)
    outcomes: dict[int, PairOutcome] = {}
    with progress("evaluate", len(pairs), "cases") as advance:
        for place, outcome in each(partial(score_pair, rules=rules, out=out), pairs, workers, _died):
            outcomes[place] = outcome
            advance(1, f"{sum(one.scored is None for one in outcomes.values())} failed")
    ordered = [outcomes[place] for place in range(len(pairs))]
    evaluation = Evaluation(
        rules=rules,
        cases=tuple(one.scored for one in ordered if one.scored is not None),
        failures=(
            *((pair.name, one.reason) for pair, one in zip(pairs, ordered, strict=True) if one.scored is None),
            *pairing.damaged,
        ),
        missing=pairing.missing,
        alone=pairing.alone,
        peak_mib=max([peak_mib(), *(one.peak_mib for one in ordered)]),
    )
    if out is not None:
        write_evaluation(out, evaluation)
    return evaluation


def score_pair(pair: Pair, rules: Rules, out: Path | None) -> PairOutcome:
    """Score one case, and draw its errors where there is a folder; what is wrong with its files is its outcome."""
    try:
        return PairOutcome(scored=_score(pair, rules, out), peak_mib=peak_mib())
    except (InputError, OSError) as error:
        return PairOutcome(reason=str(error), peak_mib=peak_mib())
    except MemoryError:
        return PairOutcome(reason=f"{pair.prediction}: not enough memory to score {pair.name}; use fewer --workers.")


def _died(pair: Pair) -> PairOutcome:
    """Return what became of a case whose process died."""
    reason = (
        f"{pair.prediction}: a worker process died at {pair.name}, perhaps for want of memory; use fewer --workers."
    )
    return PairOutcome(reason=reason)


def _score(pair: Pair, rules: Rules, out: Path | None) -> Scored:
    scored, truth, predicted = score(pair, rules)
    if out is not None:
        regions = rules.labels.regions()
        name = rules.labels.tumor or next(iter(regions))
        both = np.isin(truth, regions[name]), np.isin(predicted, regions[name])
        picture = error_picture(_background(pair, truth), *both, f"{scored.case_id}  {name}")
        save_png(out / f"{scored.case_id}_errors.png", picture)
    return scored


def _background(pair: Pair, truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return the scan to draw on; black where it cannot be read, since the scores need none."""
    try:
        return image_of(pair, truth)
    except (InputError, OSError):
        return np.full(truth.shape, AIR_HU, dtype=np.int16)


def error_picture(image: npt.NDArray[np.int16], truth: Mask, predicted: Mask, title: str) -> Image.Image:
    """Draw slices with true positives green, false positives red, false negatives orange; the one with most errors among them."""
    wrong = (truth ^ predicted).reshape(len(truth), -1).sum(axis=1)
    filled = np.flatnonzero((truth | predicted).reshape(len(truth), -1).any(axis=1)).tolist()
    chosen = set(evenly_spaced(filled or range(len(truth)), ERROR_SLICES - 1)) | {int(wrong.argmax())}
    tiles = [
        Tile(
            picture=np.concatenate([gray(image[z]), draw_errors(gray(image[z]), truth[z], predicted[z])], axis=1),
            caption=f"z={z}  Dice {format_cell(overlap(truth[z], predicted[z]).dice)}",
        )
        for z in sorted(chosen)
    ]
    return montage(
        tiles, min(3, len(tiles)), f"{title}   green: true positive, red: false positive, orange: false negative"
    )


def case_row(case: Scored, rules: Rules | None = None) -> Row:
    """Return a case as a row of the table."""
    row: Row = {"case_id": case.case_id}
    for name in case.regions:
        reference, predicted = case.volumes_ml[name]
        figures = case_figures(case, name, "corrected" if rules is None else rules.mode)
        row |= {f"{measure}_{name}": _null(figures[measure]) for measure in ("dice", "precision", "recall")}
        row |= {f"reference_{name}_ml": reference, f"predicted_{name}_ml": predicted}
        row |= {
            f"{measure}_{name}": _null(value) for measure, value in figures.items() if f"{measure}_{name}" not in row
        }
    if case.burden is not None:
        row |= {"reference_burden": _null(case.burden[0]), "predicted_burden": _null(case.burden[1])}
    if case.lesions is not None:
        row |= lesion_row(case.lesions)
    if case.tumor is not None:
        row |= {"has_tumor": any(case.tumor.truth), "tumor_found": any(case.tumor.found)}
        row |= {"tumor_voxels": int(case.tumor.voxels.case)}
        row |= {"tumor_score": case.tumor.reported.case if case.tumor.reported else None}
    return row


def case_figures(case: Scored, name: str, mode: Mode) -> dict[str, float]:
    """Return the measures of one region of a case, by the mode's rules for empty masks; NaN where there is none."""
    counts, (reference, predicted) = case.regions[name], case.volumes_ml[name]
    figures = {measure: float(getattr(counts, measure)) for measure in MEASURES} | dict(vars(case.surfaces[name]))
    if mode == "official":
        if not counts.reference and not counts.predicted:
            figures |= {"dice": 1.0, "jaccard": 1.0, "voe": 0.0}
        large = dict.fromkeys((*DISTANCES[:-1], "rvd", "rvd_lits"), LARGE)
        figures |= {measure: value for measure, value in large.items() if math.isnan(figures[measure])}
    return figures | {"error_ml": predicted - reference, "absolute_error_ml": abs(predicted - reference)}


def lesion_row(lesions: LesionScores) -> Row:
    """Return the lesions of a case as cells of its row."""
    any_matching = lesions.matchings[THRESHOLDS[0]]
    row: Row = {"reference_lesions": any_matching.references, "predicted_lesions": any_matching.predictions}
    return row | {
        f"lesions_found_above_{threshold:g}": matching.true_positive
        for threshold, matching in lesions.matchings.items()
    }


def totals(evaluation: Evaluation) -> dict[str, Any]:
    """Return the scores over all cases."""
    rules, cases = evaluation.rules, evaluation.cases
    result: dict[str, Any] = {
        "mode": rules.mode,
        "cases": len(cases),
        "empty_regions": EMPTY[rules.mode],
        "tolerance_mm": rules.tolerance_mm,
        "regions": {name: region_totals(cases, name, rules.mode) for name in evaluation.labels.regions()},
        "burden": burden_totals(cases, rules),
        "lesions": lesion_totals([case.lesions for case in cases if case.lesions is not None]),
        "tumor_by_case": None,
        "tumor_by_slice": None,
        "tumor_ranked_by": None,
    }
    return result | tumor_totals([case.tumor for case in cases if case.tumor is not None])


def tumor_totals(answers: Sequence[Answers]) -> Row:
    """Return how well tumor is told from none, by case and by slice; ranked by the reports' scores where every case has them."""
    if not answers:
        return {}
    reported = [one.reported for one in answers if one.reported is not None]
    complete = len(reported) == len(answers)
    scores = reported if complete else [one.voxels for one in answers]
    by_case = detection(
        [any(one.truth) for one in answers], [any(one.found) for one in answers], [one.case for one in scores]
    )
    by_slice = detection(
        [value for one in answers for value in one.truth],
        [value for one in answers for value in one.found],
        [value for one in scores for value in one.slices],
    )
    return {
        "tumor_by_case": detection_row(by_case),
        "tumor_by_slice": detection_row(by_slice),
        "tumor_ranked_by": "the reports' scores" if complete else "predicted voxels",
    }


def region_totals(cases: Sequence[Scored], name: str, mode: Mode) -> Row:
    """Return one region's scores over all cases, with 95 % intervals."""
    counts = [case.regions[name] for case in cases]
    pooled = sum(counts, Overlap())
    figures = [case_figures(case, name, mode) for case in cases]
    row: Row = {
        "dice_per_case": _null(mean_of([one["dice"] for one in figures])),
        "cases_without_region": sum(not one.reference and not one.predicted for one in counts),
        "cases_without_distances": sum(not one.reference or not one.predicted for one in counts),
        "dice_global": _null(pooled.dice),
        "precision_global": _null(pooled.precision),
        "recall_global": _null(pooled.recall),
    }
    intervals = {
        "dice_global": ratio_interval(
            [2 * one.true_positive for one in counts], [one.reference + one.predicted for one in counts]
        ),
        "precision_global": ratio_interval([one.true_positive for one in counts], [one.predicted for one in counts]),
        "recall_global": ratio_interval([one.true_positive for one in counts], [one.reference for one in counts]),
    }
    counted = dict.fromkeys(intervals, len(cases))
    for measure in figures[0] if figures else ():
        values = [one[measure] for one in figures]
        key = f"{measure}_per_case" if measure in MEASURES else measure
        row[key] = _null(mean_of(values))
        intervals[key] = mean_interval(values)
        counted[key] = sum(not math.isnan(value) for value in values)
    return row | {
        "cases_counted": counted,
        "intervals": {key: [_null(low), _null(high)] for key, (low, high) in intervals.items()},
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over cases; NaN leaves a case out."""
    kept = [value for value in values if not math.isnan(value)]
    return ratio_interval(kept, [1.0] * len(kept))


def burden_totals(cases: Sequence[Scored], rules: Rules) -> Row | None:
    """Return the errors of tumor burden, reference - prediction, over the cases that have one."""
    pairs = [case.burden for case in cases if case.burden is not None]
    if not pairs:
        return None
    official = rules.mode == "official"
    errors = [LARGE if official and math.isnan(predicted) else truth - predicted for truth, predicted in pairs]
    kept = [error for error in errors if not math.isnan(error)]
    sizes = kept if official else [abs(error) for error in kept]
    return {
        "rmse": math.sqrt(sum(error**2 for error in kept) / len(kept)) if kept else None,
        "maximum": max(sizes, default=None),
        "maximum_is": "the largest signed error" if official else "the largest absolute error",
        "cases": len(kept),
        "cases_without_organ": len(errors) - len(kept),
    }


def lesion_totals(lesions: Sequence[LesionScores]) -> Row | None:
    """Return how lesions were detected over all cases: pooled counts, by size, and free-response curve."""
    if not lesions:
        return None
    result: Row = {f"overlap_above_{threshold:g}": detected(lesions, threshold) for threshold in THRESHOLDS}
    found = [scores for one in lesions for scores in one.segmented]
    segmented = {key: _null(mean_of([scores[key] for scores in found])) for key in (found[0] if found else ())}
    by_probability = [one.by_probability for one in lesions]
    scored = all(marks is not None for marks in by_probability)
    marks = [(one.by_probability if scored else None) or one.by_volume for one in lesions]
    return result | {
        "segmentation_of_detected_above_0.5": segmented | {"lesions": len(found)},
        "froc": froc_record(marks)
        | {
            "score": "mean probability" if scored else "volume",
            "hit": "a predicted lesion hits every reference lesion with which it shares a voxel",
        },
    }


def detected(lesions: Sequence[LesionScores], threshold: float) -> Row:
    """Return pooled detection at one threshold of overlap."""
    matchings = [one.matchings[threshold] for one in lesions]
    hits, predictions, references = (
        [getattr(matching, part) for matching in matchings] for part in ("true_positive", "predictions", "references")
    )
    sizes = by_size(matchings, [one.diameters_mm for one in lesions])
    limits = f"below {SIZES_MM[0]:g}, below {SIZES_MM[1]:g}, and from {SIZES_MM[1]:g} mm longest axial diameter on"
    together = [a + b for a, b in zip(predictions, references, strict=True)]
    return {
        "true_positive": sum(hits),
        "false_positive": sum(predictions) - sum(hits),
        "false_negative": sum(references) - sum(hits),
        "precision": _null(_share(sum(hits), sum(predictions))),
        "recall": _null(_share(sum(hits), sum(references))),
        "f1": _null(f1(sum(hits), sum(predictions), sum(references))),
        "intervals": {
            "precision": [_null(value) for value in ratio_interval(hits, predictions)],
            "recall": [_null(value) for value in ratio_interval(hits, references)],
            "f1": [_null(value) for value in ratio_interval([2 * hit for hit in hits], together)],
        },
        "cases_without_reference_lesion": sum(not number for number in references),
        "by_size": {
            name: {"found": hit, "references": real, "false": false, "f1": _null(f1(hit, hit + false, real))}
            for name, (hit, real, false) in sizes.items()
        },
        "sizes": limits,
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def detection_row(found: Detection) -> dict[str, Any]:
    """Return yes-or-no scores as a record."""
    return {
        "positives": found.true_positive + found.false_negative,
        "negatives": found.true_negative + found.false_positive,
        "accuracy": _null(found.accuracy),
        "sensitivity": _null(found.sensitivity),
        "specificity": _null(found.specificity),
        "auc": _null(found.auc),
    }


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.csv."""
    rows = [case_row(case, evaluation.rules) for case in evaluation.cases]
    write_json(
        out / "evaluation.json",
        {
            **totals(evaluation),
            **evaluation.labels.as_json(),
            "by_case": rows,
            "failures": [{"name": name, "reason": reason} for name, reason in evaluation.failures],
            "references_without_prediction": list(evaluation.missing),
            "predictions_without_reference": list(evaluation.alone),
            "peak_mib": round(evaluation.peak_mib, 1),
        },
    )
    write_csv(out / "evaluation.csv", rows)


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
