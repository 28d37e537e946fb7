"""A slice as a picture: PNG or JPEG, whose gray values mean HU only to who knows the window that it was made with.

Black is the window's low end and white its high end, as `slicemill store export-slices` writes them; 8 or 16 bits. A picture says
nothing of its pixels' size, so that they count as 1 mm, with a warning. Row 0 is anterior, column 0 the patient's right.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from store.errors import ScanError
from store.window import Window

SUFFIXES = (".png", ".jpg", ".jpeg")
WHITE = {"L": 255, "I;16": 65535, "I": 65535}
"""The brightest value of Pillow's modes of gray."""
INT16 = np.iinfo(np.int16)
WARNING = "a picture says nothing of its pixels' size; they count as 1 mm, and so do volumes and diameters"


def is_picture(name: str) -> bool:
    """Return whether a file name is that of a picture.

    >>> is_picture("0017.PNG"), is_picture("0017.nii")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


def read_picture(path: Path, window: Window | None) -> tuple[npt.NDArray[np.int16], bytes]:
    """Return a picture as a scan of one slice int16[1, y, x], HU, and a NIfTI header for its mask.

    Raises
    ------
    ScanError
        The window was not stated, or it is no gray picture.
    """
    if window is None:
        raise ScanError(
            f"{path}: a picture's gray values are no HU; state the window that it was made with, like --window -200,300."
        )
    try:
        with Image.open(path) as picture:
            pixels, mode = np.asarray(picture), picture.mode
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ScanError(f"{path}: cannot be read as a picture ({error}).") from error
    if (
        mode in ("RGB", "RGBA")
        and np.array_equal(pixels[..., 0], pixels[..., 1])
        and np.array_equal(pixels[..., 0], pixels[..., 2])
    ):
        pixels, mode = pixels[..., 0], "L"
    if mode not in WHITE:
        raise ScanError(f"{path}: must be gray, 8 or 16 bits; its mode is {mode}. Is it a photograph of a screen?")
    low, high = window.low, window.high
    if low < INT16.min or high > INT16.max:
        raise ScanError(f"{path}: HU must fit in {INT16.min}..{INT16.max}; its window is {low:g}..{high:g}.")
    image = np.rint(low + pixels.astype(np.float64) * ((high - low) / WHITE[mode])).astype(np.int16)[None]
    header = nib.Nifti1Header()
    header.set_data_shape((*image.shape[:0:-1], 1))
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("mm")
    header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
    return image, bytes(header.binaryblock)
