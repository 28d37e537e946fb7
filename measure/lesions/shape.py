"""Shape of one lesion in mm: 3-D diameter, surface, sphericity.

Positions are voxels z, y, x; integers are centers of voxels. Lengths are measured between outer faces, so the length of
a single voxel is its side.
"""

import functools
import itertools
import math

import numpy as np
import numpy.typing as npt

from slicemill.ct.diameter_lines import find_farthest

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
HALF = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]
"""13 directions z, y, x: one of each pair of opposite neighbors among 26."""


def measure_longest_3d(mask: Mask, affine_lps: Floats) -> float:
    """Return the longest distance between centers of two outer faces of bool[z, y, x], mm."""
    from scipy.spatial import ConvexHull

    padded = np.pad(mask, 1)
    points = []
    for axis, side in itertools.product(range(3), (-1, 1)):
        step = np.zeros(3)
        step[axis] = side / 2
        points.append(np.argwhere(padded & ~np.roll(padded, -side, axis)) + step)
    places = np.concatenate(points)[:, ::-1] @ affine_lps[:3, :3].T
    corners = places[ConvexHull(places).vertices]
    first, last = find_farthest(corners)
    return float(np.linalg.norm(corners[last] - corners[first]))


def measure_surface_mm2(mask: Mask, affine_lps: Floats) -> float:
    """Return the surface area of bool[z, y, x], mm2, from the crossings of lines in 13 directions.

    By Cauchy and Crofton, the area is twice the mean, over all directions, of the crossings of parallel lines times the
    area between lines. Directions are weighted by their share of the sphere (Lehmann and Legland 2012, as in ITK),
    which depends on the shape of the voxel.
    """
    padded = np.pad(mask, 1)
    volume = abs(float(np.linalg.det(affine_lps[:3, :3])))
    steps = np.array(HALF)[:, ::-1] @ affine_lps[:3, :3].T
    lengths = np.linalg.norm(steps, axis=1)
    shares = compute_direction_shares(tuple((steps / lengths[:, None]).round(12).ravel().tolist()))
    crossings = [_count_crossings(padded, offset) for offset in HALF]
    return float(2 * (shares * crossings * volume / lengths).sum())


def _count_crossings(padded: Mask, offset: tuple[int, ...]) -> int:
    """Count the pairs of neighbors in one direction of which exactly one is inside."""
    here = tuple(slice(max(0, -step), padded.shape[axis] - max(0, step)) for axis, step in enumerate(offset))
    there = tuple(slice(max(0, step), padded.shape[axis] - max(0, -step)) for axis, step in enumerate(offset))
    return int(np.count_nonzero(padded[here] != padded[there]))


@functools.lru_cache(maxsize=64)
def compute_direction_shares(directions: tuple[float, ...]) -> Floats:
    """Return the share of the sphere that is nearest to each of 13 unit vectors or its opposite: float64[13]."""
    from scipy.spatial import SphericalVoronoi

    half = np.array(directions).reshape(-1, 3)
    areas = SphericalVoronoi(np.concatenate([half, -half]), threshold=1e-9).calculate_areas()
    return np.asarray((areas[: len(half)] + areas[len(half) :]) / areas.sum(), dtype=np.float64)


def compute_sphericity(volume_mm3: float, area_mm2: float) -> float:
    """Return the surface of a sphere of equal volume divided by the surface (Wadell 1935); 1 for a sphere.

    >>> round(compute_sphericity(4 / 3 * math.pi, 4 * math.pi), 9)
    1.0
    """
    return float(math.pi ** (1 / 3) * (6 * volume_mm3) ** (2 / 3) / area_mm2)
