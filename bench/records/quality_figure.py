"""Picture of `bench quality`: the Dice of every patient under every variant."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.bench.records.figures import new_figure
from slicemill.bench.records.quality import PARTS, Part, QualityRecord
from slicemill.measure.evaluation.statistics import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES: dict[Part, str] = {
    "validation": "validation parts (used to choose the variant)",
    "test": "test parts (not used to choose)",
}


def draw_dice(path: Path, record: QualityRecord) -> None:
    """Draw the main region's Dice as PNG: a dot a patient, joined over variants, with mean and 95 % interval."""
    names = list(record.variants)
    size = (max(7.0, 1.1 + 2 * 0.95 * len(names)), 5.2)
    with new_figure(path, ncols=2, figsize=size, sharey=True) as (figure, axes):
        for part, panel in zip(PARTS, axes, strict=True):
            _draw_part(panel, record, part)
            panel.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
            panel.set(xlim=(-0.4, len(names) - 0.3), ylim=(-0.02, 1.02), title=TITLES[part])
            panel.title.set_fontsize(10)
            panel.grid(axis="y", alpha=0.3)
        axes[0].set_ylabel(f"Dice of {record.region}, a dot a patient")
        figure.suptitle(
            f"{record.collection}: {record.patients} patients, {record.folds} folds, {record.steps:,} steps a run; "
            "diamond: mean, bar: its 95 % interval",
            fontsize=10,
        )
        figure.tight_layout()


def _draw_part(panel: "Axes", record: QualityRecord, part: Part) -> None:
    """Draw the patients of one part, then the mean of each variant on top."""
    by_patient = [variant.scores(part)[record.region].by_patient for variant in record.variants.values()]
    for patient in sorted({patient for scores in by_patient for patient in scores}):
        values = [scores.get(patient) for scores in by_patient]
        panel.plot(
            range(len(values)),
            [math.nan if value is None else value for value in values],
            "o-",
            color="0.6",
            markerfacecolor="0.75",
            markeredgecolor="0.4",
            markersize=4.5,
            linewidth=0.7,
            zorder=1,
        )
    for position, scores in enumerate(by_patient):
        known = [value for value in scores.values() if value is not None]
        if known:
            mean, (low, high) = sum(known) / len(known), bootstrap_interval(known)
            panel.plot([position, position], [low, high], color="C3", linewidth=2.4, zorder=2, solid_capstyle="round")
            panel.plot(position, mean, "D", color="C3", markersize=8, markeredgecolor="white", zorder=3)
            panel.annotate(f"{mean:.2f}", (position, mean), (9, 0), textcoords="offset points", va="center", color="C3",
                           fontsize=9, fontweight="bold", zorder=4,
                           bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip
