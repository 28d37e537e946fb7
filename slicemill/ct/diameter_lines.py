"""The two axial diameters of a lesion with their ends: the longest, and the longest at right angles to it.

Positions are voxels z, y, x; integers are centers of voxels. Both lines end on outer edges of pixels, so the length of
a single voxel is its side.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.diameters import outline_points

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Voxel = tuple[float, float, float]
"""z, y, x."""


@dataclass(frozen=True, kw_only=True)
class Diameter:
    """A straight line through a lesion."""

    length_mm: float
    ends: tuple[Voxel, Voxel]
    """The two ends, on the outer edges of the lesion."""


def find_diameters(section: Mask, corner: tuple[int, int, int], affine_lps: Floats) -> tuple[Diameter, Diameter]:
    """Return the longest diameter of a section, and the longest line at right angles to it (RECIST 1.1, WHO).

    Both end on the section's convex hull, on outer edges of pixels.

    Parameters
    ----------
    section
        bool[y, x].
    corner
        z, y, x of the section's first pixel in the scan.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    """
    plane = affine_lps[:3, [1, 0]]  # a step along y and one along x, mm
    flat = np.linalg.qr(plane)[1]  # the same two steps in a frame of two axes at right angles
    pixels = outline_points(section).astype(np.float64) / 2
    points = pixels @ flat.T
    first, last = find_farthest(points)
    along = (points[last] - points[first]) / np.linalg.norm(points[last] - points[first])
    across = np.array([-along[1], along[0]])
    run, rise = (points - points[first]) @ along, (points - points[first]) @ across
    # The hull's width across the longest diameter is piecewise linear, so it is largest at a corner of the hull.
    low, high = lower_hull(run, rise), lower_hull(run, -rise)
    stops = np.unique(np.concatenate([low[:, 0], high[:, 0]]))
    bottom, top = np.interp(stops, *low.T), -np.interp(stops, *high.T)
    # of several equally long lines, take the middle one
    widest = np.flatnonzero(top - bottom >= (top - bottom).max() - 1e-9)[[0, -1]]
    ends = [points[first] + stops[widest].mean() * along + side[widest].mean() * across for side in (bottom, top)]
    back = np.linalg.inv(flat)
    return (
        Diameter(
            length_mm=float(np.linalg.norm(points[last] - points[first])),
            ends=(_voxel(pixels[first], corner), _voxel(pixels[last], corner)),
        ),
        Diameter(
            length_mm=float((top - bottom).max()),
            ends=(_voxel(back @ ends[0], corner), _voxel(back @ ends[1], corner)),
        ),
    )


def _voxel(pixel: Floats, corner: tuple[int, int, int]) -> Voxel:
    return float(corner[0]), float(corner[1] + pixel[0]), float(corner[2] + pixel[1])


def lower_hull(run: Floats, rise: Floats) -> Floats:
    """Return the lower convex hull of points, float64[k, 2], by rising `run` (Andrew's monotone chain).

    >>> lower_hull(np.array([0.0, 1.0, 2.0, 1.0]), np.array([0.0, 1.0, 0.0, -1.0])).tolist()
    [[0.0, 0.0], [1.0, -1.0], [2.0, 0.0]]
    """
    chain: list[tuple[float, float]] = []
    for x, y in sorted(zip(run.tolist(), rise.tolist(), strict=True)):
        if chain and chain[-1][0] == x:
            continue  # above a point of the chain
        while len(chain) > 1 and _cross(chain[-2], chain[-1], (x, y)) <= 0:
            chain.pop()
        chain.append((x, y))
    return np.array(chain)


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def find_farthest(points: Floats) -> tuple[int, int]:
    """Return the indices of the two points of float64[n, d] that are farthest apart."""
    from scipy.spatial.distance import cdist

    apart = cdist(points, points, "sqeuclidean")
    first, last = np.unravel_index(int(apart.argmax()), apart.shape)
    return int(first), int(last)
