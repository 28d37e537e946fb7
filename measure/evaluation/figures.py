"""Figures of an evaluation: values per case, Bland-Altman plot of tumor volume, detection by size, FROC."""

import math
from collections.abc import Sequence

import numpy as np

from slicemill.common.panels import BLUE, GRAY, RED, Axes, Panel, draw_panels, label_log_axis
from slicemill.measure.evaluation.detection import THRESHOLDS
from slicemill.measure.evaluation.evaluate import Evaluation
from slicemill.measure.evaluation.froc import RATES, FreeResponse, NoFindings
from slicemill.measure.evaluation.region import measure_region


def draw_evaluation(evaluation: Evaluation) -> bytes:
    """Draw all figures of an evaluation as one PNG."""
    panels: list[Panel] = [
        lambda axes: draw_distribution(axes, evaluation, "dice", "Dice"),
        lambda axes: draw_distribution(axes, evaluation, "hd95_mm", "95 % Hausdorff distance, mm"),
    ]
    tumor, lesions = evaluation.labels.tumor, evaluation.totals.lesions
    if tumor is not None and lesions is not None:
        panels += [
            lambda axes: draw_bland_altman(axes, [case.volumes_ml[tumor] for case in evaluation.cases]),
            lambda axes: draw_sizes(axes, evaluation),
            lambda axes: draw_froc(axes, lesions.response, ranked_by=lesions.ranked_by),
        ]
    return draw_panels(panels)


def draw_distribution(axes: Axes, evaluation: Evaluation, measure: str, name: str) -> None:
    """Draw one dot per case for each region, with median and quartiles."""
    rng = np.random.default_rng(0)
    regions = list(evaluation.labels.regions())
    for x, region in enumerate(regions):
        values = [getattr(measure_region(case, region, evaluation.rules.mode), measure) for case in evaluation.cases]
        kept = [value for value in values if not math.isnan(value)]
        axes.scatter(x + rng.uniform(-0.15, 0.15, len(kept)), kept, s=12, color=BLUE, alpha=0.6, linewidths=0)
        if kept:
            low, middle, high = np.percentile(kept, (25, 50, 75))
            axes.plot([x - 0.25, x + 0.25], [middle, middle], color=RED)
            axes.vlines(x, low, high, color=RED, linewidth=1)
    axes.set_xticks(range(len(regions)), regions, parse_math=False)
    axes.set_xlim(-0.6, len(regions) - 0.4)
    axes.set(title="per case, median and quartiles", ylabel=name)


def draw_bland_altman(axes: Axes, volumes_ml: Sequence[tuple[float, float]]) -> None:
    """Draw prediction - reference against the mean of both, with limits of agreement (Bland and Altman 1986)."""
    reference, predicted = (np.array([pair[part] for pair in volumes_ml]) for part in (0, 1))
    differences = predicted - reference
    axes.scatter((reference + predicted) / 2, differences, s=14, color=BLUE, alpha=0.7, linewidths=0)
    axes.axhline(0, color="0.7", linewidth=0.8)
    if len(differences) > 1:
        middle, spread = float(differences.mean()), 1.96 * float(differences.std(ddof=1))
        axes.axhline(middle, color=RED)
        for limit in (middle - spread, middle + spread):
            axes.axhline(limit, color=RED, linestyle="--", linewidth=1)
    axes.set(
        title="tumor volume: mean difference, limits of agreement",
        xlabel="mean of both, ml",
        ylabel="prediction - reference, ml",
    )


def draw_sizes(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the diameter of each reference lesion against the overlap threshold at which it was detected."""
    levels: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for case in evaluation.cases:
        if case.lesions is not None:
            matchings = [case.lesions.matchings[threshold] for threshold in THRESHOLDS]
            for number, diameter in enumerate(case.lesions.diameters_mm[1], start=1):
                levels[sum(number in matching.hits for matching in matchings)].append(max(diameter, 0.1))
    if not any(levels.values()):  # matplotlib rejects a logarithmic axis without values
        axes.set_title("reference lesions: none")
        return
    rng = np.random.default_rng(0)
    for level, diameters in levels.items():
        axes.scatter(
            diameters,
            level + rng.uniform(-0.2, 0.2, len(diameters)),
            s=12,
            color=(RED, GRAY, BLUE)[level],
            alpha=0.6,
            linewidths=0,
        )
    axes.set_xscale("log")
    label_log_axis(axes)
    axes.set_yticks([0, 1, 2], ["missed", "above 0", "above 0.5"])
    axes.set_ylim(-0.5, 2.5)
    axes.set(title="reference lesions: size and detection", xlabel="longest axial diameter, mm (log)")


def draw_froc(axes: Axes, response: FreeResponse | NoFindings, *, ranked_by: str | None = None) -> None:
    """Draw a free-response curve with its 95 % bootstrap band over scans."""
    axes.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(0, 1.02))
    if isinstance(response, NoFindings):
        axes.set_title("free response: no reference lesions")
        return
    rates, sensitivity = response.curve.false_per_scan, response.curve.sensitivity
    axes.plot([*rates, max(rates[-1], RATES[-1])], [*sensitivity, sensitivity[-1]], color=BLUE)
    band = response.band
    axes.fill_between(band.false_per_scan, band.low, band.high, color=BLUE, alpha=0.15, linewidth=0)
    axes.set_xscale("symlog", base=2, linthresh=RATES[0])
    axes.set_xticks([0, *RATES], ["0", "1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set_xlim(0, RATES[-1])
    axes.set_title(f"free response, CPM {response.cpm:.3f}" + (f", by {ranked_by}" if ranked_by else ""))
