"""Pictures of lesions in right proportions: the slice with contours and diameters, its neighbors, coronal and sagittal cuts."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from slicemill.ct.pictures import BACKGROUND, CAPTION_PX, GAP_PX, ORGAN_COLOR, TUMOR_COLOR, Color, fit_picture, outline
from slicemill.ct.window import PICTURE_WINDOW
from slicemill.measure.lesions.measurements import Volume

HEIGHT_PX = 230
MARGIN_MM = 22.0
"""What is shown around a lesion."""
LONG_COLOR: Color = (255, 225, 80)
ACROSS_COLOR: Color = (140, 255, 160)
EMPTY_GRAY = 36
"""Where there is no scan to draw on."""
Span = tuple[int, int]
Cut = tuple[npt.NDArray[Any], npt.NDArray[np.uint8], tuple[float, float]]


def lesion_picture(volume: Volume, lesion: dict[str, Any]) -> Image.Image:
    """Return one lesion of a case's record in six views side by side, each under its caption."""
    z0, y0, x0, z1, y1, x1 = lesion["bbox_zyx"]
    key, (_, cy, cx) = lesion["key_z"], (round(place) for place in lesion["centroid_zyx"])
    spans = [widened(span, volume, axis) for axis, span in enumerate(((z0, z1), (y0, y1), (x0, x1)))]
    whole = [(0, count) for count in volume.label.shape]
    views = [(f"z={key}", drawn(axial(volume, key), whole[1], whole[2], volume))]
    longest, across = lesion["max_axial_diameter_mm"], lesion["perpendicular_mm"]
    with_lines = drawn(axial(volume, key), spans[1], spans[2], volume)
    draw_diameters(with_lines, lesion, (spans[1], spans[2]))
    views.append((f"{longest:.1f} x {across:.1f} mm", with_lines))
    beside = [z for z in (key - 1, key + 1) if 0 <= z < volume.label.shape[0]]
    views += [(f"z={z}", drawn(axial(volume, z), spans[1], spans[2], volume)) for z in beside]
    views.append((f"coronal, y={cy}", drawn(coronal(volume, cy), upside_down(spans[0], volume), spans[2], volume)))
    views.append((f"sagittal, x={cx}", drawn(sagittal(volume, cx), upside_down(spans[0], volume), spans[1], volume)))
    return side_by_side(views)


def case_picture(volume: Volume) -> Image.Image:
    """Return axial, coronal and sagittal views of a case without lesions, through the middle of what is labelled."""
    places = [
        np.flatnonzero((volume.label > 0).any(axis=tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    z, y, x = (
        int(where[len(where) // 2]) if len(where) else count // 2
        for where, count in zip(places, volume.label.shape, strict=True)
    )
    whole = [(0, count) for count in volume.label.shape]
    return side_by_side(
        [
            (f"z={z}", drawn(axial(volume, z), whole[1], whole[2], volume)),
            (f"coronal, y={y}", drawn(coronal(volume, y), whole[0], whole[2], volume)),
            (f"sagittal, x={x}", drawn(sagittal(volume, x), whole[0], whole[1], volume)),
        ]
    )


def axial(volume: Volume, z: int) -> Cut:
    """Return a slice of image and label [y, x], and its pixel size in mm."""
    return _image(volume)[z], volume.label[z], volume.spacing_mm[1:]


def coronal(volume: Volume, y: int) -> Cut:
    """Return a cut [z, x] with the head on top."""
    z_mm, _, x_mm = volume.spacing_mm
    return _image(volume)[::-1, y], volume.label[::-1, y], (z_mm, x_mm)


def sagittal(volume: Volume, x: int) -> Cut:
    """Return a cut [z, y] with the head on top and the front to the left."""
    z_mm, y_mm, _ = volume.spacing_mm
    return _image(volume)[::-1, :, x], volume.label[::-1, :, x], (z_mm, y_mm)


def _image(volume: Volume) -> npt.NDArray[Any]:
    return volume.label if volume.image is None else volume.image


def upside_down(span: Span, volume: Volume) -> Span:
    """Return a span of slices in a cut with the head on top."""
    count = volume.label.shape[0]
    return count - span[1], count - span[0]


def widened(span: Span, volume: Volume, axis: int) -> Span:
    """Return a span of voxels with MARGIN_MM more on both sides, within the scan."""
    more = math.ceil(MARGIN_MM / volume.spacing_mm[axis])
    return max(0, span[0] - more), min(volume.label.shape[axis], span[1] + more)


def drawn(cut: Cut, rows: Span, columns: Span, volume: Volume) -> Image.Image:
    """Return a part of a cut HEIGHT_PX high, with organ and tumor outlined."""
    image, label, (row_mm, column_mm) = cut
    part = np.ascontiguousarray(label[slice(*rows), slice(*columns)])
    height = HEIGHT_PX
    width = max(24, min(4 * height, round(height * (part.shape[1] * column_mm) / (part.shape[0] * row_mm))))
    if volume.image is None:
        shades = np.full(part.shape, EMPTY_GRAY, np.uint8)
    else:
        shades = PICTURE_WINDOW.to_gray(np.ascontiguousarray(image[slice(*rows), slice(*columns)]))
    picture = np.repeat(
        np.asarray(Image.fromarray(shades).resize((width, height), Image.Resampling.BILINEAR))[..., None], 3, axis=2
    )
    tumor = volume.labels.tumor_value()
    for values, color in (
        (volume.labels.organ_values() or [one for one in volume.labels.values.values() if one != tumor], ORGAN_COLOR),
        ([tumor], TUMOR_COLOR),
    ):
        mask = np.isin(part, [value for value in values if value is not None]).astype(np.uint8)
        large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)) > 0
        picture[outline(np.pad(large, 1, mode="edge"))[1:-1, 1:-1]] = color  # no line where the view ends
    return Image.fromarray(picture)


def draw_diameters(picture: Image.Image, lesion: dict[str, Any], spans: tuple[Span, Span]) -> None:
    """Draw the longest diameter and the one at right angles onto a view of the key slice."""
    scale = [size / (span[1] - span[0]) for size, span in zip((picture.height, picture.width), spans, strict=True)]
    pen = ImageDraw.Draw(picture)
    for name, color in (("diameter_ends_zyx", LONG_COLOR), ("perpendicular_ends_zyx", ACROSS_COLOR)):
        ends = [((x - spans[1][0] + 0.5) * scale[1], (y - spans[0][0] + 0.5) * scale[0]) for _, y, x in lesion[name]]
        pen.line(ends, fill=color, width=2)


def side_by_side(views: list[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures of one height in a row, each under its caption."""
    width = sum(picture.width for _, picture in views) + GAP_PX * (len(views) - 1)
    sheet = Image.new("RGB", (width, HEIGHT_PX + CAPTION_PX), BACKGROUND)
    pen, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(13), 0
    for caption, picture in views:
        pen.text((left + 3, 1), fit_picture(caption, picture.width - 4, font), fill=(230, 230, 230), font=font)
        sheet.paste(picture, (left, CAPTION_PX))
        left += picture.width + GAP_PX
    return sheet
