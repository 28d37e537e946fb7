"""Lesions of a mask in memory."""

import numpy as np
import numpy.typing as npt

from slicemill.api.scans import Axes, check_axes, make_affine, make_grid, to_lps
from slicemill.common.errors import InputError
from slicemill.ct.lesions import Lesion
from slicemill.ct.lesions import find_lesions as find


def find_lesions(mask: npt.ArrayLike, affine: npt.ArrayLike, *, axes: Axes) -> tuple[Lesion, ...]:
    """Return the lesions of a tumor mask, the connected components (26 neighbors), the largest first.

    Parameters
    ----------
    mask
        bool[...] of 3 axes, or 0 and 1; of a segmentation pass one label, ``label == 2``.
    affine
        float[4, 4], voxel (i, j, k, 1) to mm.
    axes
        ``xyz-ras`` for mask[i, j, k] and an affine to RAS mm (nibabel, MONAI, TorchIO), or ``zyx-lps`` for
        mask[k, j, i] and an affine to LPS mm (SimpleITK, slicemill). The axial diameter depends on it.

    Returns
    -------
    tuple
        Volume in ml, center in LPS mm, longest axial diameter in mm. Boxes and slices (`bbox_zyx`, `key_z`) count in
        the mask in LPS+ order, [z, y, x], whatever the order of `mask`.

    Raises
    ------
    InputError
        The mask has other values than 0 and 1 or not 3 axes, or the affine is not one of a scan.

    >>> mask = np.zeros((4, 8, 8), dtype=bool)
    >>> mask[2, 3:5, 3:7] = True
    >>> (lesion,) = find_lesions(mask, np.diag([0.5, 0.5, 5.0, 1.0]), axes="zyx-lps")
    >>> lesion.voxels, lesion.volume_ml, lesion.centroid_lps_mm
    (8, 0.01, (2.25, 1.75, 10.0))
    """
    array = np.asarray(mask)
    marked = array.astype(bool)
    if not np.array_equal(array, marked):
        raise InputError("a mask has the values 0 and 1 only; of a segmentation, pass one label: label == 2.")
    order = check_axes(axes)
    grid = make_grid(marked.shape, make_affine(None, affine, order), order)
    return find(np.ascontiguousarray(to_lps(marked, grid, order)), grid.affine_lps)
