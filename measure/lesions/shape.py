"""The shape of one lesion in mm: diameters with their ends, three-dimensional diameter, surface, sphericity.

Positions are voxels z, y, x, where whole numbers are centers; a voxel reaches half a voxel to each side, and lengths are
taken between outer faces, so that one voxel is as long as its side.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.diameters import outline

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Voxel = tuple[float, float, float]
"""z, y, x."""
HALF = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]
"""One of each two opposite neighbors of 26: 13 directions z, y, x."""


@dataclass(frozen=True, kw_only=True)
class Chord:
    """A straight line through a lesion."""

    length_mm: float
    ends: tuple[Voxel, Voxel]


def chords(section: Mask, corner: tuple[int, int, int], affine_lps: Floats) -> tuple[Chord, Chord]:
    """Return the longest diameter of a section bool[y, x], and the longest line at right angles to it (RECIST 1.1, WHO).

    Both lie on the section's convex hull, between outer edges of pixels.

    Parameters
    ----------
    corner
        z, y, x of the section's first pixel in the scan.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    """
    plane = affine_lps[:3, [1, 0]]  # a step along y and one along x, mm
    flat = np.linalg.qr(plane)[1]  # the same two steps in a frame of two axes at right angles
    pixels = outline(section).astype(np.float64) / 2
    places = pixels @ flat.T
    first, last = _farthest(places)
    along = (places[last] - places[first]) / np.linalg.norm(places[last] - places[first])
    across = np.array([-along[1], along[0]])
    run, rise = (places - places[first]) @ along, (places - places[first]) @ across
    low, high = hull(run, rise), hull(run, -rise)
    stops = np.unique(np.concatenate([low[:, 0], high[:, 0]]))
    bottom, top = np.interp(stops, *low.T), -np.interp(stops, *high.T)
    widest = np.flatnonzero(top - bottom >= (top - bottom).max() - 1e-9)[
        [0, -1]
    ]  # of equals, the one between the outermost
    ends = [places[first] + stops[widest].mean() * along + side[widest].mean() * across for side in (bottom, top)]
    back = np.linalg.inv(flat)
    return (
        Chord(
            length_mm=float(np.linalg.norm(places[last] - places[first])),
            ends=(_voxel(pixels[first], corner), _voxel(pixels[last], corner)),
        ),
        Chord(
            length_mm=float((top - bottom).max()),
            ends=(_voxel(back @ ends[0], corner), _voxel(back @ ends[1], corner)),
        ),
    )


def _voxel(pixel: Floats, corner: tuple[int, int, int]) -> Voxel:
    return float(corner[0]), float(corner[1] + pixel[0]), float(corner[2] + pixel[1])


def hull(run: Floats, rise: Floats) -> Floats:
    """Return the lower convex hull of points, float64[k, 2], by rising `run` (Andrew's monotone chain).

    >>> hull(np.array([0.0, 1.0, 2.0, 1.0]), np.array([0.0, 1.0, 0.0, -1.0])).tolist()
    [[0.0, 0.0], [1.0, -1.0], [2.0, 0.0]]
    """
    chain: list[tuple[float, float]] = []
    for x, y in sorted(zip(run.tolist(), rise.tolist(), strict=True)):
        if chain and chain[-1][0] == x:
            continue  # above a point that is there
        while len(chain) > 1 and _turn(chain[-2], chain[-1], (x, y)) <= 0:
            chain.pop()
        chain.append((x, y))
    return np.array(chain)


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _farthest(places: Floats) -> tuple[int, int]:
    """Return the two points of float64[n, d] that lie farthest apart."""
    from scipy.spatial.distance import cdist

    apart = cdist(places, places, "sqeuclidean")
    first, last = np.unravel_index(int(apart.argmax()), apart.shape)
    return int(first), int(last)


def longest_3d(mask: Mask, affine_lps: Floats) -> float:
    """Return the longest distance in mm between two outer faces of bool[z, y, x]."""
    from scipy.spatial import ConvexHull

    padded = np.pad(mask, 1)
    points = []
    for axis, side in itertools.product(range(3), (-1, 1)):
        step = np.zeros(3)
        step[axis] = side / 2
        points.append(np.argwhere(padded & ~np.roll(padded, -side, axis)) + step)
    places = np.concatenate(points)[:, ::-1] @ affine_lps[:3, :3].T
    corners = places[ConvexHull(places).vertices]
    first, last = _farthest(corners)
    return float(np.linalg.norm(corners[last] - corners[first]))


def surface_mm2(mask: Mask, affine_lps: Floats) -> float:
    """Return the area of a mask's surface, mm2, from how often lines in 13 directions cross it.

    Cauchy and Crofton: a surface's area is twice the mean, over all directions, of the crossings of parallel lines times
    the area between them. Directions count by their share of the sphere (Lehmann and Legland 2012, as ITK does), here
    taken from the voxel's own shape.
    """
    padded = np.pad(mask, 1)
    volume = abs(float(np.linalg.det(affine_lps[:3, :3])))
    steps = np.array(HALF)[:, ::-1] @ affine_lps[:3, :3].T
    lengths = np.linalg.norm(steps, axis=1)
    shares = direction_shares(tuple((steps / lengths[:, None]).round(12).ravel().tolist()))
    crossings = [_crossings(padded, offset) for offset in HALF]
    return float(2 * (shares * crossings * volume / lengths).sum())


def _crossings(padded: Mask, offset: tuple[int, ...]) -> int:
    """Count the pairs of neighbors in one direction of which one is inside."""
    here = tuple(slice(max(0, -step), padded.shape[axis] - max(0, step)) for axis, step in enumerate(offset))
    there = tuple(slice(max(0, step), padded.shape[axis] - max(0, -step)) for axis, step in enumerate(offset))
    return int(np.count_nonzero(padded[here] != padded[there]))


@functools.lru_cache(maxsize=64)
def direction_shares(directions: tuple[float, ...]) -> Floats:
    """Return which share of the sphere is nearest to each of 13 unit vectors or its opposite, float64[13]."""
    from scipy.spatial import SphericalVoronoi

    half = np.array(directions).reshape(-1, 3)
    areas = SphericalVoronoi(np.concatenate([half, -half]), threshold=1e-9).calculate_areas()
    return np.asarray((areas[: len(half)] + areas[len(half) :]) / areas.sum(), dtype=np.float64)


def sphericity(volume_mm3: float, area_mm2: float) -> float:
    """Return the surface of a ball of the same volume over the surface (Wadell 1935); 1 for a ball.

    >>> round(sphericity(4 / 3 * math.pi, 4 * math.pi), 9)
    1.0
    """
    return float(math.pi ** (1 / 3) * (6 * volume_mm3) ** (2 / 3) / area_mm2)
