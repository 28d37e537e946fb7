"""The picture of a section as it must be on the canvas, in numpy, from the rules and not from the page's code."""

import numpy as np

from slicemill.ct.window import Window

FILL = 90
"""Opacity of a filled label, of 256."""


def sampled(pixels, size, scale):
    """Return the voxel that the middle of each device pixel is in, -1 outside; the section is in the middle."""
    index = np.floor((np.arange(pixels) + 0.5 - (pixels / 2 - size / 2 * scale)) / scale).astype(int)
    return np.where((index >= 0) & (index < size), index, -1)


def whole_picture(canvas, section_shape, pixel_mm):
    """Return rows and columns of the voxels under the pixels of a canvas [height, width] with a whole section."""
    scale = min(side / (count * mm) for side, count, mm in zip(canvas, section_shape, pixel_mm, strict=True))
    return tuple(
        sampled(side, count, scale * mm) for side, count, mm in zip(canvas, section_shape, pixel_mm, strict=True)
    )


def take(section, rows, columns, outside):
    """Return the values under the pixels."""
    taken = section[np.clip(rows, 0, None)[:, None], np.clip(columns, 0, None)[None]]
    return np.where((rows[:, None] < 0) | (columns[None] < 0), outside, taken)


def render(image, mask, regions, canvas, pixel_mm, window, width, *, outline=True, fill=False):
    """Return uint8[height, width, 3].

    Parameters
    ----------
    regions
        Value -> values inside of its outline, color, and dash and gap in widths of the outline, or None.
    """
    rows, columns = whole_picture(canvas, image.shape, pixel_mm)
    gray = take(Window(*window).to_gray(image), rows, columns, 0)
    picture = np.repeat(gray[..., None], 3, axis=2).astype(np.uint8)
    values = take(mask, rows, columns, 0)
    y, x = np.indices(values.shape)
    for value, (inside, color, dash) in regions.items():
        own = values == value
        region = np.isin(values, inside)
        edge = np.zeros_like(own)
        for step in range(1, width + 1):
            for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
                near = np.roll(region, sign * step, axis=axis)
                border = [slice(None), slice(None)]
                border[axis] = slice(0, step) if sign > 0 else slice(-step, None)
                near[tuple(border)] = True  # the canvas ends there, and the region may go on
                edge |= ~near
        edge &= own
        drawn = edge if dash is None else edge & ((x + y) % (sum(dash) * width) < dash[0] * width)
        if fill:
            rest = own & ~edge if outline else own
            blended = (picture.astype(int) * (256 - FILL) + np.array(color) * FILL) >> 8
            picture[rest] = blended[rest]
        if outline:
            picture[drawn] = color
    return picture
