"""The lesions of a segmentation with the figures that a structured report has."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.diameter_lines import Diameter, find_diameters
from slicemill.ct.labels import Labels
from slicemill.ct.lesion_masks import isolate_lesions

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredLesion:
    """One lesion (26-connected)."""

    id: int
    """1 for the largest, then in order of falling volume."""
    box: tuple[slice, slice, slice]
    """Slices z, y, x of the smallest box around it."""
    mask: Mask
    """bool[z, y, x] in its box."""
    volume_mm3: float
    key_z: int
    """Slice of the longest axial diameter."""
    longest: Diameter
    perpendicular: Diameter
    """Longest line at right angles to the longest diameter, on the same slice."""
    mean_hu: float | None
    """None without a scan."""
    sd_hu: float | None
    """Standard deviation of its voxels (divided by n)."""
    probability: float | None
    """Mean of the network's probability of tumor over its voxels, 0 to 1; None without probabilities."""


def measure_for_report(
    label: npt.NDArray[np.uint8],
    labels: Labels,
    affine_lps: Floats,
    image: npt.NDArray[np.int16] | None = None,
    probability: npt.NDArray[np.uint8] | None = None,
) -> tuple[MeasuredLesion, ...]:
    """Measure all lesions, the largest first; none without a tumor label.

    Parameters
    ----------
    label
        uint8[z, y, x], values of the labels.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    image
        int16[z, y, x], HU.
    probability
        uint8[z, y, x], probability of tumor, 255 is certain.
    """
    measured = []
    for lesion, mask in isolate_lesions(label, labels, affine_lps):
        z0, y0, x0, z1, y1, x1 = lesion.bbox_zyx
        box = (slice(z0, z1), slice(y0, y1), slice(x0, x1))
        longest, perpendicular = find_diameters(mask[lesion.key_z - z0], (lesion.key_z, y0, x0), affine_lps)
        hu = None if image is None else image[box][mask]
        measured.append(
            MeasuredLesion(
                id=lesion.id,
                box=box,
                mask=mask,
                volume_mm3=lesion.volume_ml * 1000,
                key_z=lesion.key_z,
                longest=longest,
                perpendicular=perpendicular,
                mean_hu=None if hu is None else float(hu.mean()),
                sd_hu=None if hu is None else float(hu.std()),
                probability=None if probability is None else float(probability[box][mask].mean()) / 255,
            )
        )
    return tuple(measured)
