"""Small scans and masks in any axis order, with voxels that tell where they are."""

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from slicemill.ct.geometry import RAS_TO_LPS

SHAPE = (9, 14, 20)
"""z, y, x."""
SPACING = (4.0, 1.5, 1.0)
"""z, y, x, mm."""
ORIGIN = (-30.0, 12.0, 100.0)
"""x, y, z of the first voxel in LPS mm."""


def make_affine():
    """Return float64[4, 4], voxel (x, y, z, 1) to LPS mm."""
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = ORIGIN
    return affine


def make_image():
    """Return int16[z, y, x], HU: a ramp, bright on the patient's left, at posterior and at the head."""
    z, y, x = np.indices(SHAPE)
    return (-200 + 20 * x + 11 * y + 7 * z).astype(np.int16)


def make_mask():
    """Return uint8[z, y, x]: an organ (1) with a tumor (2) near its border, and a second tumor."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:8, 3:11, 4:15] = 1
    mask[3:6, 3:7, 6:10] = 2
    mask[7, 9, 12] = 2
    return mask


def write_scan(path, stored, axcodes="LPS"):
    """Write any[z, y, x] in LPS+ order as NIfTI whose axes run as `axcodes`."""
    image = nib.Nifti1Image(np.ascontiguousarray(stored.T), RAS_TO_LPS @ make_affine())
    turn = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(axcodes))
    voxels = nib.apply_orientation(image.get_fdata().astype(stored.dtype), turn)
    turned = nib.Nifti1Image(voxels, image.affine @ inv_ornt_aff(turn, image.shape))
    assert "".join(nib.aff2axcodes(turned.affine)) == axcodes
    nib.save(turned, path)
    return path
