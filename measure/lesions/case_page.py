"""The page of one case: key figures, every lesion in pictures, where the tumors lie, the table, and what it was made of."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slicemill.common import html as page
from slicemill.common.files import write_bytes
from slicemill.ct.pictures import save_png
from slicemill.measure.lesions.measurements import Volume
from slicemill.measure.lesions.pictures import case_picture, lesion_picture

Row = dict[str, Any]
SHOWN = 12
"""Lesions with pictures; the table has all."""
STRIP_PX = (900, 130)
BLUE, RED, INK = "#9cc3e6", "#d4483c", "#5b6673"
COLUMNS = {
    "id": "lesion",
    "volume_ml": "volume, ml",
    "max_axial_diameter_mm": "longest, mm",
    "perpendicular_mm": "across, mm",
    "who_product_mm2": "product, mm²",
    "max_3d_diameter_mm": "longest in 3D, mm",
    "sphericity": "sphericity",
    "organ_surface_mm": "to the organ's surface, mm",
    "probability_mean": "mean probability",
    "key_z": "key slice",
}


def write_case_page(out: Path, case: Row, volume: Volume) -> None:
    """Write ``NAME.html`` and ``NAME.png`` for a case's record (`slicemill.measure.lesions.jobs.describe`)."""
    pictures = [lesion_picture(volume, lesion) for lesion in case["lesions"][:SHOWN]] or [case_picture(volume)]
    save_png(out / f"{case['case']}.png", pictures[0])
    write_bytes(out / f"{case['case']}.html", case_page(case, pictures, strip(volume, case["lesions"])))


def case_page(case: Row, pictures: Sequence[Image.Image], organ_strip: str) -> bytes:
    """Return the page, self-contained."""
    title = f"{case['case']}: lesions"
    lesions = case["lesions"]
    longest = max((lesion["max_axial_diameter_mm"] for lesion in lesions), default=None)
    figures = [
        ("lesions", case["lesion_count"]),
        ("tumor, ml", case["tumor_ml"]),
        (f"{case['organ'] or 'organ'} with tumors, ml", case["organ_ml"]),
        ("tumor burden, % of the organ", case["tumor_burden_percent"]),
        ("longest axial diameter, mm", longest),
        (f"sum of {len(case['target_ids'])} target diameters, mm", case["sum_of_target_diameters_mm"]),
    ]
    return page.document(
        title,
        "\n".join(
            [
                f"<h1>{html.escape(case['case'])}</h1>",
                f'<p class="note">{html.escape(case["note"])}. Computed from a segmentation; a person must check it.</p>',
                page.cards([(name, value) for name, value in figures if value is not None]),
                flagged(case["flags"]),
                page.section("Lesions in pictures", *captioned(lesions, pictures)),
                page.section(
                    "Where they lie",
                    organ_strip,
                    '<p class="note">Area of organ (blue) and tumor (red) in each slice, feet at the left; below, the slices of each lesion.</p>',
                ),
                page.section("All lesions", lesion_table(lesions), definitions(case)),
                page.section("What was computed from what", page.pairs(provenance(case))),
            ]
        ),
    )


def flagged(flags: Sequence[str]) -> str:
    """Return what should send a person to look, as a list; empty without any."""
    items = "".join(f"<li>{html.escape(flag)}</li>" for flag in flags)
    return page.section("Look at", f"<ul>{items}</ul>") if flags else ""


def captioned(lesions: Sequence[Row], pictures: Sequence[Image.Image]) -> list[str]:
    """Return each picture with what it shows."""
    if not lesions:
        return [page.paragraph("No tumor was found."), embedded(pictures[0], "the segmentation")]
    parts = []
    for lesion, picture in zip(lesions, pictures, strict=False):
        size = (
            f"{lesion['volume_ml']:.2f} ml, {lesion['max_axial_diameter_mm']:.1f} x {lesion['perpendicular_mm']:.1f} mm"
        )
        words = f"Lesion {lesion['id']}: {size}, slices {lesion['first_z']} to {lesion['last_z']}"
        parts.append(
            f'<figure class="views"><figcaption>{html.escape(words)}</figcaption>{embedded(picture, words)}</figure>'
        )
    if len(lesions) > len(pictures):
        parts.append(page.paragraph(f"{len(lesions) - len(pictures)} smaller lesions stand in the table."))
    legend = (
        "Outlines: organ blue, tumor red; lines: longest diameter yellow, the longest at right angles green. "
        "From the left: the whole key slice, its part around the lesion, the slices beside it, coronal, sagittal."
    )
    return [*parts, f'<p class="note">{legend}</p>']


def embedded(picture: Image.Image, alt: str) -> str:
    """Return a picture inside the page."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=False, compress_level=6)
    source = base64.b64encode(stream.getvalue()).decode()
    return f'<span class="picture"><img alt="{html.escape(alt)}" src="data:image/png;base64,{source}"></span>'


def lesion_table(lesions: Sequence[Row]) -> str:
    """Return all lesions, with HU where there is a scan."""
    if not lesions:
        return ""
    kept = [key for key in COLUMNS if any(lesion[key] is not None for lesion in lesions)]
    sizes = page.table([COLUMNS[key] for key in kept], [[one[key] for key in kept] for one in lesions], sortable=True)
    header = ["lesion", "slices", "center, LPS mm", "center, voxel z y x"]
    rows: list[list[object]] = [
        [
            one["id"],
            f"{one['first_z']} to {one['last_z']}",
            numbers(one["centroid_lps_mm"]),
            numbers(one["centroid_zyx"]),
        ]
        for one in lesions
    ]
    if any(lesion["hu"] for lesion in lesions):
        header += ["HU, mean ± SD", "HU, median (min to max)", "rim HU, mean ± SD"]
        for row, lesion in zip(rows, lesions, strict=True):
            row += [spread(lesion["hu"]), extremes(lesion["hu"]), spread(lesion["rim_hu"])]
    return sizes + page.table(header, rows, sortable=True)


def numbers(values: Sequence[float]) -> str:
    """Return three figures in a row.

    >>> numbers([1.25, -3.0, 4.0])
    '1.2, -3.0, 4.0'
    """
    return ", ".join(f"{value:.1f}" for value in values)


def spread(hu: Row | None) -> str | None:
    """Return mean and SD."""
    return None if hu is None else f"{hu['mean']:.0f} ± {hu['sd']:.0f}"


def extremes(hu: Row | None) -> str | None:
    """Return median and range."""
    return None if hu is None else f"{hu['median']:.0f} ({hu['min']} to {hu['max']})"


def definitions(case: Row) -> str:
    """Return how the figures are meant."""
    words = (
        "Lesions are 26-connected. Diameters lie on one axial slice, between outer edges of pixels, along the convex hull. "
        "Targets (RECIST 1.1): at most two of this organ, at least 10 mm long, twice the slice distance where that is above 5 mm; "
        f"here {', '.join(map(str, case['target_ids'])) or 'none'}. "
        f"Rim: what lies within {case['rim_mm']:g} mm of a lesion, in the organ and outside of tumors."
    )
    return f'<p class="note">{html.escape(words)}</p>'


def provenance(case: Row) -> list[tuple[str, object]]:
    """Return what a case's figures were made of."""
    rows: list[tuple[str, object]] = []
    for kind, name in (("mask", "segmentation"), ("image", "scan")):
        file = case["source"][kind]
        rows += [(name, file["name"]), (f"{name}, SHA-256", file["sha256"])] if file else [(name, "none given")]
    if case["model"]:
        rows += [("model", case["model"]["model"]), ("model, SHA-256", case["model"]["model_sha256"])]
    shape, spacing = (
        "x".join(map(str, case["shape_zyx"][::-1])),
        " x ".join(f"{step:g}" for step in case["spacing_mm_zyx"][::-1]),
    )
    rows += [
        ("voxels, x y z", shape),
        ("voxel, mm", spacing),
        ("labels", ", ".join(f"{name}={value}" for name, value in case["labels"].items())),
    ]
    return [*rows, ("warnings", "; ".join(case["warnings"]) or "none")]


def strip(volume: Volume, lesions: Sequence[Row]) -> str:
    """Return the areas of organ and tumor along z, and each lesion's slices, as a drawing in the page."""
    tumor = volume.labels.tumor_value()
    organ = volume.labels.organ_values() or list(volume.labels.values.values())
    pixel = volume.spacing_mm[1] * volume.spacing_mm[2]
    areas = [
        np.isin(volume.label, values).sum(axis=(1, 2)) * pixel for values in (organ, [] if tumor is None else [tumor])
    ]
    width, height = STRIP_PX
    count, top = len(volume.label), max(1.0, float(areas[0].max(initial=0)))
    shown = lesions[:SHOWN]
    parts = []
    for area, color in zip(areas, (BLUE, RED), strict=True):
        corners = [f"0,{height}"]
        for place, value in enumerate(area):
            y = height - float(value) / top * height
            corners += [f"{place * width / count:.1f},{y:.1f}", f"{(place + 1) * width / count:.1f},{y:.1f}"]
        parts.append(f'<polygon points="{" ".join([*corners, f"{width},{height}"])}" fill="{color}"/>')
    for line, lesion in enumerate(shown):
        left, right = lesion["first_z"] * width / count, (lesion["last_z"] + 1) * width / count
        y = height + 8 + 14 * line
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{max(2.0, right - left):.1f}" height="8" fill="{RED}"/>')
        parts.append(
            f'<text x="{min(right + 5, width - 18):.1f}" y="{y + 8}" font-size="11" fill="{INK}">{int(lesion["id"])}</text>'
        )
    whole = height + 26 + 14 * len(shown)
    for x, anchor, z in ((0, "start", 0), (width, "end", count - 1)):
        parts.append(f'<text x="{x}" y="{whole - 2}" font-size="11" text-anchor="{anchor}" fill="{INK}">z={z}</text>')
    head = f'<svg class="strip" role="img" aria-label="organ and tumors along z" viewBox="0 0 {width} {whole}">'
    return f"{head}{''.join(parts)}</svg>"
