"""All cases of a folder: tables as CSV and JSON, and one page that says where to look."""

import html
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from slicemill.common import html as page
from slicemill.common.files import write_bytes, write_csv, write_json
from slicemill.common.terminal import format_number, peak_mib
from slicemill.ct.labels import labels_from_json
from slicemill.measure.lesions.case_page import BLUE, INK, embedded
from slicemill.measure.lesions.slicer3d import write_color_table

Row = dict[str, Any]
THUMB_PX = (220, 90)
MOST_PICTURES = 300
"""Cases with a small picture on the page: more would make it too heavy to open."""
FAR = 3.5
"""Modified z-score from which on a volume is far from the others (Iglewicz and Hoaglin 1993)."""
ENOUGH = 5
"""Cases from which on volumes are compared."""
FIGURES = ("lesion_count", "tumor_ml", "organ_ml", "tumor_burden_percent", "sum_of_target_diameters_mm")
NAMES = ("lesions", "tumor, ml", "organ, ml", "burden, %", "targets, mm")


def write_cohort(out: Path, cases: Sequence[Row], failed: Sequence[Row]) -> None:
    """Write cases.csv, lesions.csv, summary.json, colors.ctbl and report.html for records of cases (`slicemill.measure.lesions.jobs.describe`)."""
    far = far_volumes(cases)
    rows = [case_row(case) | {"flags": "; ".join(case["flags"] + far.get(case["case"], []))} for case in cases]
    lesions = [lesion_row(case["case"], lesion) for case in cases for lesion in case["lesions"]]
    write_csv(out / "cases.csv", rows, ["case"])
    write_csv(out / "lesions.csv", lesions, ["case"])
    write_json(out / "summary.json", {"cases": rows, "failed": list(failed), "peak_mib": round(peak_mib(), 1)})
    if cases:
        write_color_table(out / "colors.ctbl", labels_from_json(cases[0]))
    write_bytes(out / "report.html", cohort_page(out, rows, failed))


def case_row(case: Row) -> Row:
    """Return a case as a row."""
    longest = max((lesion["max_axial_diameter_mm"] for lesion in case["lesions"]), default=None)
    return {"case": case["case"], **{key: case[key] for key in FIGURES}, "longest_mm": longest}


def lesion_row(name: str, lesion: Row) -> Row:
    """Return a lesion as a row of plain cells: lists and records become columns of their own."""
    row: Row = {"case": name}
    for key, value in lesion.items():
        if key in ("hu", "rim_hu"):
            row |= {
                f"{key}_{part}": (value or {}).get(part) for part in ("voxels", "mean", "sd", "min", "max", "median")
            }
        elif key.startswith("centroid"):
            row |= {f"{key}_{axis}": part for axis, part in zip("xyz" if "lps" in key else "zyx", value, strict=True)}
        else:
            row[key] = str(value) if isinstance(value, list) else value
    return row


def far_volumes(cases: Sequence[Row]) -> dict[str, list[str]]:
    """Return case -> what is far from the other cases: volumes of the organ whose logarithm has a modified z-score above FAR."""
    volumes = {case["case"]: math.log(case["organ_ml"]) for case in cases if case["organ_ml"]}
    if len(volumes) < ENOUGH:
        return {}
    middle = statistics.median(volumes.values())
    spread = statistics.median(abs(value - middle) for value in volumes.values())
    if not spread:
        return {}
    scores = {name: 0.6745 * (value - middle) / spread for name, value in volumes.items()}
    return {
        name: [f"organ volume {'above' if score > 0 else 'below'} the others (modified z {score:.1f})"]
        for name, score in scores.items()
        if abs(score) > FAR
    }


def cohort_page(out: Path, rows: Sequence[Row], failed: Sequence[Row]) -> bytes:
    """Return the page, self-contained but for its links to the pages of the cases."""
    flagged = [row for row in rows if row["flags"]]
    with_tumor = sum(bool(row["lesion_count"]) for row in rows)
    volumes = [row["tumor_ml"] for row in rows if row["tumor_ml"]]
    cards = [
        ("cases", len(rows)),
        ("with tumor", with_tumor),
        ("lesions", sum(row["lesion_count"] or 0 for row in rows)),
        ("median tumor where there is one, ml", statistics.median(volumes) if volumes else None),
        ("to look at", len(flagged)),
        ("failed", len(failed)),
    ]
    parts = [
        "<h1>Lesions of all cases</h1>",
        '<p class="note">research use, not a diagnosis. Computed from segmentations; a person must check them.</p>',
        page.cards([(name, value) for name, value in cards if value is not None]),
    ]
    why = page.table(["case", "why"], [[link(row["case"]), row["flags"]] for row in flagged])
    parts.append(page.section("Look at these first", why if flagged else page.paragraph("No case has a flag.")))
    if failed:
        parts.append(
            page.section("Failed", page.table(["case", "reason"], [[row["case"], row["reason"]] for row in failed]))
        )
    columns = (*zip(FIGURES, NAMES, strict=True), ("longest_mm", "longest diameter, mm"))
    drawings = [histogram(name, [row[key] for row in rows if row[key] is not None]) for key, name in columns]
    if any(drawings):
        parts.append(page.section("Distributions", f'<div class="histograms">{"".join(drawings)}</div>'))
    parts.append(page.section("All cases", table(out, rows)))
    return page.document("Lesions of all cases", "\n".join(parts))


def link(name: str) -> page.Markup:
    """Return a link to a case's page, which lies beside."""
    return page.Markup(f'<a href="{html.escape(quote(name))}.html">{html.escape(name)}</a>')


def table(out: Path, rows: Sequence[Row]) -> str:
    """Return the sortable table of all cases, the first with small pictures."""
    header = ["case", *NAMES, "longest, mm", "flags", "picture"]
    body = []
    for place, row in enumerate(rows):
        picture = thumb(out / f"{row['case']}.png") if place < MOST_PICTURES else ""
        body.append([link(row["case"]), *(row[key] for key in FIGURES), row["longest_mm"], row["flags"], picture])
    return page.table(header, body, sortable=True)


def thumb(path: Path) -> page.Markup:
    """Return a case's picture, small."""
    if not path.exists():
        return page.Markup("")
    with Image.open(path) as picture:
        left = picture.convert("RGB").crop((0, 0, min(picture.width, 2 * picture.height), picture.height))
    left.thumbnail(THUMB_PX)
    return page.Markup(embedded(left, "key slice"))


def histogram(name: str, values: Sequence[float]) -> str:
    """Return a histogram as a drawing in the page, with its median; empty below two values."""
    if len(values) < 2 or min(values) == max(values):
        return ""
    low, high, bins = min(values), max(values), min(20, max(5, math.ceil(2 * math.sqrt(len(values)))))
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    side = 260 / bins
    bars = []
    for place, count in enumerate(counts):
        tall = 80 * count / max(counts)
        bars.append(rect(20 + place * side, 90 - tall, side - 1, tall))
    words = f"{name}: median {format_number(statistics.median(values))}, n = {len(values)}"
    ends = [
        f'<text x="{x}" y="104" font-size="10" text-anchor="{anchor}" fill="{INK}">{html.escape(format_number(value))}</text>'
        for x, anchor, value in ((20, "start", low), (280, "end", high))
    ]
    title = f'<text x="20" y="118" font-size="11" fill="{INK}">{html.escape(words)}</text>'
    return f'<svg class="histogram" role="img" aria-label="{html.escape(words)}" viewBox="0 0 300 124">{"".join([*bars, *ends])}{title}</svg>'


def rect(x: float, y: float, width: float, height: float) -> str:
    """Return a bar of a drawing."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{BLUE}"/>'
