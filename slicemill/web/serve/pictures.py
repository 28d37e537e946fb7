"""A picture as input: one slice, whose gray values become HU by a window that a person confirmed.

The frame to segment is cut out, so that text and borders stay outside. The slice is written as NIfTI, and is a scan
like any other from then on.
"""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from slicemill.common.errors import ScanError
from slicemill.ct.window import Window
from slicemill.infer.inputs.pictures import INT16, open_gray
from slicemill.web.serve.records import Limits, PictureRequest

LESS_RELIABLE = "a picture has lost the HU of its scan and the slices around it: the result is less reliable"
NO_PIXEL_SIZE = "the pixel size is unknown: sizes are in percent of the frame; tables and files count a pixel as 1 mm"
LEAST_SIDE = 16


def convert_picture(path: Path, request: PictureRequest, limits: Limits, out: Path) -> None:
    """Write the frame of a picture as NIfTI, int16, one slice; row 0 is anterior, column 0 the patient's right.

    Raises
    ------
    ScanError
        It is no picture, is too large, is refused by `slicemill.infer.inputs.pictures`, or the frame or the window do
        not fit.
    """
    if not INT16.min <= request.low < request.high <= INT16.max:
        raise ScanError(f"the window must rise within {INT16.min}..{INT16.max} HU.", where=path)
    if request.pixel_mm is not None and not 0.01 <= request.pixel_mm <= 20:
        raise ScanError(f"the pixel size must be 0.01 to 20 mm; it is {request.pixel_mm:g}.", where=path)
    with open_gray(path) as picture:
        columns, rows = picture.columns, picture.rows
        if columns * rows > limits.picture_pixels:
            raise ScanError(f"has {columns} x {rows} pixels; at most {limits.picture_pixels:,} are read.", where=path)
        gray = picture.decode()
    if not (0 <= request.left < request.right <= columns and 0 <= request.top < request.bottom <= rows):
        raise ScanError(f"the frame must lie in the picture, {columns} x {rows} pixels.", where=path)
    if min(request.right - request.left, request.bottom - request.top) < LEAST_SIDE:
        raise ScanError(f"the frame must have at least {LEAST_SIDE} x {LEAST_SIDE} pixels.", where=path)
    frame = replace(gray, levels=gray.levels[request.top : request.bottom, request.left : request.right])
    hu = frame.to_hu(Window(request.low, request.high))
    mm = request.pixel_mm or 1.0
    image = nib.Nifti1Image(hu.T[..., np.newaxis], np.diag([-mm, -mm, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, out)
