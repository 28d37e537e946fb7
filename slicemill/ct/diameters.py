"""Longest axial diameters: the longest distance across a section of a lesion, and the section where it is longest.

A diameter is measured between the middles of the outer edges of pixels. So one pixel is as long as its side, and
a disc is as long as its diameter. The ends of the longest distance are corners of the convex hull. Therefore only the
first and last pixel of each row or column are kept.
"""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int32]
"""int32[n, 2], y and x in half pixels: middles of pixel edges."""
Outline = npt.NDArray[np.int32]
"""int32[n, 3], z, y, x of voxels. In each slice they have the same convex hull as the section."""
MAX_PASSES = 32
"""Passes of `drop_inner_points`. Points that are left after them cost time but change no result."""
DIRECTIONS = np.arange(8) * (np.pi / 8)
"""Angles in which all sections are measured first. A diameter is at most the largest width over cos(pi / 16), 1.02."""


def axial_diameter(section: Mask, spacing_yx: tuple[float, float]) -> float:
    """Return the longest distance in mm across a section: bool[y, x].

    >>> axial_diameter(np.array([[True, True, True]]), (1.0, 0.5))
    1.5
    """
    return longest_distance(outline_points(section), spacing_yx)


def outline_points(section: Mask, y: int = 0, x: int = 0) -> Points:
    """Return the outer edges of the first and last pixel of every row and column of a section.

    Parameters
    ----------
    section
        bool[y, x].
    y, x
        Position of its first pixel in the slice.
    """
    ends = []
    for axis, rows in ((0, section), (1, section.T)):
        filled = np.flatnonzero(rows.any(axis=1))
        part = rows[filled]
        first = 2 * part.argmax(axis=1) - 1
        last = 2 * (part.shape[1] - 1 - part[:, ::-1].argmax(axis=1)) + 1
        ends += [np.stack([2 * filled, edge][:: 1 if axis == 0 else -1], axis=1) for edge in (first, last)]
    points = np.concatenate(ends)
    points += np.array((2 * y, 2 * x))
    return row_ends(points.astype(np.int32))


def row_ends(points: Points) -> Points:
    """Return the first and last point of every row.

    >>> row_ends(np.array([[0, 3], [0, 1], [0, 2], [4, 5]], dtype=np.int32)).tolist()
    [[0, 1], [4, 5], [0, 3], [4, 5]]
    """
    if not len(points):
        return points
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    starts = np.flatnonzero(np.diff(ordered[:, 0], prepend=ordered[0, 0] - 1))
    ends = np.append(starts[1:], len(ordered)) - 1
    return np.concatenate([ordered[starts], ordered[ends]])


def drop_inner_points(
    chain: npt.NDArray[np.int64], y: npt.NDArray[np.int32], x: npt.NDArray[np.int32], side: int
) -> npt.NDArray[np.int64]:
    """Drop points of chains on or inside the line between their neighbors; return the indices of the others.

    Parameters
    ----------
    chain
        Number of the chain of each point. Points of a chain follow each other, y rising.
    y, x
        Position of each point.
    side
        -1 if the points are the first of their rows, 1 if they are the last.

    >>> drop_inner_points(np.zeros(5, int), np.arange(5), np.array([0, 1, 2, 9, 4]), 1).tolist()
    [0, 3, 4]
    """
    kept = np.arange(len(chain))
    y, x = y.astype(np.int64), x.astype(np.int64)
    for _ in range(MAX_PASSES):
        before, middle, after = kept[:-2], kept[1:-1], kept[2:]
        # The cross product of (before -> after) and (before -> middle) has the sign of the side on which a point is.
        # A point that is dropped is on or inside the line between two points that were present, so the hull stays.
        cross = (y[after] - y[before]) * (x[middle] - x[before]) - (y[middle] - y[before]) * (x[after] - x[before])
        outside = (side * cross > 0) | (chain[before] != chain[after])  # the ends of each chain stay
        if outside.all():
            break
        kept = kept[np.concatenate([[True], outside, [True]])]
    return kept


def longest_distance(points: Points, spacing_yx: tuple[float, float]) -> float:
    """Return the longest distance in mm between two points of an outline; 0 if there are none."""
    if not len(points):
        return 0.0
    positions = points * (np.array(spacing_yx) / 2)
    # A good first pair: the point farthest from the center, and the point farthest from that one.
    far = positions[np.argmax(((positions - positions.mean(axis=0)) ** 2).sum(axis=1))]
    other = positions[np.argmax(((positions - far) ** 2).sum(axis=1))]
    # The distance of two points is at most the sum of their distances from any center. Points that are too near to the
    # middle of the first pair cannot be ends of a longer one. The few that remain are compared with each other.
    length = np.linalg.norm(other - far)
    reach = np.linalg.norm(positions - (far + other) / 2, axis=1)
    positions = positions[reach >= length - reach.max() - 1e-9]
    squared = ((positions[:, None] - positions[None]) ** 2).sum(axis=2)
    return float(np.sqrt(squared.max()))


def longest_section(voxels: Outline, spacing_yx: tuple[float, float]) -> tuple[int, float]:
    """Return z of the section with the longest axial diameter and that diameter in mm; the lowest z of equals.

    `voxels` is the outline of a lesion, or the outlines of its parts.
    """
    voxels = voxels[np.argsort(voxels[:, 0], kind="stable")]
    firsts = np.flatnonzero(np.diff(voxels[:, 0], prepend=-1))
    ends = np.append(firsts[1:], len(voxels))
    # 1. The width of every section in a few directions: the range of its pixels' positions along the direction, plus
    #    half a pixel at both ends.
    steps = np.stack([np.sin(DIRECTIONS) * spacing_yx[0], np.cos(DIRECTIONS) * spacing_yx[1]])
    positions = voxels[:, 1:] @ steps
    widths = np.maximum.reduceat(positions, firsts) - np.minimum.reduceat(positions, firsts)
    widths = (widths + np.abs(steps).max(axis=0)).max(axis=1)
    # 2. No diameter is below its largest width, or more than 2 % above it. Only sections within that margin of the
    #    widest can have the longest diameter.
    candidates = np.flatnonzero(widths >= widths.max() * np.cos(np.pi / 16) * (1 - 1e-9))
    # 3. Measure these exactly.
    diameters = {}
    for index in candidates.tolist():
        pixels = voxels[firsts[index] : ends[index], 1:]
        diameters[int(voxels[firsts[index], 0])] = longest_distance(row_ends(_edge_middles(pixels)), spacing_yx)
    key_z = max(diameters, key=lambda z: (diameters[z], -z))
    return key_z, diameters[key_z]


def _edge_middles(pixels: npt.NDArray[np.int32]) -> Points:
    """Return the middles of the four edges of pixels int32[n, 2], y and x, in half pixels."""
    return np.concatenate([2 * pixels + np.array(step, dtype=np.int32) for step in ((0, -1), (0, 1), (-1, 0), (1, 0))])
