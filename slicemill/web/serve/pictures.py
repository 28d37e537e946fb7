"""A picture as input: one slice, whose gray values become HU by a window that a person confirmed.

The frame to segment is cut out, so that text and borders stay outside. The slice is written as NIfTI, and is a scan
like any other from then on.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from slicemill.common.errors import ScanError
from slicemill.infer.inputs.pictures import WHITE, name_damage
from slicemill.web.serve.records import Limits, PictureRequest

LESS_RELIABLE = "a picture has lost the HU of its scan and the slices around it: the result is less reliable"
NO_PIXEL_SIZE = "the pixel size is unknown: sizes are in percent of the frame; tables and files count a pixel as 1 mm"
MOST_COLORED = 0.02
"""Largest share of colored pixels: more are a drawing, a photograph or a colored overlay."""
COLORED = 24
"""Difference of the channels from which a pixel is colored; the noise of JPEG is below (4:2:0, quality 50)."""
LEAST_SIDE = 16
UPRIGHT = 1
"""EXIF's number of a picture that is shown as it is stored."""
LEAST_CONTRAST = 0.25
"""Least difference of black and white in a frame, of the range of gray values: below it, no window made the picture."""
HU = np.iinfo(np.int16)


def convert_picture(path: Path, request: PictureRequest, limits: Limits, out: Path) -> None:
    """Write the frame of a picture as NIfTI, int16, one slice; row 0 is anterior, column 0 the patient's right.

    Raises
    ------
    ScanError
        It is no picture, is too large, is colored, or the frame or the window do not fit.
    """
    if not HU.min <= request.low < request.high <= HU.max:
        raise ScanError(f"the window must rise within {HU.min}..{HU.max} HU.", where=path)
    if request.pixel_mm is not None and not 0.01 <= request.pixel_mm <= 20:
        raise ScanError(f"the pixel size must be 0.01 to 20 mm; it is {request.pixel_mm:g}.", where=path)
    gray, white = _read_gray(path, limits)
    rows, columns = gray.shape
    if not (0 <= request.left < request.right <= columns and 0 <= request.top < request.bottom <= rows):
        raise ScanError(f"the frame must lie in the picture, {columns} x {rows} pixels.", where=path)
    if min(request.right - request.left, request.bottom - request.top) < LEAST_SIDE:
        raise ScanError(f"the frame must have at least {LEAST_SIDE} x {LEAST_SIDE} pixels.", where=path)
    frame = gray[request.top : request.bottom, request.left : request.right]
    _check_contrast(frame, white, path)
    hu = np.rint(request.low + frame * ((request.high - request.low) / white)).astype(np.int16)
    mm = request.pixel_mm or 1.0
    image = nib.Nifti1Image(hu.T[..., np.newaxis], np.diag([-mm, -mm, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, out)


def _read_gray(path: Path, limits: Limits) -> tuple[npt.NDArray[np.float32], int]:
    """Return float32[y, x] as a browser shows the picture, and the value of white."""
    with name_damage(path), Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.width * image.height > limits.picture_pixels:
            raise ScanError(
                f"has {image.width} x {image.height} pixels; at most {limits.picture_pixels:,} are read.", where=path
            )
        upright = _turn(image, path)
        if upright.mode in WHITE:
            return np.asarray(upright).astype(np.float32), WHITE[upright.mode]
        pixels = np.asarray(upright.convert("RGB"))
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    share = float(np.mean(spread > COLORED))
    if share > MOST_COLORED:
        raise ScanError(
            f"{share:.0%} of its pixels are colored; at most {MOST_COLORED:.0%} may be. A slice of a CT is gray: "
            "export it without overlays, or use the scan itself.",
            where=path,
        )
    return pixels.mean(axis=2, dtype=np.float32), 255


def _turn(image: Image.Image, path: Path) -> Image.Image:
    """Turn a picture as its EXIF says; the frame was drawn on what the browser shows.

    Browsers do not agree on other places of an orientation (XMP, the chunks of PNG), which are refused.
    """
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    stated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    if stated != UPRIGHT and (image.format == "PNG" or stated != exif.get(ExifTags.Base.Orientation)):
        raise ScanError("is stored turned, with a note how to show it. Save it upright, without the note.", where=path)
    return ImageOps.exif_transpose(image)


def _check_contrast(frame: npt.NDArray[np.float32], white: int, path: Path) -> None:
    """Refuse a frame whose gray values no window made: CT values of 12 bits in 16, for example, are nearly black."""
    low, high = float(frame.min()), float(frame.max())
    if high - low < LEAST_CONTRAST * white:
        raise ScanError(
            f"the gray values of its frame are {low:.0f} to {high:.0f}, of 0 to {white}, which is less "
            f"than {LEAST_CONTRAST:.0%} of black to white: no window made this picture. "
            "Export it with a window, as 8 bits, or use the scan itself.",
            where=path,
        )
