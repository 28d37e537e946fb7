"""Small pictures of the scans among which the user chooses, drawn while the choice is open."""

import base64
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.common.errors import InputError
from slicemill.ct.scan import ScanReader
from slicemill.ct.window import PICTURE_WINDOW
from slicemill.web.serve.records import Limits

SIDE = 96
"""Rows and columns of a picture."""
MOST_SECONDS = 3.0
"""Time to reach the middle of a scan; later, the slice reached is drawn."""


def draw_thumbnail(path: Path, limits: Limits, is_wanted: Callable[[], bool]) -> str | None:
    """Return the picture of a scan's middle slice: uint8[SIDE, SIDE], gray, row by row, as base64.

    None if it is not wanted any more, or cannot be drawn: a file that runs along another axis than z is read as a
    whole for a slice, and one that is damaged or above the limits is refused once it is chosen.
    """
    end = time.monotonic() + MOST_SECONDS
    try:
        with ScanReader(path, "image", hashed=False) as reader:
            count, *sides = reader.grid.stored_shape
            if not reader.grid.slowest_is_z or max(sides) > limits.side:
                return None
            read = 0
            for slab in reader.slabs():
                if not is_wanted():
                    return None
                read += len(slab.voxels)
                if read > count // 2 or time.monotonic() > end:
                    image = slab.voxels[len(slab.voxels) // 2]
                    return base64.b64encode(fit(image, reader.grid.spacing_mm[1:]).tobytes()).decode()
    except Exception:  # noqa: BLE001 (another scan can still be chosen)
        return None
    return None


def fit(image: npt.NDArray[np.int16], pixel_mm: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return a slice int16[y, x], HU, as gray values uint8[SIDE, SIDE], in its proportions, on black.

    >>> fit(np.full((2, 4), 70, np.int16), (1.0, 1.0))[[0, 23, 24, 71, 72], 0].tolist()
    [0, 0, 127, 127, 0]
    """
    sizes = [count * mm for count, mm in zip(image.shape, pixel_mm, strict=True)]
    height, width = (max(1, round(SIDE * size / max(sizes))) for size in sizes)
    gray = Image.fromarray(PICTURE_WINDOW.to_gray(np.ascontiguousarray(image)))
    small = np.asarray(gray.resize((width, height), Image.Resampling.BOX))
    picture = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    picture[top : top + height, left : left + width] = small
    return picture


def parse_thumbnail(text: str) -> bytes:
    """Return the gray values of a picture, SIDE * SIDE bytes.

    Raises
    ------
    InputError
        A child process sent something else.
    """
    try:
        gray = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError("a child process sent a picture that is no base64.") from error
    if len(gray) != SIDE * SIDE:
        raise InputError("a child process sent a picture of another size.")
    return gray
