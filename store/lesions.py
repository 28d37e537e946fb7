"""Lesions: connected components of tumor, with volume, place and longest axial diameter."""

import cc3d
import numpy as np
import numpy.typing as npt

from store.case import Lesion
from store.geometry import voxel_ml, voxel_to_mm

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    """Return the smallest box around the true voxels, or None where there are none."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hits):
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def components(mask: Mask) -> npt.NDArray[np.uint32]:
    """Return the 26-connected components of `mask`: bool[z, y, x] -> uint32[z, y, x], 0 outside, 1 to n inside."""
    return np.asarray(cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26), dtype=np.uint32)


def find_lesions(tumor: Mask, affine_lps: Floats, corner_zyx: tuple[int, int, int] = (0, 0, 0)) -> tuple[Lesion, ...]:
    """Return the lesions of a tumor mask, the largest first.

    Parameters
    ----------
    tumor
        bool[z, y, x], or a crop of it that holds all tumor.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) of the whole scan to LPS mm.
    corner_zyx
        Where the crop starts in the scan.
    """
    box = bounding_box(tumor)
    if box is None:
        return ()
    labelled = components(tumor[box])
    corner = np.array(corner_zyx) + [side.start for side in box]
    count = int(labelled.max())
    boxes = cc3d.statistics(labelled)["bounding_boxes"]
    found = [
        _measure(labelled[boxes[index]] == index, affine_lps, corner + [side.start for side in boxes[index]])
        for index in range(1, count + 1)
    ]
    found.sort(key=lambda lesion: (-lesion.voxels, lesion.bbox_zyx))
    return tuple(_numbered(lesion, number) for number, lesion in enumerate(found, start=1))


def _numbered(lesion: Lesion, number: int) -> Lesion:
    from dataclasses import replace

    return replace(lesion, id=number)


def _measure(mask: Mask, affine_lps: Floats, corner: npt.NDArray[np.int64]) -> Lesion:
    voxels = np.argwhere(mask)
    spacing_yx = np.sqrt((affine_lps[:3, :3] ** 2).sum(axis=0))[[1, 0]]
    diameters = [axial_diameter(section, (float(spacing_yx[0]), float(spacing_yx[1]))) for section in mask]
    key = int(np.argmax(diameters))
    end = corner + mask.shape
    return Lesion(
        id=0,
        voxels=len(voxels),
        volume_ml=len(voxels) * voxel_ml(affine_lps),
        centroid_lps_mm=voxel_to_mm(affine_lps, voxels.mean(axis=0) + corner),
        bbox_zyx=(int(corner[0]), int(corner[1]), int(corner[2]), int(end[0]), int(end[1]), int(end[2])),
        key_z=int(corner[0]) + key,
        max_axial_diameter_mm=diameters[key],
    )


def axial_diameter(section: Mask, spacing_yx: tuple[float, float]) -> float:
    """Return the longest distance in mm across a section: bool[y, x].

    Measured between the outer edges of pixels along their row or column, so that one pixel is as long as its side
    and a disc neither gains nor loses a pixel.

    >>> axial_diameter(np.array([[True, True, True]]), (1.0, 0.5))
    1.5
    """
    ends = []
    for axis, rows in ((0, section), (1, section.T)):
        filled = np.flatnonzero(rows.any(axis=1))
        first = rows[filled].argmax(axis=1) - 0.5
        last = rows.shape[1] - rows[filled, ::-1].argmax(axis=1) - 0.5
        for edge in (first, last):
            points = np.stack([filled, edge], axis=1)
            ends.append(points if axis == 0 else points[:, ::-1])
    points = np.concatenate(ends) * spacing_yx
    if not len(points):
        return 0.0
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    return float(np.sqrt(squared.max()))
