"""The page of all cases: flagged cases, distributions, and a table with links to the pages of the cases."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from slicemill.common.html import render
from slicemill.common.terminal import format_number
from slicemill.measure.lesions.pictures import to_jpeg
from slicemill.measure.lesions.records import DISCLAIMER

THUMB_PX = (220, 90)
MOST_PICTURES = 300
"""Cases with a thumbnail on the page; more would make the page too large."""


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """A row of cases.csv."""

    case: str
    lesion_count: int | None
    tumor_ml: float | None
    organ_ml: float | None
    tumor_burden_percent: float | None
    sum_of_target_diameters_mm: int | float
    longest_mm: float | None
    """Longest axial diameter of all lesions."""
    flags: str
    """Reasons for a manual check of the case, separated by semicolons."""


NAMES = {
    "lesion_count": "lesions",
    "tumor_ml": "tumor, ml",
    "organ_ml": "organ, ml",
    "tumor_burden_percent": "burden, %",
    "sum_of_target_diameters_mm": "targets, mm",
    "longest_mm": "longest, mm",
}
"""Column -> header on the page."""


@dataclass(frozen=True, kw_only=True)
class FailedCase:
    """A case that could not be measured."""

    case: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class HistogramBar:
    """A bar of a histogram, pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The distribution of one figure over the cases."""

    title: str
    low: str
    """The smallest value."""
    high: str
    """The largest value."""
    bars: tuple[HistogramBar, ...]


def render_cohort_page(out: Path, rows: Sequence[CaseRow], failed: Sequence[FailedCase]) -> bytes:
    """Return the page. It is self-contained except for links to the pages of the cases."""
    columns = NAMES | {"longest_mm": "longest diameter, mm"}
    drawings = [
        make_histogram(name, [value for row in rows if (value := getattr(row, column)) is not None])
        for column, name in columns.items()
    ]
    return render(
        "measure/lesions/cohort_page.html",
        title="Lesions of all cases",
        note=DISCLAIMER,
        cards=list_figures(rows, failed),
        flagged=[row for row in rows if row.flags],
        failed=[(one.case, one.reason) for one in failed],
        histograms=[drawing for drawing in drawings if drawing],
        names=NAMES,
        rows=rows,
        thumbs={row.case: make_thumb(out / f"{row.case}.png") for row in rows[:MOST_PICTURES]},
    )


def list_figures(rows: Sequence[CaseRow], failed: Sequence[FailedCase]) -> list[tuple[str, object]]:
    """Return the key figures of all cases, without missing ones."""
    volumes = [row.tumor_ml for row in rows if row.tumor_ml]
    named: list[tuple[str, object]] = [
        ("cases", len(rows)),
        ("with tumor", sum(bool(row.lesion_count) for row in rows)),
        ("lesions", sum(row.lesion_count or 0 for row in rows)),
        ("median tumor volume of cases with tumor, ml", statistics.median(volumes) if volumes else None),
        ("flagged", sum(bool(row.flags) for row in rows)),
        ("failed", len(failed)),
    ]
    return [(name, value) for name, value in named if value is not None]


def make_thumb(path: Path) -> bytes | None:
    """Return the left part of a case's picture as a small JPEG; None without a picture."""
    if not path.exists():
        return None
    with Image.open(path) as picture:
        left = picture.convert("RGB").crop((0, 0, min(picture.width, 2 * picture.height), picture.height))
    left.thumbnail(THUMB_PX)
    return to_jpeg(left)


def make_histogram(name: str, values: Sequence[float]) -> Histogram | None:
    """Return a histogram with its median; None with fewer than two different values."""
    if len(set(values)) < 2:
        return None
    low, high, bins = min(values), max(values), min(20, max(5, math.ceil(2 * math.sqrt(len(values)))))
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    step = 260 / bins
    bars = []
    for index, count in enumerate(counts):
        height = 80 * count / max(counts)
        bars.append(HistogramBar(x=20 + index * step, y=90 - height, width=step - 1, height=height))
    return Histogram(
        title=f"{name}: median {format_number(statistics.median(values))}, n = {len(values)}",
        low=format_number(low),
        high=format_number(high),
        bars=tuple(bars),
    )
