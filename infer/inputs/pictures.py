"""A slice as a picture: PNG or JPEG, whose gray values mean HU only to who knows the window that it was made with.

Black is the window's low end and white its high end, as `slicemill store export-slices` writes them; 8 or 16 bits. A picture says
nothing of its pixels' size, so that they count as 1 mm, with a warning. Row 0 is anterior, column 0 the patient's right.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from slicemill.common.errors import ScanError
from slicemill.ct.window import Window

SUFFIXES = (".png", ".jpg", ".jpeg")
WHITE = {"L": 255, "I;16": 65535, "I": 65535}
"""The brightest value of Pillow's modes of gray."""
COLORED = ("RGB", "RGBA")
"""Modes that are gray where their channels are equal."""
INT16 = np.iinfo(np.int16)
WARNING = "a picture says nothing of its pixels' size; they count as 1 mm, and so do volumes and diameters"


def is_picture(name: str) -> bool:
    """Return whether a file name is that of a picture.

    >>> is_picture("0017.PNG"), is_picture("0017.nii")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


@contextmanager
def open_picture(path: Path, window: Window | None) -> Iterator[tuple[bytes, Callable[[], npt.NDArray[np.int16]]]]:
    """Yield a NIfTI header for a picture's mask, and what decodes it as a scan of one slice int16[1, y, x], HU.

    Raises
    ------
    ScanError
        The window was not stated, or it is no gray picture.
    """
    if window is None:
        raise ScanError(
            f"{path}: a picture's gray values are no HU; state the window that it was made with, like --window -200,300."
        )
    if window.low < INT16.min or window.high > INT16.max:
        limits = f"{window.low:g}..{window.high:g}"
        raise ScanError(f"{path}: HU must fit in {INT16.min}..{INT16.max}; its window is {limits}.")
    with ExitStack() as stack:
        with _damage_named(path):
            picture = stack.enter_context(Image.open(path))
        if picture.mode not in WHITE and picture.mode not in COLORED:
            raise ScanError(_no_gray(path, picture.mode))
        header = nib.Nifti1Header()
        header.set_data_shape((*picture.size, 1))
        header.set_data_dtype(np.int16)
        header.set_xyzt_units("mm")
        header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
        yield bytes(header.binaryblock), lambda: _decoded(path, picture, window)


def _decoded(path: Path, picture: Image.Image, window: Window) -> npt.NDArray[np.int16]:
    """Return a picture as int16[1, y, x], HU; a row at a time, so that no voxel takes more than its 2 bytes beside the picture."""
    with _damage_named(path):
        pixels, mode = np.asarray(picture), picture.mode
    if mode in COLORED:
        if any(not np.array_equal(pixels[..., 0], pixels[..., other]) for other in (1, 2)):
            raise ScanError(_no_gray(path, mode))
        pixels, mode = pixels[..., 0], "L"
    shades = np.arange(WHITE[mode] + 1)
    values = np.rint(window.low + shades * ((window.high - window.low) / WHITE[mode])).astype(np.int16)
    image = np.empty((1, *pixels.shape), dtype=np.int16)
    for row, out in zip(pixels, image[0], strict=True):
        np.take(values, row, mode="clip", out=out)
    return image


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ScanError(f"{path}: cannot be read as a picture ({error}).") from error


def _no_gray(path: Path, mode: str) -> str:
    return f"{path}: must be gray, 8 or 16 bits; its mode is {mode}. Is it a photograph of a screen?"
