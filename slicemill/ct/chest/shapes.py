"""Distances to simple shapes in mm, negative inside, and the coverage of voxels by them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.floating[Any]]
"""Any precision: results are float32."""
Point = tuple[float, float, float]


def cover(distance: Reals, width_mm: float) -> Floats:
    """Return the share of a voxel of `width_mm` that a shape covers, from the distance of the voxel's center.

    >>> cover(np.float32([-2, 0, 0.5, 2]), 2.0).tolist()
    [1.0, 0.5, 0.25, 0.0]
    """
    return np.asarray(np.clip(0.5 - distance / width_mm, 0, 1), dtype=np.float32)


def ellipse(x: Reals, y: Reals, half: tuple[float, float] | tuple[Reals, Reals]) -> Floats:
    """Return the distance along the radius to an ellipse around 0 with the half axes `half` along x and y."""
    radius = np.sqrt(x * x + y * y) + np.float32(1e-3)
    scaled = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2) + np.float32(1e-6)
    return np.asarray(radius * (1 - 1 / scaled), dtype=np.float32)


def ellipsoid(x: Reals, y: Reals, z: Reals, half: Point) -> Floats:
    """Return about the distance to an ellipsoid around 0 with the half axes `half`."""
    scaled = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2 + (z / half[2]) ** 2)
    return np.asarray((scaled - 1) * np.float32(np.cbrt(np.prod(half))), dtype=np.float32)


def smooth_max(a: Reals, b: Reals, blend_mm: float) -> Floats:
    """Return the larger of two distances, rounded where they differ by less than `blend_mm`: an edge without crease."""
    near = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.asarray(np.maximum(a, b) + near * near / (4 * blend_mm), dtype=np.float32)


def capsule_distance(offset: Reals, along: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the distance of points from a line segment.

    Parameters
    ----------
    offset
        float[..., 3]: points relative to the segment's start, mm.
    along
        float64[..., 3]: from the segment's start to its end.
    """
    length = (along * along).sum(-1)
    share = np.clip((offset * along).sum(-1) / np.maximum(length, 1e-9), 0, 1)
    return np.asarray(np.linalg.norm(offset - share[..., None] * along, axis=-1), dtype=np.float64)
