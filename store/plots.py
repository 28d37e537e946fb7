"""Plots of a collection: spacing, size and HU of its scans, and the tumors in them.

Panels about tumors are drawn only if a case has tumor, because an empty panel could be mistaken for a result.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.files import Location, write_bytes
from slicemill.common.html import render
from slicemill.common.panels import BLUE, GRAY, RED, Axes, Panel, draw_panels, label_log_axis
from slicemill.common.terminal import count_noun, format_number, format_range
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Store
from slicemill.store.tables import MAIN_COLUMNS, ManifestRow, make_manifest_row

SUFFIXES = (".png", ".html")
SCAN_COLOR, TUMOR_COLOR, LOWEST_COLOR = BLUE, RED, GRAY
COLUMNS = 4
MAX_BINS = 24
TABLE_ROWS = 2000
"""Rows of the page's table. More rows are slow in a browser; manifest.csv has all."""
WHOLE_SCAN = "percent of the scan"


@dataclass(frozen=True, kw_only=True)
class PlotData:
    """Data of the panels."""

    rows: list[ManifestRow]
    """The manifest."""
    slice_hu: list[tuple[int, int]]
    """Lowest and highest HU of each slice; slices of padding only are left out."""
    diameters_mm: list[float]
    """Longest axial diameter of each lesion."""

    @property
    def labeled_cases(self) -> list[ManifestRow]:
        """Return the cases with a tumor label, whether or not they have tumor."""
        return [row for row in self.rows if row.has_tumor is not None]

    @property
    def tumors(self) -> list[ManifestRow]:
        """Return the cases with tumor."""
        return [row for row in self.rows if row.has_tumor]


def collect_data(infos: Iterable[CaseInfo]) -> PlotData:
    """Collect the data of the panels from a store's cases."""
    data = PlotData(rows=[], slice_hu=[], diameters_mm=[])
    for info in infos:
        data.rows.append(make_manifest_row(info))
        stats = zip(info.slice_stats.hu_min, info.slice_stats.hu_max, strict=True)
        data.slice_hu.extend((low, high) for low, high in stats if low is not None and high is not None)
        data.diameters_mm.extend(lesion.max_axial_diameter_mm for lesion in info.lesions or ())
    return data


def write_plots(store: Store, out: Location) -> list[str]:
    """Write the plots of a store as ``.png``, or as one ``.html`` page with the main columns of its manifest.

    Return the reasons of the cases that are left out because they cannot be read.

    Raises
    ------
    ConfigError
        `out` has another suffix, the store has no cases, or matplotlib is not installed.
    """
    suffix = PurePosixPath(out.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError("plots are written as .png or .html; choose a name with one of these suffixes.", where=out)
    cases, unreadable = store.read_cases()
    data = collect_data(case.info for case in cases)
    if not data.rows:
        raise ConfigError("has no cases to plot; add some with `slicemill ingest`.", where=store.root)
    name = store.root.absolute().name
    picture = draw_plots(data, name)
    write_bytes(out, picture if suffix == ".png" else render_page(data, picture, name))
    return unreadable


def draw_plots(data: PlotData, name: str) -> bytes:
    """Draw the plots of a collection as one PNG.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    panels = [_with_data(panel, data) for panel in choose_panels(data)]
    return draw_panels(panels, COLUMNS, make_title(data, name))


def _with_data(draw: Callable[[Axes, PlotData], None], data: PlotData) -> Panel:
    return lambda axes: draw(axes, data)


def choose_panels(data: PlotData) -> list[Callable[[Axes, PlotData], None]]:
    """Return the panels for which there is data."""
    panels: list[Callable[[Axes, PlotData], None]] = [draw_spacing, draw_slices, draw_extent, draw_hu]
    if data.tumors:
        panels += [draw_lesion_counts, draw_volumes, draw_burden, draw_diameters]
    return panels


def make_title(data: PlotData, name: str) -> str:
    """Return the title: numbers of cases, patients and slices, and of cases with tumor."""
    rows = data.rows
    patients = len({row.patient_id for row in rows})
    slices = sum(row.nz for row in rows)
    unlabeled = len(rows) - len(data.labeled_cases)
    if not data.labeled_cases:
        tumor = "no tumor labels" if any(row.mask_path for row in rows) else "no masks"
    else:
        tumor = f"tumor in {len(data.tumors)} of {len(data.labeled_cases)}"
        tumor += f", {unlabeled} without tumor label" if unlabeled else ""
    return f"{name}: {count_noun(len(rows), 'case')} of {count_noun(patients, 'patient')}, {slices:,} slices; {tumor}"


def draw_spacing(axes: Axes, data: PlotData) -> None:
    """Draw slice distance against pixel size, rounded to 0.01 mm. The area of a dot is the number of cases."""
    spacings = Counter((round(row.spacing_x_mm, 2), round(row.spacing_z_mm, 2)) for row in data.rows)
    inplane, between = [x for x, _ in spacings], [z for _, z in spacings]
    areas = [max(24.0, 600 * count / len(data.rows)) for count in spacings.values()]
    axes.scatter(inplane, between, s=areas, color=SCAN_COLOR, alpha=0.5, linewidths=0)
    axes.set_title(f"spacing: z {format_range(between)}, x {format_range(inplane)} mm")
    axes.set(xlim=(0, max(inplane) * 1.2), ylim=(0, max(between) * 1.2))
    axes.set(xlabel="in a slice (x), mm", ylabel="between slices (z), mm")


def draw_slices(axes: Axes, data: PlotData) -> None:
    """Draw the number of slices per case."""
    _histogram(axes, [row.nz for row in data.rows], "slices per case", "slices", "cases")


def draw_extent(axes: Axes, data: PlotData) -> None:
    """Draw the length along z that the scans cover."""
    heights = [row.nz * row.spacing_z_mm / 10 for row in data.rows]
    _histogram(axes, heights, "height covered", "slices x distance, cm", "cases")


def draw_hu(axes: Axes, data: PlotData) -> None:
    """Draw the lowest and highest HU of all slices, without padding."""
    lows, highs = [low for low, _ in data.slice_hu], [high for _, high in data.slice_hu]
    if lows:
        edges = _edges([*lows, *highs], 40)
        axes.hist(lows, edges, color=LOWEST_COLOR, label="lowest")
        axes.hist(highs, edges, color=SCAN_COLOR, alpha=0.8, label="highest")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6)  # keeps a bar of one slice visible
        axes.locator_params(axis="x", nbins=7)
        axes.legend(fontsize=8, frameon=False)
        axes.set_title(f"HU of slices: {format_range([*lows, *highs])}")
    axes.set(xlabel="HU, padding left out", ylabel="slices (log)")


def draw_lesion_counts(axes: Axes, data: PlotData) -> None:
    """Draw the number of lesions per case, including cases without tumor."""
    counts = [row.n_lesions for row in data.labeled_cases if row.n_lesions is not None]
    _histogram(axes, counts, "lesions per case", "lesions (26-connected)", "cases", color=TUMOR_COLOR)
    axes.set_xlim(-0.6, max(*counts, 4) + 0.6)
    axes.locator_params(axis="x", integer=True)


def draw_volumes(axes: Axes, data: PlotData) -> None:
    """Draw the tumor volume of cases with tumor, on a logarithmic axis."""
    volumes = [row.tumor_volume_ml for row in data.tumors if row.tumor_volume_ml is not None]
    _log_histogram(axes, volumes, "tumor volume", "ml per case with tumor (log)", "cases")


def draw_burden(axes: Axes, data: PlotData) -> None:
    """Draw tumor as a percentage of the organ, or of the scan if no label is the organ."""
    organ = [row.tumor_percent_organ for row in data.tumors if row.tumor_percent_organ is not None]
    scan = [row.tumor_percent_scan for row in data.tumors if row.tumor_percent_scan is not None]
    unit = "percent of the organ, tumor included" if organ else WHOLE_SCAN
    _histogram(axes, organ or scan, "tumor burden", unit, "cases with tumor", color=TUMOR_COLOR)


def draw_diameters(axes: Axes, data: PlotData) -> None:
    """Draw the longest axial diameter of all lesions."""
    _log_histogram(axes, data.diameters_mm, "lesion size", "longest axial diameter, mm (log)", "lesions")


def _histogram(
    axes: Axes, values: Sequence[float], title: str, unit: str, what: str, *, color: str = SCAN_COLOR
) -> None:
    axes.hist(values, _edges(values, MAX_BINS), color=color, edgecolor="white", linewidth=0.5)
    if min(values) == max(values):
        axes.set_xlim(0, 2 * max(values[0], 1e-3))
    _finish(axes, values, title, unit, what)


def _log_histogram(axes: Axes, values: Sequence[float], title: str, unit: str, what: str) -> None:
    """Draw bins of equal ratio. Values of 0, such as the diameter of a single voxel, count in the lowest bin."""
    above = [value for value in values if value > 0]
    lowest = min(above, default=1.0)
    logs = [math.log10(max(value, lowest)) for value in values]
    edges = [10**edge for edge in _edges(logs, MAX_BINS)]
    axes.hist([10**value for value in logs], edges, color=TUMOR_COLOR, edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    if edges[-1] < 2 * edges[0]:
        axes.set_xlim(edges[0] / 3, edges[-1] * 3)
    _finish(axes, values, title, unit, what)
    label_log_axis(axes)


def _finish(axes: Axes, values: Sequence[float], title: str, unit: str, what: str) -> None:
    """Add title, axis names and median to a histogram, and integer ticks to its counts."""
    from matplotlib.ticker import MaxNLocator

    middle = statistics.median(values)
    if min(values) == max(values):
        axes.set_title(f"{title}: {format_number(middle)}")
    else:
        axes.axvline(middle, color="0.2", linewidth=1, linestyle="--")
        axes.set_title(f"{title}: median {format_number(middle)}, {format_range(values)}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set(xlabel=unit, ylabel=what)


def _edges(values: Sequence[float], most: int) -> list[float]:
    """Return bin edges: about 2 sqrt(n) bins for n values, and equal integer ranges for integers.

    >>> _edges([0, 1, 3], 24)
    [-0.5, 0.5, 1.5, 2.5, 3.5]
    """
    low, high = min(values), max(values)
    bins = min(most, max(6, math.ceil(2 * math.sqrt(len(values)))))
    integers = all(isinstance(value, int) for value in values)
    if high == low:
        margin = max(0.5 if integers else 5e-4, 0.05 * abs(low))
        return [low - margin, high + margin]
    if integers:
        step = math.ceil((high - low + 1) / bins)
        return [low - 0.5 + step * number for number in range(math.ceil((high - low + 1) / step) + 1)]
    return [low + (high - low) * number / bins for number in range(bins)] + [high]


def render_page(data: PlotData, picture: bytes, name: str) -> bytes:
    """Return one self-contained HTML page: the picture, and the main columns of the manifest as a table."""
    shown = [row.columns() for row in data.rows[:TABLE_ROWS]]
    return render(
        "store/plots.html",
        title=make_title(data, name),
        picture=picture,
        columns=MAIN_COLUMNS,
        rows=[[row[column] for column in MAIN_COLUMNS] for row in shown],
        more=len(data.rows) - len(shown),
    )
