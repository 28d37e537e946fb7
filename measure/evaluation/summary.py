"""Formats an evaluation as text, for the output of `slicemill evaluate`."""

from collections.abc import Sequence

from slicemill.common.documents import to_document
from slicemill.common.terminal import table_rows
from slicemill.ct.labels import IGNORE
from slicemill.measure.evaluation.evaluate import Evaluation
from slicemill.measure.evaluation.region import make_row
from slicemill.measure.evaluation.totals import HIT, LesionTotals, Totals, overlap_name
from slicemill.measure.evaluation.two_runs import ComparedMeasure

SHOWN = ("dice", "hd95_mm", "error_ml")
"""Measures of a case that are printed; evaluation.csv has all."""


def format_evaluation(evaluation: Evaluation) -> list[str]:
    """Return the lines for the cases and for the scores over all cases."""
    totals = evaluation.totals
    return [
        *_format_cases(evaluation),
        *_format_regions(totals),
        *(_format_lesions(totals.lesions) if totals.lesions else []),
        *_format_tumor(totals),
    ]


def format_comparison(compared: Sequence[ComparedMeasure]) -> list[str]:
    """Return the lines for two runs on the same cases."""
    rows = [to_document(one) for one in compared]
    return [
        *table_rows(list(rows[0]), [list(row.values()) for row in rows]),
        "difference: this run - the other; interval: 95 % bootstrap over cases; p: Wilcoxon's signed-rank test",
        "",
    ]


def format_left_out(evaluation: Evaluation) -> list[str]:
    """Return the lines for warnings, failed cases, unmatched masks and memory."""
    cases, failed = len(evaluation.cases), len(evaluation.failures)
    ignored = evaluation.rules.ignored
    return [
        *([] if ignored is None else [f"voxels of the reference's label {IGNORE} ({ignored}) are left out"]),
        *(f"warning: {warning}" for warning in evaluation.warnings),
        *(f"failed: {name}: {reason}" for name, reason in evaluation.failures),
        *(f"left out: {name}: no reference matches this name" for name in evaluation.alone),
        f"{cases} cases compared, {failed} failed; {len(evaluation.missing)} references without a prediction",
        f"peak memory of a process: {evaluation.peak_mib:,.0f} MiB",
    ]


def _format_cases(evaluation: Evaluation) -> list[str]:
    rows = [make_row(case, evaluation.rules.mode) for case in evaluation.cases]
    if not rows:
        return []
    shown = ["case_id", *(key for key in rows[0] if key.startswith(SHOWN) or "lesions" in key)]
    return [*table_rows(shown, [[row[key] for key in shown] for row in rows]), ""]


def _format_regions(totals: Totals) -> list[str]:
    lines = []
    for name, region in totals.regions.items():
        rows = [
            (measure, value, *region.intervals.get(measure, (None, None)), region.cases_counted.get(measure))
            for measure, value in region.measures().items()
        ]
        without = (
            f"{region.cases_without_region} without it in both masks, "
            f"{region.cases_without_distances} without distances"
        )
        lines += [
            *table_rows([name, "value", "95 % from", "to", "cases"], rows),
            f"{name}: {totals.cases} cases, {without}; {totals.empty_regions}",
            "",
        ]
    lines.append(
        f"mode {totals.mode}; surface Dice at {totals.tolerance_mm:g} mm; "
        "rvd (P - R) / R, rvd_lits (R - P) / P, by voxels"
    )
    if burden := totals.burden:
        lines.append(
            f"tumor burden: RMSE {format_optional(burden.rmse)}, "
            f"maximum {format_optional(burden.maximum)} ({burden.maximum_is}), "
            f"{burden.cases} cases, {burden.cases_without_organ} without an organ left out"
        )
    return [*lines, ""]


def _format_lesions(lesions: LesionTotals) -> list[str]:
    rows, sizes = [], []
    for threshold, row in lesions.by_threshold.items():
        name = overlap_name(threshold).replace("_", " ")
        rows.append(
            (name, row.true_positive, row.false_positive, row.false_negative, row.precision, row.recall, row.f1)
        )
        sizes += [(name, size, one.found, one.references, one.false, one.f1) for size, one in row.by_size.items()]
    any_threshold = next(iter(lesions.by_threshold.values()))
    without, cpm = any_threshold.cases_without_reference_lesion, format_optional(lesions.response.cpm)
    return [
        *table_rows(["lesions", "found", "false", "missed", "precision", "recall", "F1"], rows),
        f"cases without lesions: {without}; their false positives count in precision",
        "",
        *table_rows(["lesions", "size", "found", "references", "false", "F1"], sizes),
        f"sizes: {any_threshold.sizes}; false lesions by the size of the prediction",
        "",
        f"lesion CPM {cpm}, ranked by {lesions.ranked_by}: {HIT}; scans without lesions count",
        "",
    ]


def _format_tumor(totals: Totals) -> list[str]:
    rows = [
        (name, one.positives, one.negatives, one.accuracy, one.sensitivity, one.specificity, one.auc)
        for name, one in (("by case", totals.tumor_by_case), ("by slice", totals.tumor_by_slice))
        if one is not None
    ]
    if not rows:
        return []
    header = ["tumor yes/no", "with", "without", "accuracy", "sensitivity", "specificity", "AUC"]
    return [*table_rows(header, rows), f"AUC: ranked by {totals.tumor_ranked_by}", ""]


def format_optional(value: float | None) -> str:
    """Return a value with three decimals, or a dash for None."""
    return "-" if value is None else f"{value:.3f}"
