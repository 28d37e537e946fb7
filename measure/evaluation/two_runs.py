"""Compares two runs on the same cases: paired differences, Wilcoxon's test, and scatter plots."""

import math
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError
from slicemill.common.files import write_bytes, write_csv, write_json
from slicemill.common.panels import Axes, draw_panels
from slicemill.ct.overlap import mean_without_nan
from slicemill.measure.evaluation.evaluate import Evaluation
from slicemill.measure.evaluation.region import measure_region
from slicemill.measure.evaluation.statistics import nan_to_none, paired_difference, score_true_negatives

Values = list[tuple[float, float]]
"""The values of both runs in each case."""
COMPARED = ("dice", "voe", "assd_mm", "hd95_mm", "surface_dice", "absolute_error_ml")
PLOTTED = ("dice", "hd95_mm")
BEST = {"dice": 1.0, "voe": 0.0}
"""Score of a correct empty prediction if the other run has a false positive."""
LOWER_IS_BETTER = ("voe", "assd_mm", "hd95_mm", "absolute_error_ml")


@dataclass(frozen=True, kw_only=True)
class ComparedMeasure:
    """One measure of one region in both runs."""

    region: str
    measure: str
    cases: int
    """Number of cases with a value in both runs."""
    left_out: int
    mean: float | None
    mean_against: float | None
    """Mean of the other run."""
    difference: float | None
    """Mean of the paired differences, this run minus the other."""
    low: float | None
    """Lower end of the 95 % interval of the difference."""
    high: float | None
    """Upper end of that interval."""
    wilcoxon_p: float | None
    better_in: int
    """Cases in which this run is better."""
    worse_in: int
    """Cases in which this run is worse."""


def pair_values(run: Evaluation, other: Evaluation) -> dict[tuple[str, str], Values]:
    """Return (region, measure) -> the values of both runs in their shared cases.

    Raises
    ------
    ConfigError
        The runs were scored by different rules, or have no case in common.
    """
    if run.rules != other.rules:
        raise ConfigError(
            "the two runs have different labels; pass --labels, so that both are scored by the same rules."
        )
    first, second = ({case.case_id: case for case in one.cases} for one in (run, other))
    shared = [case_id for case_id in first if case_id in second]
    if not shared:
        raise ConfigError("the two runs have no case in common; compare runs on the same scans.")
    values: dict[tuple[str, str], Values] = {}
    for name in run.labels.regions():
        for case_id in shared:
            one, another = (measure_region(cases[case_id], name, run.rules.mode) for cases in (first, second))
            for measure in COMPARED:
                values.setdefault((name, measure), []).append((getattr(one, measure), getattr(another, measure)))
    for (name, measure), pairs in values.items():
        if measure in BEST:
            values[name, measure] = score_true_negatives(pairs, BEST[measure])
    return values


def compare_runs(run: Evaluation, other: Evaluation) -> list[ComparedMeasure]:
    """Compare each measure of each region over the shared cases."""
    return [_compare(name, measure, pairs) for (name, measure), pairs in pair_values(run, other).items()]


def _compare(name: str, measure: str, pairs: Values) -> ComparedMeasure:
    kept = _without_nan(pairs)
    first, second = [a for a, _ in kept], [b for _, b in kept]
    result = paired_difference(first, second)
    lower = sum(a < b for a, b in kept)
    better, worse = (lower, result.better) if measure in LOWER_IS_BETTER else (result.better, lower)
    return ComparedMeasure(
        region=name,
        measure=measure,
        cases=result.patients,
        left_out=len(pairs) - len(kept),
        mean=nan_to_none(mean_without_nan(first)),
        mean_against=nan_to_none(mean_without_nan(second)),
        difference=nan_to_none(result.mean),
        low=nan_to_none(result.low),
        high=nan_to_none(result.high),
        wilcoxon_p=nan_to_none(result.p),
        better_in=better,
        worse_in=worse,
    )


def write_run_comparison(out: Path, run: Evaluation, other: Evaluation) -> list[ComparedMeasure]:
    """Write comparison.json, comparison.csv and comparison.png, and return the compared measures."""
    compared = compare_runs(run, other)
    rows = [to_document(one) for one in compared]
    write_json(
        out / "comparison.json", {"difference": "run - against", "interval": "95 % bootstrap over cases", "rows": rows}
    )
    write_csv(out / "comparison.csv", rows)
    values = {key: pairs for key, pairs in pair_values(run, other).items() if key[1] in PLOTTED}
    panels = [
        lambda axes, key=key, pairs=pairs: _draw_scatter(axes, f"{key[1]} {key[0]}", pairs)
        for key, pairs in values.items()
    ]
    write_bytes(out / "comparison.png", draw_panels(panels))
    return compared


def _draw_scatter(axes: Axes, name: str, pairs: Values) -> None:
    """Draw one dot per case, and the line of equality of both runs."""
    kept = _without_nan(pairs)
    axes.scatter([b for _, b in kept], [a for a, _ in kept], s=16, alpha=0.7, linewidths=0)
    high = max([1.0, *(value for pair in kept for value in pair)])
    axes.plot([0, high], [0, high], color="0.5", linewidth=0.8)
    axes.set(title=f"{name}: {len(kept)} cases", xlabel="against", ylabel="this run")


def _without_nan(pairs: Values) -> Values:
    return [(a, b) for a, b in pairs if not (math.isnan(a) or math.isnan(b))]
