"""Evaluates predicted masks against references: scores of each case and of all cases, and the cases left out.

The measures are defined in `slicemill.ct.overlap` and in `surface`, `detection` and `froc` of this package. The organ
is scored with its tumors (`Labels.regions`). In the mode `corrected`, undefined measures are left out of means and
counted: Dice if neither mask has the region, distances if a mask lacks it. In the mode `official`, Dice is 1 if both
masks are empty, and undefined distances are 9001 mm, as in the LiTS program.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.common.errors import LabelError
from slicemill.common.failures import explain_failure
from slicemill.common.files import write_csv, write_json
from slicemill.common.parallel import map_isolated
from slicemill.common.progress import progress
from slicemill.common.terminal import peak_mib
from slicemill.ct.labels import Labels
from slicemill.ct.page_options import VIEWER_MB
from slicemill.ct.pictures import save_png
from slicemill.measure.evaluation.detection import Mode
from slicemill.measure.evaluation.error_page import ErrorCase, write_error_page
from slicemill.measure.evaluation.error_picture import draw_error_picture
from slicemill.measure.evaluation.region import make_row
from slicemill.measure.evaluation.score import TOLERANCE_MM, CaseScores, Rules, score_case
from slicemill.measure.evaluation.totals import Totals, sum_up
from slicemill.measure.inputs.label_names import check_stored_names, find_labels, split_ignored
from slicemill.measure.inputs.masks import PairMasks, leave_out, read_background, read_masks
from slicemill.measure.inputs.pairs import Pair, StoredMask, pair_up


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of all cases, and the cases that could not be scored."""

    rules: Rules
    cases: tuple[CaseScores, ...]
    failures: tuple[tuple[str, str], ...]
    """Name and reason of each case that could not be scored."""
    missing: tuple[str, ...]
    """References without a prediction."""
    alone: tuple[str, ...]
    """Predictions without a reference."""
    peak_mib: float
    """Peak memory of the scoring processes, MiB."""
    warnings: tuple[str, ...] = ()
    """Warnings about masks, with their files."""

    @property
    def labels(self) -> Labels:
        """Return the scored labels."""
        return self.rules.labels

    @cached_property
    def totals(self) -> Totals:
        """Return the scores over all cases."""
        return sum_up(self.cases, self.rules)


@dataclass(frozen=True, kw_only=True)
class PairOutcome:
    """The scores of a pair, or the reason of its failure."""

    scores: CaseScores | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    peak_mib: float = 0.0
    """Peak memory of the process so far, MiB."""


@dataclass(frozen=True, kw_only=True)
class ErrorPages:
    """Where the errors of each case are shown."""

    folder: Path
    viewer_mb: float = VIEWER_MB
    """MiB of slices in each page; 0 for no pages."""


def evaluate(
    predictions: Path,
    references: Path,
    out: Path | ErrorPages | None,
    labels: Labels | None = None,
    *,
    mode: Mode = "corrected",
    tolerance_mm: float = TOLERANCE_MM,
    workers: int = 1,
) -> Evaluation:
    """Score every prediction against its reference; write tables, pictures and pages into `out`.

    Raises
    ------
    LabelError
        The label values have no names, or the predictions' labels contradict each other or the references' store.

    Voxels that a reference calls `slicemill.ct.labels.IGNORE` are left out: they count as background in both masks.
    """
    pairing = pair_up(predictions, references)
    labels = labels or find_labels(pairing.pairs)
    if labels is None:
        raise LabelError(
            f"{predictions}: the label values have no names; pass --labels, like --labels liver=1,tumor=2."
        )
    for stored in (mask for pair in pairing.pairs for mask in (pair.stored, pair.reference.mask)):
        if isinstance(stored, StoredMask):
            check_stored_names(stored.case, labels)
    labels, ignored = split_ignored(labels, pairing.pairs)
    rules = Rules(labels=labels, mode=mode, tolerance_mm=tolerance_mm, ignored=ignored)
    pages = ErrorPages(folder=out) if isinstance(out, Path) else out
    outcomes = _score_pairs(pairing.pairs, rules, pages, workers)
    evaluation = Evaluation(
        rules=rules,
        cases=tuple(one.scores for one in outcomes if one.scores is not None),
        failures=(
            *((pair.name, one.reason) for pair, one in zip(pairing.pairs, outcomes, strict=True) if one.scores is None),
            *pairing.damaged,
        ),
        missing=pairing.missing,
        alone=pairing.alone,
        warnings=tuple(warning for one in outcomes for warning in one.warnings),
        peak_mib=max([peak_mib(), *(one.peak_mib for one in outcomes)]),
    )
    if pages is not None:
        write_evaluation(pages.folder, evaluation)
    return evaluation


def _score_pairs(pairs: Sequence[Pair], rules: Rules, out: ErrorPages | None, workers: int) -> list[PairOutcome]:
    outcomes: dict[int, PairOutcome] = {}
    score = partial(score_pair, rules=rules, out=out)
    with (
        progress("evaluate", len(pairs), "cases") as advance,
        closing(map_isolated(score, pairs, workers, _report_crash)) as scored,
    ):
        for index, outcome in scored:
            outcomes[index] = outcome
            advance(1, f"{sum(one.scores is None for one in outcomes.values())} failed")
    return [outcomes[index] for index in range(len(pairs))]


def score_pair(pair: Pair, rules: Rules, out: ErrorPages | None) -> PairOutcome:
    """Score one pair, and show its errors if `out` is set. Errors are reported in the outcome."""
    try:
        masks = leave_out(read_masks(pair, rules.labels, rules.ignored), rules.ignored)
        scores = score_case(pair, masks, rules)
        if out is not None:
            _show_errors(pair, scores, masks, rules, out)
        return PairOutcome(scores=scores, warnings=masks.warnings, peak_mib=peak_mib())
    except Exception as error:  # noqa: BLE001 (any error fails one case)
        return PairOutcome(reason=explain_failure(error, pair.prediction).reason, peak_mib=peak_mib())


def _report_crash(pair: Pair) -> PairOutcome:
    return PairOutcome(
        reason=f"{pair.prediction}: the worker process of {pair.name} crashed, perhaps out of memory; "
        "use fewer --workers."
    )


def _show_errors(pair: Pair, scores: CaseScores, masks: PairMasks, rules: Rules, out: ErrorPages) -> None:
    regions = rules.labels.regions()
    name = rules.labels.tumor or next(iter(regions))
    truth, predicted = (np.isin(mask, regions[name]) for mask in (masks.truth, masks.predicted))
    image = read_background(pair, masks.grid)
    path = out.folder / f"{scores.case_id}_errors.png"
    save_png(path, draw_error_picture(image, truth, predicted, f"{scores.case_id}  {name}"))
    case = ErrorCase(scores=scores, masks=masks, rules=rules, image=image, region=name)
    write_error_page(path.with_suffix(".html"), case, out.viewer_mb)


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of evaluation.json."""
    return {
        **evaluation.totals.as_json(),
        **evaluation.labels.as_json(),
        "by_case": [make_row(case, evaluation.rules.mode) for case in evaluation.cases],
        "failures": [{"name": name, "reason": reason} for name, reason in evaluation.failures],
        "references_without_prediction": list(evaluation.missing),
        "predictions_without_reference": list(evaluation.alone),
        "warnings": list(evaluation.warnings),
        "peak_mib": round(evaluation.peak_mib, 1),
    }


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.csv."""
    document = evaluation_document(evaluation)
    write_json(out / "evaluation.json", document)
    write_csv(out / "evaluation.csv", document["by_case"])
