"""Three views through a point: axial, coronal and sagittal planes of the patient, whatever the scan's axes are."""

import numpy as np
import numpy.typing as npt

from slicemill.ct.crops import CROP_MM, Crop, sample_box, spread

DIAMETERS = 2.0
"""A view has at least twice the diameter of what it shows."""


def choose_field(diameter_mm: float) -> float:
    """Return the side of views of a nodule, mm: that of a crop, which the classifier sees, or more for a large one.

    >>> choose_field(6.0), choose_field(30.0)
    (48.0, 60.0)
    """
    return max(CROP_MM, DIAMETERS * diameter_mm)


def sample_views(
    image: npt.NDArray[np.int16],
    affine: npt.NDArray[np.float64],
    center_mm: npt.ArrayLike,
    field_mm: float,
    side: int,
) -> tuple[Crop, Crop, Crop]:
    """Return the axial, the coronal and the sagittal view: int16[side, side] each, HU, by the rules of a crop.

    Rows run to posterior in the axial view, else to inferior. Columns run to the patient's left, in the sagittal view
    to posterior.

    Parameters
    ----------
    image
        int16[z, y, x], HU.
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    center_mm
        Position x, y, z in LPS mm.
    field_mm
        Side of the views, mm.
    """
    grid, middle = spread(side, field_mm / side), np.zeros(1)
    axial = sample_box(image, affine, center_mm, (middle, grid, grid))[0]
    coronal = sample_box(image, affine, center_mm, (grid, middle, grid))[::-1, 0]
    sagittal = sample_box(image, affine, center_mm, (grid, grid, middle))[::-1, :, 0]
    return axial, coronal, sagittal
