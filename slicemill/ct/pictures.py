"""Pictures of slices: outlines, colored errors and montages, encoded as PNG."""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image, ImageDraw, ImageFont

from slicemill.common.files import Location, write_bytes
from slicemill.ct.labels import Labels
from slicemill.ct.runs import select_values
from slicemill.ct.window import PICTURE_WINDOW, Window

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 2
"""Compression level of isal, 0 to 3; 3 is slower and saves no bytes (`slicemill bench constants`)."""
GRAY, RGB = 0, 2

Color = tuple[int, int, int]
Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T")
G = TypeVar("G", bound=np.generic)

ORGAN_COLOR: Color = (90, 200, 255)
TUMOR_COLOR: Color = (255, 70, 70)
OTHER_COLORS: tuple[Color, ...] = ((255, 210, 60), (190, 130, 255), (110, 230, 150), (255, 150, 200))
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = (60, 200, 80), (235, 60, 50), (255, 165, 30)
BACKGROUND: Color = (18, 18, 20)
HEADER_PX, CAPTION_PX = 24, 18
GAP_PX = 4
MIN_SIDE_PX = 256
"""Smaller slices are enlarged by an integer factor, so that pixels are visible and sharp."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a montage."""

    picture: Picture
    """uint8[y, x, 3]."""
    caption: str = ""


def render_gray(image: npt.NDArray[np.int16], window: Window = PICTURE_WINDOW) -> Picture:
    """Return a slice int16[y, x], HU, as a picture uint8[y, x, 3], enlarged by an integer factor if it is small."""
    shades = enlarge(window.to_gray(image), enlargement(image.shape))
    picture = np.empty((*shades.shape, 3), dtype=np.uint8)
    for channel in range(3):  # three copies of long rows; broadcasting would copy three bytes at a time
        picture[..., channel] = shades
    return picture


def enlargement(shape: tuple[int, ...]) -> int:
    """Return the integer factor by which a slice of `shape` [y, x] is enlarged."""
    return max(1, -(-MIN_SIDE_PX // max(shape)))


def enlarge(section: npt.NDArray[G], factor: int) -> npt.NDArray[G]:
    """Enlarge any[y, x]: each pixel becomes a square of `factor` pixels."""
    return section if factor == 1 else section.repeat(factor, axis=0).repeat(factor, axis=1)


def outline_pixels(mask: Mask) -> Mask:
    """Return the pixels of a mask bool[y, x] with a neighbor by an edge that is not in the mask or the slice."""
    inside = np.zeros_like(mask)
    inside[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inside


def draw_outline(picture: Picture, mask: Mask, color: Color) -> Picture:
    """Return the picture with the outline of a mask bool[y, x] of the same slice."""
    drawn = picture.copy()
    drawn[outline_pixels(enlarge(mask, picture.shape[0] // mask.shape[0]))] = color
    return drawn


def draw_fill(picture: Picture, mask: Mask, color: Color, opacity: float = 0.6) -> Picture:
    """Return the picture with the pixels of a mask bool[y, x] tinted."""
    where = enlarge(mask, picture.shape[0] // mask.shape[0])
    drawn = picture.copy()
    drawn[where] = (drawn[where] * (1 - opacity) + np.array(color) * opacity).astype(np.uint8)
    return drawn


def draw_labels(
    picture: Picture, label: npt.NDArray[np.uint8], colors: Sequence[tuple[Sequence[int], Color]]
) -> Picture:
    """Outline each group of label values of a slice uint8[y, x] in its color, in order."""
    for values, color in colors:
        mask = select_values(label, values)
        if mask.any():
            picture = draw_outline(picture, mask, color)
    return picture


def draw_errors(picture: Picture, reference: Mask, prediction: Mask) -> Picture:
    """Tint true positives green, false positives red, false negatives orange."""
    picture = draw_fill(picture, reference & prediction, TRUE_POSITIVE, 0.45)
    picture = draw_fill(picture, prediction & ~reference, FALSE_POSITIVE)
    return draw_fill(picture, reference & ~prediction, FALSE_NEGATIVE)


def make_montage(tiles: Sequence[Panel], columns: int, title: str = "") -> Image.Image:
    """Arrange tiles in rows of `columns`, each below its caption, all below a title.

    Each column is as wide as its widest tile, each row as high as its highest.
    """
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    widths = [
        max(tile.picture.shape[1] for tile in tiles[column::columns]) for column in range(min(columns, len(tiles)))
    ]
    heights = [max(tile.picture.shape[0] for tile in row) + CAPTION_PX for row in rows]
    header = HEADER_PX if title else 0
    width, height = sum(widths) + GAP_PX * (len(widths) + 1), header + sum(heights) + GAP_PX * (len(rows) + 1)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    large = ImageFont.load_default(15)
    pen.text((GAP_PX + 2, GAP_PX), fit_text(title, width - 2 * GAP_PX, large), fill=(255, 255, 255), font=large)
    top = GAP_PX + header
    for row, tall in zip(rows, heights, strict=True):
        left = GAP_PX
        for tile, side in zip(row, widths, strict=False):
            pen.text((left + 2, top + 1), fit_text(tile.caption, side - 4, font), fill=(225, 225, 225), font=font)
            sheet.paste(Image.fromarray(tile.picture), (left, top + CAPTION_PX))
            left += side + GAP_PX
        top += tall + GAP_PX
    return sheet


def fit_text(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, cut with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def save_png(path: Location, picture: Image.Image) -> None:
    """Write a picture as PNG, atomically."""
    write_bytes(path, encode_png(np.asarray(picture.convert("RGB"))))


def pick_evenly(items: Iterable[T], count: int) -> list[T]:
    """Return up to `count` of the items, evenly spaced.

    >>> pick_evenly(range(10), 3)
    [0, 4, 9]
    """
    items = list(items)
    if len(items) <= count:
        return items
    return [items[round(position)] for position in np.linspace(0, len(items) - 1, count)]


def encode_png(pixels: npt.NDArray[Any]) -> bytes:
    """Encode uint8[y, x], uint16[y, x] or uint8[y, x, 3] as a PNG file (ISO/IEC 15948), without row filters.

    >>> encode_png(np.zeros((2, 3), dtype=np.uint8))[:4]
    b'\\x89PNG'
    """
    height, width = pixels.shape[:2]
    kind = RGB if pixels.ndim == 3 else GRAY
    depth = 8 * pixels.dtype.itemsize
    samples = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    rows = np.zeros((height, 1 + samples.shape[1]), dtype=np.uint8)
    rows[:, 1:] = samples
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = isal_zlib.compress(rows, LEVEL)
    return SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def label_colors(labels: Labels) -> list[tuple[list[int], Color]]:
    """Return label values and their colors: the organ with its tumors blue, tumor red, others from OTHER_COLORS."""
    others = [value for name, value in labels.values.items() if name not in (labels.organ, labels.tumor)]
    colors = [([value], OTHER_COLORS[index % len(OTHER_COLORS)]) for index, value in enumerate(others)]
    if labels.organ:
        colors.append((labels.organ_values(), ORGAN_COLOR))
    tumor = labels.tumor_value()
    if tumor is not None:
        colors.append(([tumor], TUMOR_COLOR))
    return colors


def choose_colors(labels: Labels) -> dict[str, Color]:
    """Return the color of each label, as in all pictures.

    >>> choose_colors(Labels({"liver": 1, "tumor": 2}, "liver", "tumor"))["tumor"]
    (255, 70, 70)
    """
    known = {value: color for values, color in reversed(label_colors(labels)) for value in values}
    colors = {name: known.get(value, OTHER_COLORS[value % len(OTHER_COLORS)]) for name, value in labels.values.items()}
    return colors | ({labels.tumor: TUMOR_COLOR} if labels.tumor else {})
