"""Pictures of a candidate for a page: three views through its center, and a strip of slices.

All are sampled along the axes of the patient, whatever the axes of the scan are, by the rules of a crop
(`slicemill.ct.crops`). The center is moved to the middle of its slice, so that no view mixes two slices there.

The data, compressed by gzip and as base64: uint8[VIEW_PX, VIEW_PX] of the axial, the coronal and the sagittal view,
then uint8[STRIP, STRIP_PX, STRIP_PX], the axial slices of the strip from inferior to superior. Rows run to posterior in
axial slices, else to inferior; columns run to the patient's left, in the sagittal view to posterior. Gray values are
those of `slicemill.ct.page_slices`.
"""

import base64
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from isal import igzip

from slicemill.ct.crops import sample_box, spread
from slicemill.ct.page_slices import to_grays
from slicemill.ct.point_views import choose_field, sample_views
from slicemill.infer.candidates.records import CandidateRow

VIEW_PX, STRIP_PX = 96, 64
"""Pixels along a side of a view, and of a slice of the strip."""
STRIP = 9
"""Slices of the strip; the middle one is that of the center."""
STRIP_DIAMETERS = 1.5
"""The strip is at least so many diameters long."""
COMPRESSION = 3
Hu = npt.NDArray[np.int16]
Grays = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CandidateViews:
    """The pictures of one candidate."""

    field_mm: float
    """Side of each view, and of each slice of the strip, mm."""
    step_mm: float
    """Distance of the slices of the strip, mm: a multiple of that of the scan's slices."""
    data: str


def draw_views(image: Hu, affine: npt.NDArray[np.float64], candidate: CandidateRow) -> CandidateViews:
    """Return the pictures of a candidate.

    Parameters
    ----------
    image
        int16[z, y, x], HU.
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    """
    center = move_to_slice(affine, candidate)
    field_mm = choose_field(candidate.diameter_mm)
    slice_mm = float(np.linalg.norm(affine[:3, 2]))
    step_mm = slice_mm * max(1, math.ceil(STRIP_DIAMETERS * candidate.diameter_mm / ((STRIP - 1) * slice_mm)))
    views = sample_views(image, affine, center, field_mm, VIEW_PX)
    coarse = spread(STRIP_PX, field_mm / STRIP_PX)
    strip = sample_box(image, affine, center, (spread(STRIP, step_mm), coarse, coarse))
    packed = b"".join(to_grays(one).tobytes() for one in (*views, strip))
    data = base64.b64encode(igzip.compress(packed, COMPRESSION)).decode()
    return CandidateViews(field_mm=field_mm, step_mm=step_mm, data=data)


def move_to_slice(affine: npt.NDArray[np.float64], candidate: CandidateRow) -> npt.NDArray[np.float64]:
    """Return the center of a candidate, moved along the scan's z axis into the middle of its slice: x, y, z in mm."""
    position = np.array([candidate.x_mm, candidate.y_mm, candidate.z_mm, 1.0])
    voxel = np.linalg.solve(affine, position)
    voxel[2] = candidate.slice
    moved: npt.NDArray[np.float64] = (affine @ voxel)[:3]
    return moved
