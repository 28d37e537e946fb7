"""The page of one case: key figures, pictures of lesions, tumor area along z, tables, and provenance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.files import write_bytes
from slicemill.common.html import render
from slicemill.ct.page_slices import PageSlices, SlicedLesion, SlicedMask, make_page_slices
from slicemill.ct.pictures import save_png
from slicemill.measure.lesions.measurements import Intensities, LesionMeasurement, Volume
from slicemill.measure.lesions.pictures import CaptionedPicture, draw_case, draw_lesion, to_jpeg
from slicemill.measure.lesions.records import CaseOrigin, CaseRecord

SHOWN = 12
"""Number of lesions with pictures; the table lists all lesions."""
STRIP_PX = (900, 130)
BAR_PX = 14
"""Height of a lesion's row below the strip."""
COLUMNS = {
    "id": "lesion",
    "volume_ml": "volume, ml",
    "max_axial_diameter_mm": "longest, mm",
    "perpendicular_mm": "perpendicular, mm",
    "who_product_mm2": "product, mm²",
    "max_3d_diameter_mm": "longest in 3D, mm",
    "sphericity": "sphericity",
    "organ_surface_mm": "distance to organ surface, mm",
    "probability_mean": "mean probability",
    "key_z": "key slice",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page."""

    header: list[str]
    rows: list[list[object]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The slices of one lesion below the strip, in pixels."""

    lesion_id: int
    x: float
    y: int
    width: float


@dataclass(frozen=True, kw_only=True)
class OrganStrip:
    """A drawing of organ and tumor along z, with the slices of each lesion below."""

    organ: str
    """The organ's area along z, as the corners of an SVG polygon."""
    tumor: str
    """The tumor's area along z, as the corners of an SVG polygon."""
    bars: tuple[Bar, ...]
    last_z: int
    width: int = STRIP_PX[0]

    @property
    def height(self) -> int:
        """Return the height with the rows of lesions, pixels."""
        return STRIP_PX[1] + 26 + BAR_PX * len(self.bars)


def write_case_page(out: Path, record: CaseRecord, volume: Volume, viewer_mb: float) -> None:
    """Write ``NAME.html``, with at most `viewer_mb` MiB of slices, and ``NAME.png`` of a case."""
    images = [draw_lesion(volume, lesion) for lesion in record.lesions[:SHOWN]] or [draw_case(volume)]
    captions = [caption_lesion(lesion) for lesion in record.lesions[:SHOWN]] or ["the segmentation"]
    save_png(out / f"{record.case}.png", images[0])
    pictures = [
        CaptionedPicture(caption=caption, jpeg=to_jpeg(image)) for caption, image in zip(captions, images, strict=True)
    ]
    page = render(
        "measure/lesions/case_page.html",
        title=f"{record.case}: lesions",
        record=record,
        figures=list_figures(record),
        pictures=pictures,
        slices=_pack_slices(record, volume, viewer_mb),
        strip=make_strip(volume, record.lesions[:SHOWN]),
        sizes=tabulate_sizes(record.lesions),
        positions=tabulate_positions(record.lesions),
        provenance=list_provenance(record.origin),
    )
    write_bytes(out / f"{record.case}.html", page)


def _pack_slices(record: CaseRecord, volume: Volume, viewer_mb: float) -> PageSlices | None:
    """Return the slices of the page's viewer; None without a scan."""
    if volume.image is None:
        return None
    lesions = [
        SlicedLesion(
            id=one.id,
            first_z=one.first_z,
            key_z=one.key_z,
            last_z=one.last_z,
            text=f"Lesion {one.id}: {one.max_axial_diameter_mm:.1f} mm, slice {one.key_z + 1}",
        )
        for one in record.lesions
    ]
    masks = [SlicedMask(name="segmentation", label=volume.label)]
    return make_page_slices(volume.image, masks, volume.labels, volume.spacing_mm, lesions, viewer_mb)


def list_figures(record: CaseRecord) -> list[tuple[str, object]]:
    """Return the key figures of a case, without missing ones."""
    figures = record.figures
    named: list[tuple[str, object]] = [
        ("lesions", figures.lesion_count),
        ("tumor, ml", figures.tumor_ml),
        (f"{record.origin.organ or 'organ'} with tumors, ml", figures.organ_ml),
        ("tumor burden, % of the organ", figures.tumor_burden_percent),
        ("longest axial diameter, mm", record.longest_mm()),
        (f"sum of {len(figures.target_ids)} target diameters, mm", figures.sum_of_target_diameters_mm),
    ]
    return [(name, value) for name, value in named if value is not None]


def describe_size(lesion: LesionMeasurement) -> str:
    """Return volume and diameters of a lesion as text."""
    return f"{lesion.volume_ml:.2f} ml, {lesion.max_axial_diameter_mm:.1f} x {lesion.perpendicular_mm:.1f} mm"


def caption_lesion(lesion: LesionMeasurement) -> str:
    """Return the caption of a lesion's pictures."""
    return f"Lesion {lesion.id}: {describe_size(lesion)}, slices {lesion.first_z} to {lesion.last_z}"


def tabulate_sizes(lesions: Sequence[LesionMeasurement]) -> Table:
    """Return the sizes of all lesions, without empty columns."""
    kept = [key for key in COLUMNS if any(getattr(lesion, key) is not None for lesion in lesions)]
    return Table(header=[COLUMNS[key] for key in kept], rows=[[getattr(one, key) for key in kept] for one in lesions])


def tabulate_positions(lesions: Sequence[LesionMeasurement]) -> Table:
    """Return the positions of all lesions, and their HU if there is a scan."""
    header = ["lesion", "slices", "center, LPS mm", "center, voxel z y x"]
    rows: list[list[object]] = [
        [
            one.id,
            f"{one.first_z} to {one.last_z}",
            format_position(one.centroid_lps_mm),
            format_position(one.centroid_zyx),
        ]
        for one in lesions
    ]
    if any(lesion.hu for lesion in lesions):
        header += ["HU, mean ± SD", "HU, median (min to max)", "rim HU, mean ± SD"]
        for row, lesion in zip(rows, lesions, strict=True):
            row += [format_spread(lesion.hu), format_range(lesion.hu), format_spread(lesion.rim_hu)]
    return Table(header=header, rows=rows)


def format_position(values: Sequence[float]) -> str:
    """Return coordinates as text.

    >>> format_position([1.25, -3.0, 4.0])
    '1.2, -3.0, 4.0'
    """
    return ", ".join(f"{value:.1f}" for value in values)


def format_spread(hu: Intensities | None) -> str | None:
    """Return mean and standard deviation as text."""
    return None if hu is None else f"{hu.mean:.0f} ± {hu.sd:.0f}"


def format_range(hu: Intensities | None) -> str | None:
    """Return median and range as text."""
    return None if hu is None else f"{hu.median:.0f} ({hu.min} to {hu.max})"


def list_provenance(origin: CaseOrigin) -> list[tuple[str, object]]:
    """Return the provenance of a case: files, hashes, model, geometry and labels."""
    rows: list[tuple[str, object]] = []
    for file, name in ((origin.source.mask, "segmentation"), (origin.source.image, "scan")):
        rows += [(name, file.name), (f"{name}, SHA-256", file.sha256)] if file else [(name, "none")]
    if origin.model:
        rows += [("model", origin.model.model), ("model, SHA-256", origin.model.model_sha256)]
    return [
        *rows,
        ("voxels, x y z", "x".join(map(str, origin.shape_zyx[::-1]))),
        ("voxel, mm", " x ".join(f"{step:g}" for step in origin.spacing_mm_zyx[::-1])),
        ("labels", ", ".join(f"{name}={value}" for name, value in origin.labels.items())),
        ("warnings", "; ".join(origin.warnings) or "none"),
    ]


def make_strip(volume: Volume, lesions: Sequence[LesionMeasurement]) -> OrganStrip:
    """Return the drawing of organ and tumor along z, with the slices of each lesion."""
    tumor = volume.labels.tumor_value()
    organ = volume.labels.organ_values() or list(volume.labels.values.values())
    pixel_mm2 = volume.spacing_mm[1] * volume.spacing_mm[2]
    organ_mm2, tumor_mm2 = (
        np.isin(volume.label, values).sum(axis=(1, 2)) * pixel_mm2
        for values in (organ, [] if tumor is None else [tumor])
    )
    largest_mm2 = max(1.0, float(organ_mm2.max(initial=0)))
    width, height = STRIP_PX
    slice_px = width / len(volume.label)
    bars = []
    for row, lesion in enumerate(lesions):
        left, right = lesion.first_z * slice_px, (lesion.last_z + 1) * slice_px
        bars.append(Bar(lesion_id=lesion.id, x=left, y=height + 8 + BAR_PX * row, width=max(2.0, right - left)))
    return OrganStrip(
        organ=_outline_area(organ_mm2 / largest_mm2),
        tumor=_outline_area(tumor_mm2 / largest_mm2),
        bars=tuple(bars),
        last_z=len(volume.label) - 1,
    )


def _outline_area(shares: npt.NDArray[np.float64]) -> str:
    """Return the corners of a step curve of float64[z], 0 to 1, down to the base line."""
    width, height = STRIP_PX
    step = width / len(shares)
    corners = [f"0,{height}"]
    for z, share in enumerate(shares.tolist()):
        y = height - share * height
        corners += [f"{z * step:.1f},{y:.1f}", f"{(z + 1) * step:.1f},{y:.1f}"]
    return " ".join([*corners, f"{width},{height}"])
