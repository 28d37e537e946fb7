"""One picture of a collection: what its scans, and the tumors in them, are like.

Panels about tumor are drawn only where there are masks, so that an empty axis never passes for a finding.
"""

import base64
import html
import io
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.files import Location, write_bytes
from slicemill.common.terminal import count_noun, format_cell, format_number, format_range
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Store
from slicemill.store.tables import MAIN_COLUMNS, manifest_row

Row = dict[str, Any]
Axes = Any
"""matplotlib's; it is not imported here."""

SUFFIXES = (".png", ".html")
SCAN_COLOR, TUMOR_COLOR, NONE_COLOR = "#4878a8", "#c8503c", "#b0b0b0"
COLUMNS = 4
PANEL_INCHES = (4.3, 3.3)
DOTS_PER_INCH = 110
MOST_BINS = 24
TABLE_ROWS = 2000
"""Rows of the page's table; a browser shows more only slowly, and manifest.csv has them all."""
WHOLE_SCAN = "percent of the scan"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the panels show, gathered from a store's cases."""

    rows: list[Row]
    """Rows of the manifest."""
    slice_hu: list[tuple[int, int]]
    """Lowest and highest HU of each slice that is not all padding."""
    diameters_mm: list[float]
    """Longest axial diameter of each lesion."""

    @property
    def known(self) -> list[Row]:
        """Return the rows of cases in which tumor is marked or known to be absent."""
        return [row for row in self.rows if row["has_tumor"] is not None]

    @property
    def tumors(self) -> list[Row]:
        """Return the rows of cases with tumor."""
        return [row for row in self.rows if row["has_tumor"]]


def gather(infos: Iterable[CaseInfo]) -> Facts:
    """Collect what the panels show."""
    facts = Facts(rows=[], slice_hu=[], diameters_mm=[])
    for info in infos:
        facts.rows.append(manifest_row(info))
        stats = zip(info.slice_stats.hu_min, info.slice_stats.hu_max, strict=True)
        facts.slice_hu.extend((low, high) for low, high in stats if low is not None and high is not None)
        facts.diameters_mm.extend(lesion.max_axial_diameter_mm for lesion in info.lesions or ())
    return facts


def write_plots(store: Store, out: Location) -> None:
    """Draw a store as ``.png``, or as one ``.html`` page with the main columns of its manifest.

    Raises
    ------
    ConfigError
        `out` has another suffix, the store has no case, or matplotlib is not installed.
    """
    suffix = PurePosixPath(out.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{out}: plots are a picture or a page; give it a name that ends in .png or .html.")
    facts = gather(case.info for case in store)
    if not facts.rows:
        raise ConfigError(
            f"{store.root}: has no case yet, so there is nothing to draw; fill it with `slicemill ingest`."
        )
    name = store.root.absolute().name
    picture = draw(facts, name)
    write_bytes(out, picture if suffix == ".png" else page(facts, picture, name))


def draw(facts: Facts, name: str) -> bytes:
    """Return the picture of a collection, as PNG.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "store plots: needs matplotlib, which is not installed; install slicemill with the extra `ingest` or `train`."
        ) from error
    panels = chosen_panels(facts)
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(headline(facts, name), fontsize=12, parse_math=False)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes, facts)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def chosen_panels(facts: Facts) -> list[Callable[[Axes, Facts], None]]:
    """Return the panels that have something to show."""
    panels: list[Callable[[Axes, Facts], None]] = [draw_spacing, draw_slices, draw_extent, draw_hu]
    if facts.tumors:
        panels += [draw_lesion_counts, draw_volumes, draw_burden, draw_diameters]
    return panels


def headline(facts: Facts, name: str) -> str:
    """Return the line above the panels: cases, slices, and what is known of tumor."""
    rows = facts.rows
    patients = len({row["patient_id"] for row in rows})
    slices = sum(row["nz"] for row in rows)
    unmarked = len(rows) - len(facts.known)
    if not facts.known:
        tumor = "tumor is marked in none" if any(row["mask_path"] for row in rows) else "no masks"
    else:
        tumor = f"tumor in {len(facts.tumors)} of {len(facts.known)}" + (f", {unmarked} not marked" if unmarked else "")
    return f"{name}: {count_noun(len(rows), 'case')} of {count_noun(patients, 'patient')}, {slices:,} slices; {tumor}"


def draw_spacing(axes: Axes, facts: Facts) -> None:
    """Draw slice distance against pixel size; the area of a dot is the number of cases there, to a hundredth of a mm."""
    places = Counter((round(row["spacing_x_mm"], 2), round(row["spacing_z_mm"], 2)) for row in facts.rows)
    inplane, between = [x for x, _ in places], [z for _, z in places]
    areas = [max(24.0, 600 * count / len(facts.rows)) for count in places.values()]
    axes.scatter(inplane, between, s=areas, color=SCAN_COLOR, alpha=0.5, linewidths=0)
    axes.set_title(f"spacing: z {format_range(between)}, x {format_range(inplane)} mm", fontsize=10)
    _label(axes, "in a slice (x), mm", "between slices (z), mm")
    axes.set(xlim=(0, max(inplane) * 1.2), ylim=(0, max(between) * 1.2))
    axes.grid(alpha=0.25)


def draw_slices(axes: Axes, facts: Facts) -> None:
    """Draw how many slices the cases have."""
    _histogram(axes, [row["nz"] for row in facts.rows], "slices per case", "slices", "cases")


def draw_extent(axes: Axes, facts: Facts) -> None:
    """Draw how much of the patient the scans cover along z."""
    heights = [row["nz"] * row["spacing_z_mm"] / 10 for row in facts.rows]
    _histogram(axes, heights, "height covered", "slices x distance, cm", "cases")


def draw_hu(axes: Axes, facts: Facts) -> None:
    """Draw the lowest and the highest HU of every slice, padding left out."""
    lows, highs = [low for low, _ in facts.slice_hu], [high for _, high in facts.slice_hu]
    if lows:
        edges = _edges([*lows, *highs], 40)
        axes.hist(lows, edges, color=NONE_COLOR, label="lowest")
        axes.hist(highs, edges, color=SCAN_COLOR, alpha=0.8, label="highest")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6)  # a single slice still shows
        axes.locator_params(axis="x", nbins=7)
        axes.legend(fontsize=8, frameon=False)
        axes.set_title(f"HU of slices: {format_range([*lows, *highs])}", fontsize=10)
    _label(axes, "HU, padding left out", "slices (log)")


def draw_lesion_counts(axes: Axes, facts: Facts) -> None:
    """Draw how many lesions the cases have, those without tumor among them."""
    counts = [row["n_lesions"] for row in facts.known]
    _histogram(axes, counts, "lesions per case", "lesions (26-connected)", "cases", color=TUMOR_COLOR)
    axes.set_xlim(-0.6, max(*counts, 4) + 0.6)
    axes.locator_params(axis="x", integer=True)


def draw_volumes(axes: Axes, facts: Facts) -> None:
    """Draw the tumor volume of cases with tumor, on a logarithmic axis."""
    volumes = [row["tumor_volume_ml"] for row in facts.tumors]
    _log_histogram(axes, volumes, "tumor volume", "ml per case with tumor (log)", "cases")


def draw_burden(axes: Axes, facts: Facts) -> None:
    """Draw tumor as a percentage of the organ, or of the scan where no organ is named."""
    organ = [row["tumor_percent_organ"] for row in facts.tumors if row["tumor_percent_organ"] is not None]
    whole = [row["tumor_percent_scan"] for row in facts.tumors]
    unit = "percent of the organ, tumor included" if organ else WHOLE_SCAN
    _histogram(axes, organ or whole, "tumor burden", unit, "cases with tumor", color=TUMOR_COLOR)


def draw_diameters(axes: Axes, facts: Facts) -> None:
    """Draw the longest axial diameter of every lesion."""
    _log_histogram(axes, facts.diameters_mm, "lesion size", "longest axial diameter, mm (log)", "lesions")


def _histogram(
    axes: Axes, values: Sequence[float], title: str, unit: str, what: str, *, color: str = SCAN_COLOR
) -> None:
    axes.hist(values, _edges(values, MOST_BINS), color=color, edgecolor="white", linewidth=0.5)
    if min(values) == max(values):
        axes.set_xlim(0, 2 * max(values[0], 1e-3))
    _finish(axes, values, title, unit, what)


def _log_histogram(axes: Axes, values: Sequence[float], title: str, unit: str, what: str) -> None:
    """Draw bins of equal ratio; values of 0 (a lesion of one voxel has no length) count into the lowest."""
    above = [value for value in values if value > 0]
    lowest = min(above, default=1.0)
    logs = [math.log10(max(value, lowest)) for value in values]
    edges = [10**edge for edge in _edges(logs, MOST_BINS)]
    axes.hist([10**value for value in logs], edges, color=TUMOR_COLOR, edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    if edges[-1] < 2 * edges[0]:
        axes.set_xlim(edges[0] / 3, edges[-1] * 3)
    _finish(axes, values, title, unit, what)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    ratio = high / low
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 5, 7) if ratio < 20 else (1, 2, 5) if ratio < 1000 else (1,))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes, values: Sequence[float], title: str, unit: str, what: str) -> None:
    """Name a histogram, its axes and its median, and count in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    middle = statistics.median(values)
    if min(values) == max(values):
        axes.set_title(f"{title}: {format_number(middle)}", fontsize=10)
    else:
        axes.axvline(middle, color="0.2", linewidth=1, linestyle="--")
        axes.set_title(f"{title}: median {format_number(middle)}, {format_range(values)}", fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    _label(axes, unit, what)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def _edges(values: Sequence[float], most: int) -> list[float]:
    """Return bin edges: about twice the root of how many values there are; for whole numbers each bin holds as many of them.

    >>> _edges([0, 1, 3], 24)
    [-0.5, 0.5, 1.5, 2.5, 3.5]
    """
    low, high = min(values), max(values)
    bins = min(most, max(6, math.ceil(2 * math.sqrt(len(values)))))
    whole = all(isinstance(value, int) for value in values)
    if high == low:
        margin = max(0.5 if whole else 5e-4, 0.05 * abs(low))
        return [low - margin, high + margin]
    if whole:
        step = math.ceil((high - low + 1) / bins)
        return [low - 0.5 + step * number for number in range(math.ceil((high - low + 1) / step) + 1)]
    return [low + (high - low) * number / bins for number in range(bins)] + [high]


def page(facts: Facts, picture: bytes, name: str) -> bytes:
    """Return one self-contained HTML page: the picture, and the main columns of the manifest as a table."""
    title = html.escape(headline(facts, name))
    shown = facts.rows[:TABLE_ROWS]
    left = f"<p>{len(facts.rows) - len(shown):,} more cases stand in manifest.csv.</p>" if shown != facts.rows else ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in MAIN_COLUMNS)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(format_cell(row[column]))}</td>' for column in MAIN_COLUMNS)}</tr>"
        for row in shown
    )
    return PAGE.format(
        title=title, picture=base64.b64encode(picture).decode(), head=head, body=body, left=left
    ).encode()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; }}
img {{ max-width: 100%; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; white-space: nowrap; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }}
th {{ position: sticky; top: 0; background: #f4f4f4; }}
th:first-child, td:first-child {{ text-align: left; }}
</style></head><body>
<h1 style="font-size: 1.2rem">{title}</h1>
<img alt="{title}" src="data:image/png;base64,{picture}">
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
{left}
<p>Research software, not a medical device.</p>
</body></html>
"""
