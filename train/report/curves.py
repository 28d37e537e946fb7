"""The curves of a run as one picture: Dice, loss, learning rate, speed, waiting."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicemill.common.files import atomic_write
from slicemill.ct.labels import Labels

Row = dict[str, Any]
Axes = Any
Drawing = Any
"""matplotlib's axes and figure; it is not imported here."""

SECONDS_APART = 120
"""Age at which the picture of a running training is drawn anew; drawing takes 0.3 to 0.9 s of a core, less than one percent."""
LINE_COLOR, ORGAN_COLOR, TUMOR_COLOR = "#4878a8", "#2f7fc1", "#d0402f"
OTHER_COLORS = ("#e0a020", "#8a5cc0", "#3a9a5c", "#d0609a", "#7a5a40", "#5a6a78")
SEEN = (("validation_dice", "-", 2.0, "validation"), ("validation_dice_per_case", ":", 1.4, "validation, mean of cases"),
        ("train_dice", "--", 1.2, "training"))  # fmt: skip
"""Prefix of a column, style and width of its line, and its name in the legend."""
DOTS = 20
"""Up to so many epochs each is a dot, too: a single one would not show as a line."""
NAMED = 9
"""Regions that the legend has room for."""
DECADES = 4
"""Of the learning rate, which falls to nothing, are shown."""


def keep_current(path: Path, rows: Sequence[Row], labels: Labels) -> None:
    """Draw the curves if there is no picture yet or it is old, for whoever watches a long run."""
    if not path.exists() or time.time() - path.stat().st_mtime >= SECONDS_APART:
        draw_curves(path, rows, labels)


def draw_curves(path: Path, rows: Sequence[Row], labels: Labels) -> None:
    """Write the picture of a run, as PNG."""
    with atomic_write(path) as aside:
        curves(rows, labels).savefig(aside, format="png", dpi=110)


def curves(rows: Sequence[Row], labels: Labels) -> Drawing:
    """Return the figure of what the rows of a run, one an epoch, say; waiting only where a row tells of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best, highest = max(rows, key=lambda row: row["validation_dice"]), max(series(rows, "learning_rate"))
    waits = any(row.get("wait_share") is not None for row in rows)
    figure = Figure(figsize=(12, 7.2))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.07, top=0.88, wspace=0.9, hspace=0.34)
    figure.suptitle(
        f"best epoch {best['epoch']} of {rows[-1]['epoch']}: mean validation Dice {best['validation_dice']:.3f}",
        fontsize=13,
    )
    panels: dict[str, Axes] = figure.subplot_mosaic(
        [list("ddddll"), list("rrssww" if waits else "rrrsss")], height_ratios=(1.4, 1)
    )
    for axes in panels.values():
        style(axes, rows)
    draw_dice(panels["d"], rows, labels)
    panels["d"].axvline(best["epoch"], color="0.6", lw=1, zorder=0)
    draw_line(panels["l"], rows, "loss", "training loss")
    draw_line(panels["r"], rows, "learning_rate", "learning rate (log)")
    if highest > 0:
        panels["r"].set_yscale("log")
        panels["r"].set_ylim(highest / 10**DECADES, 2 * highest)
    draw_line(panels["s"], rows, "slices_per_second", "training slices per second")
    panels["s"].set_ylim(bottom=0)
    if waits:
        draw_line(panels["w"], rows, "wait_share", "share of time waiting for slices")
        panels["w"].set_ylim(0, max(0.1, panels["w"].get_ylim()[1]))
    return figure


def style(axes: Axes, rows: Sequence[Row]) -> None:
    """Give a panel a light grid and an axis of whole epochs that holds all of them, or the only one."""
    from matplotlib.ticker import MaxNLocator

    first, last = rows[0]["epoch"], rows[-1]["epoch"]
    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=(1, 2, 5, 10), min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_xlabel("epoch", fontsize=9)


def draw_dice(axes: Axes, rows: Sequence[Row], labels: Labels) -> None:
    """Draw the Dice of each region: colors are regions, as in the pictures of cases, styles are parts of the split."""
    from matplotlib.lines import Line2D

    epochs = [row["epoch"] for row in rows]
    colors = region_colors(labels)
    drawn = []
    for prefix, line, width, part in SEEN:
        for name, color in colors.items():
            values = series(rows, f"{prefix}_{name}")
            if not all(map(math.isnan, values)):
                axes.plot(epochs, values, line, **marks(rows), lw=width, color=color)
                drawn.append((part, line, width))
    regions = [Line2D([], [], lw=6, color=color, label=name) for name, color in list(colors.items())[:NAMED]]
    parts = [Line2D([], [], ls=line, lw=width, color="0.3", label=part) for part, line, width in dict.fromkeys(drawn)]
    axes.set_ylim(0, 1)
    axes.legend(handles=[*regions, *parts], loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=9, frameon=False,
                handlelength=2.6, borderaxespad=0.2)  # fmt: skip
    axes.set_ylabel("Dice", fontsize=9)


def region_colors(labels: Labels) -> dict[str, str]:
    """Return a color for each region: organ blue, tumor red, others in turn."""
    others = [name for name in labels.values if name not in (labels.organ, labels.tumor)]
    colors = {name: OTHER_COLORS[index % len(OTHER_COLORS)] for index, name in enumerate(others)}
    return {
        name: TUMOR_COLOR if name == labels.tumor else ORGAN_COLOR if name == labels.organ else colors[name]
        for name in labels.values
    }


def draw_line(axes: Axes, rows: Sequence[Row], column: str, title: str) -> None:
    """Draw one column, with its last value in the title."""
    values = series(rows, column)
    axes.plot([row["epoch"] for row in rows], values, **marks(rows), lw=1.6, color=LINE_COLOR)
    axes.set_title(f"{title}: {values[-1]:.3g}", fontsize=10)


def series(rows: Sequence[Row], column: str) -> list[float]:
    """Return a column with NaN where a row has no value."""
    return [math.nan if row.get(column) is None else float(row[column]) for row in rows]


def marks(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how epochs are marked."""
    return {"marker": "o", "markersize": 3.5} if len(rows) <= DOTS else {}
