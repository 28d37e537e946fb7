"""NIfTI headers made from a grid, for scans of other formats and for arrays."""

import nibabel as nib
import numpy as np

from slicemill.ct.geometry import Grid

NIFTI1_SIDE = 32767
"""Largest extent that a NIfTI-1 header can hold."""
QFORM_MM = 1e-3
"""Largest error of an affine's number that a qform may have; a sheared affine has no qform."""


def make_header(grid: Grid) -> bytes:
    """Return a NIfTI header of a grid, to write segmentations with.

    The sform holds the affine; so does the qform, unless the axes are not perpendicular.
    """
    header = nib.Nifti1Header() if max(grid.shape) <= NIFTI1_SIDE else nib.Nifti2Header()
    header.set_data_shape(grid.shape)
    header.set_data_dtype(np.int16)
    header.set_zooms(np.sqrt((grid.affine[:3, :3] ** 2).sum(axis=0)))
    header.set_qform(grid.affine, 1)
    if np.abs(header.get_qform() - grid.affine).max() > QFORM_MM:
        header["qform_code"] = 0
    header.set_sform(grid.affine, 1)
    header.set_xyzt_units("mm")
    return bytes(header.binaryblock)
