"""Cubes around points in mm, resampled to one spacing: what a network of kind `crops` sees, in training and inference.

1. A crop has SIDE samples along z, y and x of the patient (LPS+), SPACING_MM apart. The point lies in its middle,
   between the two middle samples, whatever the axes of the scan are.
2. A sample is interpolated linearly between the eight voxels around it, and rounded to integer HU. Nothing is smoothed
   before, even if the scan's voxels are smaller.
3. A sample up to half a voxel beyond the outermost voxel centers repeats them; farther out it is OUTSIDE_HU. So a crop
   at the border of a scan keeps its point in the middle.

These are the rules of SimpleITK's `ResampleImageFilter` with linear interpolation, with which tests compare.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError

SIDE = 48
"""Samples along each axis."""
SPACING_MM = 1.0
"""Distance of samples."""
CROP_MM = SIDE * SPACING_MM
OUTSIDE_HU = -1000
"""HU of samples outside the scan: air."""
PARALLEL = 1e-5
"""Voxels by which a scan's axis may turn over a crop and still count as parallel: below 0.1 HU at any edge."""

Floats = npt.NDArray[np.float64]
Crop = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Samples between the voxels of one axis; arrays of any one shape."""

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]
    """Weight of the voxel at `high`."""
    outside: npt.NDArray[np.bool_]


def cut_crop(image: npt.NDArray[np.int16], affine: Floats, center_mm: npt.ArrayLike, side: int = SIDE) -> Crop:
    """Return the crop around a point: int16[side, side, side], HU, axes z, y, x of LPS+, SPACING_MM apart.

    It takes memory for the crop only: no array of the scan's size.

    Parameters
    ----------
    image
        int16[z, y, x], HU.
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm; its axes may have any order and direction.
    center_mm
        Position x, y, z in LPS mm; it may lie outside the scan.
    side
        Samples along each axis.

    Raises
    ------
    ScanError
        The position is not finite.
    """
    offsets = spread(side, SPACING_MM)
    return sample_box(image, affine, center_mm, (offsets, offsets, offsets))


def spread(count: int, spacing_mm: float) -> Floats:
    """Return float64[count]: offsets of samples from a point in their middle, mm.

    >>> spread(4, 2.0).tolist()
    [-3.0, -1.0, 1.0, 3.0]
    """
    offsets: Floats = (np.arange(count, dtype=np.float64) - (count - 1) / 2) * spacing_mm
    return offsets


def sample_box(
    image: npt.NDArray[np.int16], affine: Floats, center_mm: npt.ArrayLike, offsets_mm: tuple[Floats, Floats, Floats]
) -> Crop:
    """Return samples around a point by the rules of a crop: int16[z, y, x], HU, axes of LPS+.

    Parameters
    ----------
    image, affine, center_mm
        As for `cut_crop`.
    offsets_mm
        Offsets of the samples from the point along the patient's z, y and x, mm, ascending.

    Raises
    ------
    ScanError
        The position is not finite.
    """
    center = np.asarray(center_mm, dtype=np.float64)
    if center.shape != (3,) or not np.isfinite(center).all():
        raise ScanError(f"the center of a crop is {center.tolist()}; it must be three finite numbers, x, y, z in mm.")
    to_voxel = np.linalg.inv(affine)
    steps = to_voxel[:3, :3]
    middle = steps @ center + to_voxel[:3, 3]
    offsets = offsets_mm[::-1]  # of x, y, z
    reach = max(float(np.abs(one).max()) for one in offsets)
    along = np.abs(steps).argmax(axis=1)  # the patient's axis of each voxel axis x, y, z
    turned = np.abs(steps).sum(axis=1) - np.abs(steps).max(axis=1)
    if sorted(along.tolist()) == [0, 1, 2] and 2 * turned.max() * reach < PARALLEL:
        axes = [
            _locate(middle[axis] + steps[axis, along[axis]] * offsets[along[axis]], image.shape[2 - axis])
            for axis in range(3)
        ]
        mixed = _mix_parallel(image, axes[::-1])
        # axes of `mixed` are the voxel axes z, y, x; those of a crop are the patient's
        mixed = mixed.transpose([2 - int(np.flatnonzero(along == axis)[0]) for axis in (2, 1, 0)])
    else:
        x, y, z = np.meshgrid(*offsets, indexing="ij", sparse=True)
        positions = (middle[axis] + steps[axis, 0] * x + steps[axis, 1] * y + steps[axis, 2] * z for axis in range(3))
        mixed = _mix_any(
            image,
            [_locate(one.transpose(2, 1, 0), count) for one, count in zip(positions, image.shape[::-1], strict=True)],
        )
    return np.ascontiguousarray(np.rint(mixed).astype(np.int16))


def _locate(position: Floats, count: int) -> _Axis:
    """Locate samples, in voxels, along an axis of `count` voxels."""
    outside = (position < -0.5) | (position > count - 0.5)
    inner = position.clip(0, count - 1)
    low = np.floor(inner).astype(np.intp)
    return _Axis(low, np.minimum(low + 1, count - 1), (inner - low).astype(np.float32), outside)


def _mix_parallel(image: npt.NDArray[np.int16], axes: list[_Axis]) -> npt.NDArray[np.float32]:
    """Interpolate float32[k, m, n] along one axis after the other; `axes` are those of z, y, x."""
    used = [np.unique(np.concatenate([axis.low, axis.high])) for axis in axes]
    mixed: npt.NDArray[np.float32] = image[np.ix_(*used)].astype(np.float32)
    for number, (axis, voxels) in enumerate(zip(axes, used, strict=True)):
        low = mixed.take(np.searchsorted(voxels, axis.low), axis=number)
        high = mixed.take(np.searchsorted(voxels, axis.high), axis=number)
        high -= low
        high *= np.moveaxis(axis.weight[:, None, None], 0, number)
        low += high
        mixed = low
    for number, axis in enumerate(axes):
        np.moveaxis(mixed, number, 0)[axis.outside] = OUTSIDE_HU
    return mixed


def _mix_any(image: npt.NDArray[np.int16], axes: list[_Axis]) -> npt.NDArray[np.float32]:
    """Interpolate float32[k, m, n] at samples that `axes`, those of voxels x, y, z, locate one by one."""
    x, y, z = axes
    mixed = np.zeros(z.low.shape, dtype=np.float32)
    for z_index, z_weight in ((z.low, 1 - z.weight), (z.high, z.weight)):
        for y_index, y_weight in ((y.low, 1 - y.weight), (y.high, y.weight)):
            weight = z_weight * y_weight
            for x_index, x_weight in ((x.low, 1 - x.weight), (x.high, x.weight)):
                mixed += image[z_index, y_index, x_index] * (weight * x_weight)
    mixed[x.outside | y.outside | z.outside] = OUTSIDE_HU
    return mixed
