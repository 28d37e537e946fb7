"""Checks of a scan's grid, which return warnings for the manifest. They change no voxel and no header.

Oblique, sheared and rotated grids are exact in the store, because its affine gives the position of each voxel. The
warnings are for people and programs that assume axial slices.
"""

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid

OBLIQUE_DEGREES = 3.0
"""Smallest angle that is reported. Small rotations are common in CT headers."""
SHEAR_DEGREES = 0.5
"""Smallest deviation from right angles that is reported: above rounding, below a tilted gantry (from 10 degrees)."""


def grid_warnings(grid: Grid) -> list[str]:
    """Return warnings about a grid that is unusual for a CT."""
    warnings = []
    if lost := explain_lost_header(grid):
        warnings.append(
            f"the header may be lost: {lost}. Unless the scan was resampled so, its volumes and lengths are wrong"
        )
    if (angle := obliqueness_degrees(grid.affine)) > OBLIQUE_DEGREES:
        warnings.append(
            f"oblique: an axis leans {angle:.1f} degrees from the patient's; slices are stored as they were scanned"
        )
    if (shear := shear_degrees(grid.affine)) > SHEAR_DEGREES:
        warnings.append(
            f"sheared: two axes are {shear:.1f} degrees off the right angle, as under a tilted gantry; "
            "nothing was resampled"
        )
    if grid.stored_shape[0] == 1:
        warnings.append("a single slice")
    return warnings


def explain_lost_header(grid: Grid) -> str | None:
    """Return the reason why a header looks like a program's defaults instead of the scanner's geometry, or None.

    Scans 28 to 47 of LiTS and the mask of scan 53 have such headers.

    >>> explain_lost_header(Grid(shape=(2, 2, 2), affine=np.eye(4)))
    'its affine is the identity'
    """
    lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)
    if not np.allclose(lengths, 1, rtol=0, atol=1e-6):
        return None
    if np.array_equal(grid.affine, np.eye(4)):
        return "its affine is the identity"
    return "its voxels are cubes of exactly 1 mm"


def obliqueness_degrees(affine: npt.NDArray[np.float64]) -> float:
    """Return the largest angle between an axis and its nearest patient axis, from float64[4, 4], voxel to mm.

    >>> round(obliqueness_degrees(np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])), 6)
    45.0
    """
    nearest = np.abs(_cosines(affine)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(nearest, 0, 1))).max())


def shear_degrees(affine: npt.NDArray[np.float64]) -> float:
    """Return the largest deviation of two axes from a right angle, from float64[4, 4], voxel to mm.

    >>> round(shear_degrees(np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])), 6)
    45.0
    """
    cosines = _cosines(affine)
    between = np.abs((cosines.T @ cosines)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(between, 0, 1))).max())


def _cosines(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return float64[3, 3], the direction of each axis as a column of length 1."""
    linear = affine[:3, :3]
    return np.asarray(linear / np.linalg.norm(linear, axis=0), dtype=np.float64)
