"""Pictures of lesions with the correct aspect ratio: slices with outlines and diameters, coronal and sagittal cuts."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from slicemill.ct.pictures import (
    BACKGROUND,
    CAPTION_PX,
    GAP_PX,
    ORGAN_COLOR,
    TUMOR_COLOR,
    Color,
    fit_text,
    outline_pixels,
)
from slicemill.ct.window import PICTURE_WINDOW
from slicemill.measure.lesions.measurements import LesionMeasurement, Volume

HEIGHT_PX = 230
JPEG_QUALITY = 90
MARGIN_MM = 22.0
"""Width of the margin shown around a lesion."""
LONG_COLOR: Color = (255, 225, 80)
PERPENDICULAR_COLOR: Color = (140, 255, 160)
NO_SCAN_GRAY = 36
"""Gray level of the background if there is no scan."""
Span = tuple[int, int]
"""First voxel and one past the last along an axis."""
View = tuple[str, Image.Image]
"""Caption and picture."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A plane through a case."""

    image: npt.NDArray[Any]
    """int16[row, column], HU; the labels if there is no scan."""
    label: npt.NDArray[np.uint8]
    """uint8[row, column], values of the labels."""
    pixel_mm: tuple[float, float]
    """Height and width of a pixel."""


@dataclass(frozen=True, kw_only=True)
class CaptionedPicture:
    """A picture of a page."""

    caption: str
    jpeg: bytes | None
    """None to show the caption only."""


def draw_lesion(volume: Volume, lesion: LesionMeasurement) -> Image.Image:
    """Draw one lesion in six views side by side, each with a caption."""
    z0, y0, x0, z1, y1, x1 = lesion.bbox_zyx
    key, (_, cy, cx) = lesion.key_z, (round(position) for position in lesion.centroid_zyx)
    z_span, y_span, x_span = (widen(span, volume, axis) for axis, span in enumerate(((z0, z1), (y0, y1), (x0, x1))))
    _, all_rows, all_columns = full_spans(volume)
    with_diameters = draw_cut(cut_axial(volume, key), y_span, x_span, volume)
    draw_diameters(with_diameters, lesion, y_span, x_span)
    neighbors = [z for z in (key - 1, key + 1) if 0 <= z < volume.label.shape[0]]
    flipped = flip_z_span(z_span, volume)
    return join_views(
        [
            (f"z={key}", draw_cut(cut_axial(volume, key), all_rows, all_columns, volume)),
            (f"{lesion.max_axial_diameter_mm:.1f} x {lesion.perpendicular_mm:.1f} mm", with_diameters),
            *((f"z={z}", draw_cut(cut_axial(volume, z), y_span, x_span, volume)) for z in neighbors),
            (f"coronal, y={cy}", draw_cut(cut_coronal(volume, cy), flipped, x_span, volume)),
            (f"sagittal, x={cx}", draw_cut(cut_sagittal(volume, cx), flipped, y_span, volume)),
        ]
    )


def draw_case(volume: Volume) -> Image.Image:
    """Draw axial, coronal and sagittal views of a case without lesions, through the middle of its labels."""
    planes = [
        np.flatnonzero((volume.label > 0).any(axis=tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    z, y, x = (
        int(labelled[len(labelled) // 2]) if len(labelled) else count // 2
        for labelled, count in zip(planes, volume.label.shape, strict=True)
    )
    z_span, y_span, x_span = full_spans(volume)
    return join_views(
        [
            (f"z={z}", draw_cut(cut_axial(volume, z), y_span, x_span, volume)),
            (f"coronal, y={y}", draw_cut(cut_coronal(volume, y), z_span, x_span, volume)),
            (f"sagittal, x={x}", draw_cut(cut_sagittal(volume, x), z_span, y_span, volume)),
        ]
    )


def to_jpeg(picture: Image.Image) -> bytes:
    """Return a picture of a page as JPEG: a tenth of the time of PNG, and smaller. Colors of outlines stay sharp."""
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def cut_axial(volume: Volume, z: int) -> Cut:
    """Return a slice [y, x]."""
    return Cut(image=_background(volume)[z], label=volume.label[z], pixel_mm=volume.spacing_mm[1:])


def cut_coronal(volume: Volume, y: int) -> Cut:
    """Return a cut [z, x] with the head at the top."""
    z_mm, _, x_mm = volume.spacing_mm
    return Cut(image=_background(volume)[::-1, y], label=volume.label[::-1, y], pixel_mm=(z_mm, x_mm))


def cut_sagittal(volume: Volume, x: int) -> Cut:
    """Return a cut [z, y] with the head at the top and the front to the left."""
    z_mm, y_mm, _ = volume.spacing_mm
    return Cut(image=_background(volume)[::-1, :, x], label=volume.label[::-1, :, x], pixel_mm=(z_mm, y_mm))


def _background(volume: Volume) -> npt.NDArray[Any]:
    return volume.label if volume.image is None else volume.image


def full_spans(volume: Volume) -> tuple[Span, Span, Span]:
    """Return the full extent along z, y, x."""
    nz, ny, nx = volume.label.shape
    return (0, nz), (0, ny), (0, nx)


def flip_z_span(span: Span, volume: Volume) -> Span:
    """Return a span of slices as rows of a cut with the head at the top."""
    count = volume.label.shape[0]
    return count - span[1], count - span[0]


def widen(span: Span, volume: Volume, axis: int) -> Span:
    """Return a span of voxels enlarged by MARGIN_MM on both sides, within the scan."""
    more = math.ceil(MARGIN_MM / volume.spacing_mm[axis])
    return max(0, span[0] - more), min(volume.label.shape[axis], span[1] + more)


def draw_cut(cut: Cut, rows: Span, columns: Span, volume: Volume) -> Image.Image:
    """Draw a part of a cut HEIGHT_PX high, with organ and tumor outlined."""
    row_mm, column_mm = cut.pixel_mm
    part = np.ascontiguousarray(cut.label[slice(*rows), slice(*columns)])
    height = HEIGHT_PX
    width = max(24, min(4 * height, round(height * (part.shape[1] * column_mm) / (part.shape[0] * row_mm))))
    if volume.image is None:
        shades = np.full(part.shape, NO_SCAN_GRAY, np.uint8)
    else:
        shades = PICTURE_WINDOW.to_gray(np.ascontiguousarray(cut.image[slice(*rows), slice(*columns)]))
    picture = np.repeat(
        np.asarray(Image.fromarray(shades).resize((width, height), Image.Resampling.BILINEAR))[..., None], 3, axis=2
    )
    tumor = volume.labels.tumor_value()
    others = [value for value in volume.labels.values.values() if value != tumor]
    for values, color in (
        (volume.labels.organ_values() or others, ORGAN_COLOR),
        ([] if tumor is None else [tumor], TUMOR_COLOR),
    ):
        mask = np.isin(part, values).astype(np.uint8)
        large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)) > 0
        picture[outline_pixels(np.pad(large, 1, mode="edge"))[1:-1, 1:-1]] = color  # no line where the view ends
    return Image.fromarray(picture)


def draw_diameters(picture: Image.Image, lesion: LesionMeasurement, rows: Span, columns: Span) -> None:
    """Draw the longest diameter and the perpendicular one into a view of the key slice."""
    y_scale, x_scale = picture.height / (rows[1] - rows[0]), picture.width / (columns[1] - columns[0])
    pen = ImageDraw.Draw(picture)
    for diameter, color in (
        (lesion.diameter_ends_zyx, LONG_COLOR),
        (lesion.perpendicular_ends_zyx, PERPENDICULAR_COLOR),
    ):
        ends = [((x - columns[0] + 0.5) * x_scale, (y - rows[0] + 0.5) * y_scale) for _, y, x in diameter]
        pen.line(ends, fill=color, width=2)


def join_views(views: Sequence[View]) -> Image.Image:
    """Join pictures of equal height side by side, each with a caption."""
    width = sum(picture.width for _, picture in views) + GAP_PX * (len(views) - 1)
    sheet = Image.new("RGB", (width, HEIGHT_PX + CAPTION_PX), BACKGROUND)
    pen, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(13), 0
    for caption, picture in views:
        pen.text((left + 3, 1), fit_text(caption, picture.width - 4, font), fill=(230, 230, 230), font=font)
        sheet.paste(picture, (left, CAPTION_PX))
        left += picture.width + GAP_PX
    return sheet
