"""Picture input: a slice as PNG or JPEG, whose gray values are converted to HU by a window.

Black is the low end of the window and white the high end, as `slicemill store export-slices` writes them, in 8 or 16
bits. A picture has no pixel size, so pixels count as 1 mm, with a warning. Row 0 is anterior, column 0 the patient's
right.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from slicemill.common.errors import ScanError
from slicemill.common.files import open_stream
from slicemill.ct.window import Window

SUFFIXES = (".png", ".jpg", ".jpeg")
WHITE = {"L": 255, "I;16": 65535, "I": 65535}
"""Brightest value of each of Pillow's gray modes."""
COLOR_MODES = ("RGB", "RGBA")
"""Color modes that are accepted if their channels are equal."""
INT16 = np.iinfo(np.int16)
WARNING = "a picture has no pixel size; pixels count as 1 mm, and so do volumes and diameters"


def is_picture(name: str) -> bool:
    """Return whether a file name has the suffix of a picture.

    >>> is_picture("0017.PNG"), is_picture("0017.nii")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class OpenPicture:
    """An open picture that is not decoded yet."""

    path: Path
    window: Window
    image: Image.Image
    header: bytes
    """NIfTI header for the picture's mask."""

    def decode(self) -> npt.NDArray[np.int16]:
        """Decode the picture as a scan of one slice, int16[1, y, x], HU.

        Works row by row, so that only the 2 bytes of each voxel are added to the picture's memory.

        Raises
        ------
        ScanError
            The picture is damaged or not gray.
        """
        with name_damage(self.path):
            pixels, mode = np.asarray(self.image), self.image.mode
        if mode in COLOR_MODES:
            if any(not np.array_equal(pixels[..., 0], pixels[..., other]) for other in (1, 2)):
                raise _not_gray(self.path, mode)
            pixels, mode = pixels[..., 0], "L"
        grays = np.arange(WHITE[mode] + 1)
        hu_per_gray = (self.window.high - self.window.low) / WHITE[mode]
        values = np.rint(self.window.low + grays * hu_per_gray).astype(np.int16)
        volume = np.empty((1, *pixels.shape), dtype=np.int16)
        for row, out in zip(pixels, volume[0], strict=True):
            np.take(values, row, mode="clip", out=out)
        return volume


@contextmanager
def open_picture(path: Path, window: Window | None) -> Iterator[OpenPicture]:
    """Open a picture and check its mode; close it when the block ends.

    Raises
    ------
    ScanError
        The window is missing, or the file is not a gray picture.
    """
    if window is None:
        raise ScanError(
            "gray values of a picture are not HU; pass the window that it was made with, like --window -200,300.",
            where=path,
        )
    if window.low < INT16.min or window.high > INT16.max:
        limits = f"{window.low:g}..{window.high:g}"
        raise ScanError(f"HU must fit in {INT16.min}..{INT16.max}; its window is {limits}.", where=path)
    with ExitStack() as stack:
        with name_damage(path), warnings.catch_warnings():
            # Pillow warns from half of the pixels on that it refuses; larger pictures end in DecompressionBombError
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = stack.enter_context(Image.open(stack.enter_context(io.BufferedReader(open_stream(path)))))
        if image.mode not in WHITE and image.mode not in COLOR_MODES:
            raise _not_gray(path, image.mode)
        if max(image.size) > INT16.max:
            sides = " x ".join(f"{side:,}" for side in image.size)
            raise ScanError(
                f"has {sides} pixels; a mask as NIfTI-1 has at most {INT16.max:,} along an axis; cut it.",
                where=path,
            )
        header = nib.Nifti1Header()
        header.set_data_shape((*image.size, 1))
        header.set_data_dtype(np.int16)
        header.set_xyzt_units("mm")
        header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
        yield OpenPicture(path=path, window=window, image=image, header=bytes(header.binaryblock))


@contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Convert Pillow's errors into a ScanError that names the file."""
    try:
        yield
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ScanError(f"cannot be read as a picture ({error}).", where=path) from error


def _not_gray(path: Path, mode: str) -> ScanError:
    return ScanError(
        f"must be gray, 8 or 16 bits; its mode is {mode}. Screen photographs are not supported.", where=path
    )
