"""The mask of a lung nodule from its center and diameter, by a search for its density.

Collections like LUNA16 give nodules as a point and a diameter in mm. The voxels of a nodule are searched on the scan's
own grid:

1. The core's HU are the median within max(CORE_MM, D / 4) of the center, the surroundings' the lower quartile of the
   shell from SHELL to one diameter away. The threshold is half way: about -400 HU for a solid nodule in lung, -715 for
   ground glass, which one threshold for all would lose.
2. The voxels at or above it within LIMIT diameters are candidates. Those connected with the center are the nodule, its
   holes filled. Vessels and pleura that touch it are cut by the limit.
3. Where the center itself is below the threshold, the nearest candidate within D / 4 takes its place. Where there is
   none, or the core is hardly denser than its surroundings, the mask is the ball of the diameter, and flagged.
4. Voxels at or above the threshold from there to RIM diameters may be nodule or not: training leaves them out.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.ct.geometry import voxel_ml, voxel_to_mm
from slicemill.ct.points import is_inside, mm_to_voxel

CORE_MM = 1.5
SHELL = (0.65, 1.0)
"""Distances from the center, in diameters, of what surrounds a nodule."""
LIMIT = 0.55
"""Largest distance of the nodule's voxels from its center, in diameters: a twentieth more than the annotated ball."""
RIM = 0.8
"""Largest distance of voxels that are left out of training, in diameters."""
PLAUSIBLE = (0.5, 1.5)
"""Volume of a mask over that of its ball, beyond which it is flagged."""
MAX_DIAMETER_MM = 200.0
EDGE = 1e-6
"""Voxels by which a center may lie outside: rounding, if the image is a part of a scan."""
LEAST_CONTRAST_HU = 100.0
"""Least difference of core and surroundings: several times the noise of a median, half of faint ground glass."""
BALL = "the ball of its diameter was taken"

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class NoduleMask:
    """The voxels of a nodule, in a box of its scan."""

    box: Box
    """The box's slices along z, y, x of the scan."""
    mask: Mask
    """bool[z, y, x] in the box: the nodule."""
    rim: Mask
    """bool[z, y, x] in the box: voxels that may belong to it or not."""
    method: Literal["density", "ball"]
    """How the mask was made."""
    threshold_hu: float
    volume_ml: float
    ball_ml: float
    """Volume of a ball of the diameter."""
    offset_mm: float
    """Distance of the mask's center of mass from the annotated center."""
    flags: tuple[str, ...]
    """What is unusual, as phrases."""


def make_nodule_mask(
    image: npt.NDArray[np.int16], affine: Floats, center_mm: npt.ArrayLike, diameter_mm: float
) -> NoduleMask:
    """Search the mask of a nodule.

    Parameters
    ----------
    image
        int16[z, y, x], HU, in LPS+ order.
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm (`Grid.affine_lps`).
    center_mm
        Position x, y, z in LPS mm.
    diameter_mm
        Diameter, mm.

    Raises
    ------
    ScanError
        The center lies outside of the scan, or the diameter is not a length of a nodule.
    """
    center = np.asarray(center_mm, dtype=np.float64)
    box = nodule_box(image.shape, affine, center, diameter_mm)
    hu, distance = image[box], box_distances(box, affine, center)
    core_hu, around_hu = _find_densities(hu, distance, diameter_mm)
    threshold = (core_hu + around_hu) / 2
    dense = hu >= threshold
    method: Literal["density", "ball"] = "ball"
    mask, flags = distance <= max(diameter_mm / 2, float(distance.min())), []
    if core_hu - around_hu < LEAST_CONTRAST_HU:
        flags.append(f"its center is {core_hu:.0f} HU, in surroundings of {around_hu:.0f}: {BALL}")
    elif (grown := _grow(dense & (distance <= LIMIT * diameter_mm), distance, diameter_mm)) is None:
        flags.append(f"no dense voxel lies near its center: {BALL}")
    else:
        mask, method = grown, "density"
    volume_ml, ball_ml = float(mask.sum()) * voxel_ml(affine), float(np.pi / 6 * diameter_mm**3 / 1000)
    inside = np.argwhere(mask) + [side.start for side in box]
    offset_mm = float(np.linalg.norm(voxel_to_mm(affine, inside.mean(axis=0)) - center))
    flags += _odd_sizes(volume_ml / ball_ml, offset_mm, diameter_mm)
    return NoduleMask(
        box=box,
        mask=mask,
        rim=dense & (distance <= RIM * diameter_mm) & ~mask,
        method=method,
        threshold_hu=threshold,
        volume_ml=volume_ml,
        ball_ml=ball_ml,
        offset_mm=offset_mm,
        flags=tuple(flags),
    )


def nodule_box(shape: tuple[int, int, int], affine: Floats, center_mm: npt.ArrayLike, diameter_mm: float) -> Box:
    """Return the slices along z, y, x of all voxels that decide about the mask of a nodule.

    Raises
    ------
    ScanError
        The center lies outside of the scan, or the diameter is not a length of a nodule.
    """
    voxel = _locate(shape, affine, np.asarray(center_mm, dtype=np.float64), diameter_mm)
    return box_around(voxel, affine, shape, max(SHELL[1] * diameter_mm, CORE_MM))


def _odd_sizes(of_ball: float, offset_mm: float, diameter_mm: float) -> list[str]:
    flags = []
    if not PLAUSIBLE[0] <= of_ball <= PLAUSIBLE[1]:
        flags.append(f"its volume is {of_ball:.2f} of its ball's")
    if offset_mm > diameter_mm / 4:
        flags.append(f"its center of mass is {offset_mm:.1f} mm from the annotated center")
    return flags


def _locate(shape: tuple[int, int, int], affine: Floats, center: Floats, diameter_mm: float) -> Floats:
    """Return the voxel position z, y, x of a point, checked with its diameter."""
    if not 0 < diameter_mm <= MAX_DIAMETER_MM:
        raise ScanError(
            f"the diameter of a nodule must be above 0 and at most {MAX_DIAMETER_MM:g} mm; it is {diameter_mm:g}."
        )
    voxel = mm_to_voxel(affine, center)
    if not is_inside(shape, voxel + np.where(voxel < 0, EDGE, -EDGE)):
        shown = ", ".join(f"{number:g}" for number in center)
        raise ScanError(f"the point {shown} mm (x, y, z) lies outside of the scan.")
    return voxel


def _find_densities(hu: npt.NDArray[np.int16], distance: Floats, diameter_mm: float) -> tuple[float, float]:
    """Return the HU of the core and of the surroundings."""
    core = distance <= max(CORE_MM, diameter_mm / 4, float(distance.min()))
    shell = (distance >= SHELL[0] * diameter_mm) & (distance <= SHELL[1] * diameter_mm)
    if not shell.any():  # voxels larger than the nodule
        shell = ~core if not core.all() else core
    return float(np.median(hu[core])), float(np.percentile(hu[shell], 25))


def box_around(voxel: Floats, affine: Floats, shape: tuple[int, int, int], reach_mm: float) -> Box:
    """Return the box of all voxels within `reach_mm` of a voxel position z, y, x, at least that voxel."""
    # a ball of radius r reaches r times the length of the inverse matrix's rows along each axis
    reach = reach_mm * np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)[::-1]
    low = np.maximum(np.floor(voxel - reach), 0).astype(int)
    high = np.minimum(np.ceil(voxel + reach), np.array(shape) - 1).astype(int) + 1
    z, y, x = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    return z, y, x


def box_distances(box: Box, affine: Floats, center: Floats) -> Floats:
    """Return the distance of each voxel of a box from a point, mm: float64[z, y, x]."""
    z, y, x = np.ogrid[box]
    offsets = (affine[row, 0] * x + affine[row, 1] * y + affine[row, 2] * z + affine[row, 3] for row in range(3))
    squares = sum((offset - place) ** 2 for offset, place in zip(offsets, center, strict=True))
    return np.asarray(np.sqrt(squares), dtype=np.float64)


def _grow(candidates: Mask, distance: Floats, diameter_mm: float) -> Mask | None:
    """Return the component of the candidates at the center, with its holes filled; None if there is none."""
    from scipy import ndimage

    start = np.where(candidates, distance, np.inf)
    nearest = np.unravel_index(int(start.argmin()), start.shape)
    if not start[nearest] <= max(diameter_mm / 4, float(distance.min())):
        return None
    numbers, _ = ndimage.label(candidates, structure=np.ones((3, 3, 3)))
    return np.asarray(ndimage.binary_fill_holes(numbers == numbers[nearest]), dtype=bool)
