"""The curves of a run as one picture: Dice, loss, learning rate, speed, and share of time waiting for slices."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.common.files import atomic_write
from slicemill.ct.labels import Labels
from slicemill.train.run.metrics import EpochMetrics, RegionDice

Axes = Any
Figure = Any
"""matplotlib's classes, which are imported only to draw."""
History = Sequence[EpochMetrics]

SECONDS_APART = 120
"""Minimum age of the picture of a run in progress before it is redrawn; drawing takes 0.3 to 0.9 s of a core."""
LINE_COLOR, ORGAN_COLOR, TUMOR_COLOR = "#4878a8", "#2f7fc1", "#d0402f"
OTHER_COLORS = ("#e0a020", "#8a5cc0", "#3a9a5c", "#d0609a", "#7a5a40", "#5a6a78")
MAX_DOTS = 20
"""Up to this number of epochs, dots are drawn too; a single epoch is not visible as a line."""
MAX_NAMES = 9
"""Regions that fit into the legend."""
DECADES = 4
"""Range of the axis of the learning rate, which falls to zero."""


@dataclass(frozen=True, kw_only=True)
class DiceLine:
    """One kind of Dice: the style of its lines and its name in the legend."""

    name: str
    style: str
    width: float
    value: Callable[[RegionDice], float | None]


DICE_LINES = (
    DiceLine(name="validation", style="-", width=2.0, value=lambda dice: dice.validation),
    DiceLine(name="validation, mean of cases", style=":", width=1.4, value=lambda dice: dice.validation_per_case),
    DiceLine(name="training", style="--", width=1.2, value=lambda dice: dice.train),
)


def keep_current(path: Path, history: History, labels: Labels) -> None:
    """Draw the curves of a run in progress, unless the picture is recent."""
    if not path.exists() or time.time() - path.stat().st_mtime >= SECONDS_APART:
        draw_curves(path, history, labels)


def draw_curves(path: Path, history: History, labels: Labels) -> None:
    """Write the curves of a run as PNG."""
    with atomic_write(path) as aside:
        make_figure(history, labels).savefig(aside, format="png", dpi=110)


def make_figure(history: History, labels: Labels) -> Figure:
    """Return the figure of a run. The panel of waiting is left out for runs of earlier versions, which lack it."""
    from matplotlib import figure as matplotlib_figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    best = max(history, key=lambda metrics: metrics.validation_dice)
    highest = max(metrics.learning_rate for metrics in history)
    waits = any(metrics.wait_share is not None for metrics in history)
    figure = matplotlib_figure.Figure(figsize=(12, 7.2))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.07, top=0.88, wspace=0.9, hspace=0.34)
    figure.suptitle(
        f"best epoch {best.epoch} of {history[-1].epoch}: mean validation Dice {best.validation_dice:.3f}",
        fontsize=13,
    )
    panels: Mapping[str, Axes] = figure.subplot_mosaic(
        [list("ddddll"), list("rrssww" if waits else "rrrsss")], height_ratios=(1.4, 1)
    )
    for axes in panels.values():
        style_axes(axes, history)
    draw_dice(panels["d"], history, labels)
    panels["d"].axvline(best.epoch, color="0.6", lw=1, zorder=0)
    draw_line(panels["l"], history, [metrics.loss for metrics in history], "training loss")
    draw_line(panels["r"], history, [metrics.learning_rate for metrics in history], "learning rate (log)")
    if highest > 0:
        panels["r"].set_yscale("log")
        panels["r"].set_ylim(highest / 10**DECADES, 2 * highest)
    speeds = [metrics.slices_per_second for metrics in history]
    draw_line(panels["s"], history, speeds, "training slices per second")
    panels["s"].set_ylim(bottom=0)
    if waits:
        shares = [metrics.wait_share for metrics in history]
        draw_line(panels["w"], history, shares, "share of time waiting for slices")
        panels["w"].set_ylim(0, max(0.1, panels["w"].get_ylim()[1]))
    return figure


def style_axes(axes: Axes, history: History) -> None:
    """Give a panel a light grid and an axis of integer epochs with all of them."""
    from matplotlib.ticker import MaxNLocator

    first, last = history[0].epoch, history[-1].epoch
    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=(1, 2, 5, 10), min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_xlabel("epoch", fontsize=9)


def draw_dice(axes: Axes, history: History, labels: Labels) -> None:
    """Draw the Dice of each region: a color per region, as in the pictures of cases, and a style per kind of Dice."""
    from matplotlib.lines import Line2D

    epochs = [metrics.epoch for metrics in history]
    colors = region_colors(labels)
    drawn = []
    for line in DICE_LINES:
        for name, color in colors.items():
            values = _nan_if_none([line.value(metrics.regions[name]) for metrics in history])
            if not all(map(math.isnan, values)):
                axes.plot(epochs, values, line.style, **epoch_marks(history), lw=line.width, color=color)
                drawn.append(line)
    handles = [Line2D([], [], lw=6, color=color, label=name) for name, color in list(colors.items())[:MAX_NAMES]]
    handles += [
        Line2D([], [], ls=line.style, lw=line.width, color="0.3", label=line.name) for line in dict.fromkeys(drawn)
    ]
    axes.set_ylim(0, 1)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=9, frameon=False,
                handlelength=2.6, borderaxespad=0.2)  # fmt: skip
    axes.set_ylabel("Dice", fontsize=9)


def region_colors(labels: Labels) -> dict[str, str]:
    """Return a color for each region: organ blue, tumor red, others from OTHER_COLORS."""
    others = [name for name in labels.values if name not in (labels.organ, labels.tumor)]
    colors = {name: OTHER_COLORS[index % len(OTHER_COLORS)] for index, name in enumerate(others)}
    if labels.organ is not None:
        colors[labels.organ] = ORGAN_COLOR
    if labels.tumor is not None:
        colors[labels.tumor] = TUMOR_COLOR
    return {name: colors[name] for name in labels.values}


def draw_line(axes: Axes, history: History, values: Sequence[float | None], title: str) -> None:
    """Draw one value per epoch, with the last one in the title."""
    numbers = _nan_if_none(values)
    epochs = [metrics.epoch for metrics in history]
    axes.plot(epochs, numbers, **epoch_marks(history), lw=1.6, color=LINE_COLOR)
    axes.set_title(f"{title}: {numbers[-1]:.3g}", fontsize=10)


def epoch_marks(history: History) -> dict[str, Any]:
    """Return the markers of epochs; none in a long run."""
    return {"marker": "o", "markersize": 3.5} if len(history) <= MAX_DOTS else {}


def _nan_if_none(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
