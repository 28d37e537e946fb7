"""Two runs on the same cases: paired differences, Wilcoxon's test, and case against case as a picture."""

from pathlib import Path
from typing import Any

from slicemill.common.errors import ConfigError
from slicemill.common.files import write_csv, write_json
from slicemill.ct.overlap import mean_of
from slicemill.measure.evaluation.evaluate import MEASURES, Evaluation, case_figures
from slicemill.measure.evaluation.figures import Axes, figure_of, save
from slicemill.measure.evaluation.statistics import paired_difference, with_right_silence

Row = dict[str, Any]
COMPARED = ("dice", "voe", "assd_mm", "hd95_mm", "surface_dice", "absolute_error_ml")
BEST = {"dice": 1.0, "voe": 0.0}
"""Figures of a case in which a run rightly finds nothing, beside one that raises a false alarm."""
LOWER_IS_BETTER = ("voe", "assd_mm", "rmsd_mm", "mssd_mm", "hd95_mm", "absolute_error_ml")


def paired_figures(run: Evaluation, other: Evaluation) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return (region, measure) -> the values of both runs, case by case, of the cases that both have.

    Raises
    ------
    ConfigError
        The runs were scored by different rules, or share no case.
    """
    if run.rules != other.rules:
        raise ConfigError("the two runs name different labels; pass --labels, so that both are scored alike.")
    first, second = ({case.case_id: case for case in one.cases} for one in (run, other))
    shared = [case_id for case_id in first if case_id in second]
    if not shared:
        raise ConfigError("the two runs share no case; compare runs on the same scans.")
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name in run.labels.regions():
        for case_id in shared:
            a, b = (case_figures(cases[case_id], name, run.rules.mode) for cases in (first, second))
            for measure in COMPARED:
                figures.setdefault((name, measure), []).append((a[measure], b[measure]))
    for (name, measure), pairs in figures.items():
        if measure in BEST:
            figures[name, measure] = with_right_silence(pairs, BEST[measure])
    return figures


def comparison(run: Evaluation, other: Evaluation) -> list[Row]:
    """Return a row a region and measure: means, the paired difference run - other, its 95 % interval, p, and who is better how often."""
    rows = []
    for (name, measure), pairs in paired_figures(run, other).items():
        kept = [pair for pair in pairs if pair[0] == pair[0] and pair[1] == pair[1]]
        found = paired_difference([a for a, _ in kept], [b for _, b in kept])
        lower = sum(a < b for a, b in kept)
        row = {
            "region": name,
            "measure": measure,
            "cases": found.patients,
            "left_out": len(pairs) - len(kept),
            "mean": mean_of([a for a, _ in kept]),
            "mean_against": mean_of([b for _, b in kept]),
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "wilcoxon_p": found.p,
            "better_in": lower if measure in LOWER_IS_BETTER else found.better,
            "worse_in": found.better if measure in LOWER_IS_BETTER else lower,
        }
        rows.append({key: None if isinstance(value, float) and value != value else value for key, value in row.items()})  # noqa: PLR0124
    return rows


def write_comparison(out: Path, run: Evaluation, other: Evaluation) -> list[Row]:
    """Write comparison.json, comparison.csv and comparison.png into a folder, and return the rows."""
    rows = comparison(run, other)
    write_json(
        out / "comparison.json", {"difference": "run - against", "interval": "95 % bootstrap over cases", "rows": rows}
    )
    write_csv(out / "comparison.csv", rows)
    figures = paired_figures(run, other)
    shown = {key: pairs for key, pairs in figures.items() if key[1] in (MEASURES[0], "hd95_mm")}
    panels = [
        lambda axes, key=key, pairs=pairs: _scatter(axes, f"{key[1]} {key[0]}", pairs) for key, pairs in shown.items()
    ]
    save(out / "comparison.png", figure_of(panels))
    return rows


def _scatter(axes: Axes, name: str, pairs: list[tuple[float, float]]) -> None:
    """Draw case against case, with the line on which both are equal."""
    kept = [pair for pair in pairs if pair[0] == pair[0] and pair[1] == pair[1]]
    axes.scatter([b for _, b in kept], [a for a, _ in kept], s=16, alpha=0.7, linewidths=0)
    high = max([1.0, *(value for pair in kept for value in pair)]) if kept else 1.0
    axes.plot([0, high], [0, high], color="0.5", linewidth=0.8)
    axes.set(title=f"{name}: {len(kept)} cases", xlabel="against", ylabel="this run")
