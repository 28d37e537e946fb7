"""Outlines of pixels along their edges, and their inverse: pixels inside outlines.

`trace_outlines` returns closed polygons whose corners are corners of pixels; `fill_outlines` gives the same pixels
back. Both use one plane with positions i (along a row) and j (along a column) in pixels; integers are centers of
pixels, so corners are at halves.

1. Pixels that touch by an edge are one part. Its boundary is walked with the part on the right hand; where two of its
   pixels touch by a corner only, the walk turns right, so that no outline crosses itself.
2. A part has one outer outline, and one for each hole. With ``keyhole`` a hole is joined to what lies left of it by a
   line that is walked in both directions and so encloses nothing: the part becomes one polygon.
3. A pixel is inside if a line from its center crosses an odd number of edges. No edge runs through a center, so it does
   not matter that files have 3 decimals.
"""

from collections.abc import Iterable

import cc3d
import numpy as np
import numpy.typing as npt

from slicemill.ct.formats.dicom_objects.options import Holes

Mask = npt.NDArray[np.bool_]
Polygon = npt.NDArray[np.float64]
"""float64[n, 2], i and j of the corners, in pixels; the last is connected with the first."""
Corner = tuple[int, int]
"""Row and column of the pixel to the lower right of a corner."""
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Right, down, left, up: each is a right turn from the one before."""


def trace_outlines(mask: Mask, holes: Holes = "keyhole") -> list[Polygon]:
    """Return the outlines of a plane: bool[j, i].

    >>> trace_outlines(np.array([[True, True]]))[0].tolist()
    [[-0.5, -0.5], [1.5, -0.5], [1.5, 0.5], [-0.5, 0.5]]
    """
    if not mask.any():
        return []
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    corner = np.array([rows[0], columns[0]])
    parts = cc3d.connected_components(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], connectivity=4)
    polygons = []
    for number, box in enumerate(cc3d.statistics(parts)["bounding_boxes"][1:], 1):
        loops = walk_boundary(parts[box] == number)
        joined = [join_holes(loops)] if holes == "keyhole" else loops
        offset = corner + np.array([box[0].start, box[1].start])
        polygons += [(np.array(_drop_straight(loop)) + offset)[:, ::-1] - 0.5 for loop in joined]
    return polygons


def walk_boundary(part: Mask) -> list[list[Corner]]:
    """Return the boundary of one part, bool[j, i], as loops of neighboring corners: the outer one, then the holes."""
    padded = np.pad(part, 1)
    inside, height, width = padded[1:-1, 1:-1], part.shape[0] + 1, part.shape[1] + 1
    edges = np.zeros((4, height, width), dtype=bool)
    edges[0, :-1, :-1] = inside & ~padded[:-2, 1:-1]
    edges[1, :-1, 1:] = inside & ~padded[1:-1, 2:]
    edges[2, 1:, 1:] = inside & ~padded[2:, 1:-1]
    edges[3, 1:, :-1] = inside & ~padded[1:-1, :-2]
    left = edges.transpose(1, 2, 0).ravel()  # an edge's number is 4 * corner + direction
    todo = bytearray(left.tobytes())
    moves = (1, width, -1, -width)
    loops = []
    for first in np.flatnonzero(left).tolist():
        if not todo[first]:
            continue
        loop, edge = [], first
        while todo[edge]:
            todo[edge] = 0
            corner, direction = divmod(edge, 4)
            loop.append(divmod(corner, width))
            ahead = 4 * (corner + moves[direction])
            for turn in (1, 0, 3):
                edge = ahead + (direction + turn) % 4
                if edge < len(todo) and todo[edge]:
                    break
        loops.append(loop)
    return loops


def join_holes(loops: list[list[Corner]]) -> list[Corner]:
    """Return one loop: each hole is joined to what lies left of it. The first loop is the outer one."""
    outer, *holes = loops
    corners = list(outer)
    following = [*range(1, len(outer)), 0]
    """Index of the corner after each one: a linked list, into which holes are inserted."""
    where = {corner: index for index, corner in enumerate(corners)}
    # the leftmost hole first: what lies left of a hole is then part of the loop already
    for hole in sorted(holes, key=lambda loop: min(column for _, column in loop)):
        start = min(range(len(hole)), key=lambda index: (hole[index][1], hole[index][0]))
        row, column = hole[start]
        bridge = [(row, column)]
        while bridge[-1] not in where:
            column -= 1
            bridge.append((row, column))
        before = where[bridge[-1]]
        added = (
            [*bridge[-2::-1], *hole[start + 1 :], *hole[:start], *bridge]
            if len(bridge) > 1
            else [*hole[start + 1 :], *hole[: start + 1]]
        )
        first = len(corners)
        corners += added
        following += [*range(first + 1, len(corners)), following[before]]
        following[before] = first
        where |= {corner: first + index for index, corner in enumerate(added)}
    joined, index = [], 0
    for _ in corners:
        joined.append(corners[index])
        index = following[index]
    return joined


def _drop_straight(loop: list[Corner]) -> list[Corner]:
    """Return a loop without the corners at which it goes straight on."""
    points = np.array(loop)
    ahead, behind = np.roll(points, -1, axis=0) - points, points - np.roll(points, 1, axis=0)
    return [tuple(point) for point in points[(ahead != behind).any(axis=1)].tolist()]


def fill_outlines(polygons: Iterable[Polygon], shape: tuple[int, int]) -> Mask:
    """Return the pixels, bool[j, i] of `shape`, whose centers are inside an odd number of polygons.

    >>> fill_outlines([np.array([[-0.5, -0.5], [1.5, -0.5], [1.5, 0.5], [-0.5, 0.5]])], (2, 3)).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    for polygon in polygons:
        _count_crossings(polygon, crossings)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1)


def _count_crossings(polygon: Polygon, crossings: npt.NDArray[np.int64]) -> None:
    """Count for each row j at which column the edges of a polygon cross the line through its centers."""
    height, width = crossings.shape[0], crossings.shape[1] - 1
    start, end = polygon, np.roll(polygon, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), 0, height).astype(np.int64)
    count = np.clip(np.ceil(high), 0, height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(polygon)), count)
    if not len(edge):
        return
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    rise = end[edge, 1] - start[edge, 1]
    at = start[edge, 0] + (rows - start[edge, 1]) * (end[edge, 0] - start[edge, 0]) / rise
    columns = np.clip(np.ceil(at), 0, width).astype(np.int64)
    np.add.at(crossings, (rows, columns), 1)
