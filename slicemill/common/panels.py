"""Panels of a figure, drawn in rows as one PNG. matplotlib is imported only when one is drawn."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from slicemill.common.errors import ConfigError
from slicemill.common.extras import describe_install, explain_import

Axes = Any
"""Axes of matplotlib."""
Panel = Callable[[Axes], None]
"""Draws one panel: its data, title and axis names."""
PANEL_INCHES = (4.4, 3.5)
TITLE_INCHES = 0.7
DOTS_PER_INCH = 110
BLUE, RED, GRAY = "#4878a8", "#c8503c", "#a8a8a8"


def draw_panels(panels: Sequence[Panel], columns: int = 3, title: str = "") -> bytes:
    """Draw panels in rows of `columns`, below a title, as one PNG. No text is read as a formula.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    missing = ConfigError(f"figures need matplotlib, which is not installed. {describe_install('ingest')}.")
    with explain_import("matplotlib", missing):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + (TITLE_INCHES if title else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, parse_math=False)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        panel(axes)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set(fontsize=9.5, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def label_log_axis(axes: Axes) -> None:
    """Write plain numbers at a logarithmic x axis, more of them where its range is short; set its limits before."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    ratio = high / low
    steps = (1, 2, 3, 5, 7) if ratio < 20 else (1, 2, 5) if ratio < 1000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
