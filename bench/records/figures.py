"""Pictures of records: stages with their limits and peers, time shares of inference, and growth of cost."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicemill.bench.records.markdown import format_three_digits
from slicemill.bench.schema.base import Document, read_record
from slicemill.bench.schema.data import Line, ScaleRecord
from slicemill.bench.schema.networks import InferRecord
from slicemill.bench.schema.suite import Stage, SuiteRecord
from slicemill.common.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGIBLE_PERCENT = 3.0
"""Smallest share whose bar has room for its number."""
SLICEMILL_COLOR, PEER_COLOR, LIMIT_COLOR = "#2f6ea8", "#b9c3cd", "#c0392b"


@contextmanager
def new_figure(path: Path, **options: Any) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Yield a figure and its panels (options are those of pyplot.subplots); write it as PNG when the block ends."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(squeeze=False, **options)
    try:
        yield figure, list(panels.flat)
        with atomic_write(path) as part:
            figure.savefig(part, format="png", dpi=110)
    finally:
        pyplot.close(figure)


def draw_stages(path: Path, document: Document) -> None:
    """Draw a panel for each stage as PNG: bars for slicemill and its peers, a line for the limit."""
    stages = read_record(SuiteRecord, document).stages
    heights = [0.62 + 0.3 * (1 + len(stage.headline.peers)) for stage in stages.values()]
    size = (9.0, sum(heights))
    with new_figure(path, nrows=len(stages), figsize=size, height_ratios=heights, layout="constrained") as (_, panels):
        for (name, stage), panel in zip(stages.items(), panels, strict=True):
            _draw_stage(panel, name, stage)


def _draw_stage(panel: "Axes", name: str, stage: Stage) -> None:
    limit, peers = stage.headline.limit, stage.headline.peers
    rates = {"slicemill": stage.headline.per_second} | {peer: row.per_second for peer, row in peers.items()}
    panel.barh(list(rates), list(rates.values()), color=[SLICEMILL_COLOR, *[PEER_COLOR] * len(peers)], height=0.66)
    panel.set_ylim(len(rates) - 0.4, -0.6)
    panel.axvline(limit.per_second, color=LIMIT_COLOR, linewidth=1.6)
    panel.set_xlim(0, 1.16 * max(limit.per_second, *rates.values()))
    for position, rate in enumerate(rates.values()):
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.4}
        panel.annotate(format_three_digits(rate), (rate, position), (4, 0), textcoords="offset points", va="center",
                       fontsize=8, bbox=box)  # fmt: skip
    clock = "CPU time" if stage.is_cpu_time else "time"
    panel.set_title(f"{name}: {stage.unit_name} a second of {clock}   (line: {limit.name})", fontsize=9, loc="left")
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def draw_time_shares(path: Path, document: Document) -> None:
    """Draw the time shares of the inference pipeline as PNG, from the record of `bench infer`.

    One bar for each network, with and without post-processing; the times of all threads are added.
    """
    bars = {
        f"{network},\n{kind}": stages
        for network, shares in read_record(InferRecord, document).results.whole.items()
        for kind, stages in shares.stages.items()
    }
    with new_figure(path, figsize=(9.0, 0.9 + 0.62 * len(bars)), layout="constrained") as (_, (panel,)):
        left = dict.fromkeys(bars, 0.0)
        for color, name in enumerate(next(iter(bars.values()))):
            percents = [100 * stages[name].share for stages in bars.values()]
            panel.barh(list(bars), percents, left=list(left.values()), label=name, height=0.66, color=f"C{color}")
            for position, (bar, percent) in enumerate(zip(bars, percents, strict=True)):
                if percent >= LEGIBLE_PERCENT:
                    panel.text(
                        left[bar] + percent / 2, position, f"{percent:.0f}", ha="center", va="center", fontsize=8
                    )
                left[bar] += percent
        panel.invert_yaxis()
        panel.set(xlim=(0, 100), xlabel="% of the time of all threads")
        panel.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=9, fontsize=8, frameon=False, handlelength=1.2
        )
        panel.tick_params(labelsize=8)


def draw_growth(path: Path, document: Document) -> None:
    """Draw time and memory against slices, and time against scans, with the fitted lines, from `bench scale`."""
    record = read_record(ScaleRecord, document)
    lengths, costs = record.slices.measured.keys(), record.slices.measured.values()
    cpu, peaks = [cost.cpu_seconds for cost in costs], [cost.peak_mib for cost in costs]
    counts, seconds = record.cases.measured.keys(), list(record.cases.measured.values())
    with new_figure(path, ncols=3, figsize=(11, 3.4), layout="constrained") as (_, (first, second, third)):
        _draw_line(first, lengths, cpu, record.slices.cpu_seconds, ("slices of a scan", "CPU seconds of its ingest"))
        _draw_line(second, lengths, peaks, record.slices.peak_mib, ("slices of a scan", "peak memory, MiB"))
        _draw_line(third, counts, seconds, record.cases.seconds, ("scans", "seconds of the command, 1 worker"))


def _draw_line(
    panel: "Axes", amounts: Collection[str], values: Sequence[float], line: Line, labels: tuple[str, str]
) -> None:
    xs = [int(amount) for amount in amounts]
    panel.plot(xs, values, "o", color=SLICEMILL_COLOR)
    panel.plot(xs, [line.start + line.slope * x for x in xs], color=LIMIT_COLOR, linewidth=1.2)
    panel.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, 1.1 * max(values)))
    panel.set_title(f"slope {line.slope:.4g}, R² {line.r2:.4f}", fontsize=9)
    panel.grid(alpha=0.3)
