"""Surfaces as the page gets them: integers in a box, little endian.

==============  ================  ==================================================================
offset          type              content
==============  ================  ==================================================================
0               uint32[2]         n vertices, m triangles
8               float32[4]        x, y, z of the middle of the box, LPS mm; mm of one step
24              int16[n, 3]       x, y, z in steps from the middle
24 + 6n         uint16[m, 3]      vertices of each triangle, counterclockwise seen from outside
24 + 6n + 6m    int8[n, 3]        x, y, z of the normal, times 127
==============  ================  ==================================================================
"""

import struct

import numpy as np

from slicemill.ct.surface import Surface

EMPTY = struct.pack("<2I4f", 0, 0, 0, 0, 0, 1)
STEPS = 32_767
"""Steps from the middle of the box to its sides."""


def pack_surface(surface: Surface | None) -> bytes:
    """Return a surface as bytes; None gives one without triangles.

    Surfaces of `MOST_TRIANGLES` triangles have fewer than 65,536 vertices: each part has at most 2/3 of its triangles.
    """
    if surface is None:
        return EMPTY
    low, high = surface.vertices.min(axis=0), surface.vertices.max(axis=0)
    middle, step = (low + high) / 2, float((high - low).max()) / 2 / STEPS
    vertices = np.rint((surface.vertices - middle) / step).astype("<i2")
    normals = np.rint(surface.normals() * 127).astype(np.int8)
    triangles = surface.triangles.astype("<u2")
    head = struct.pack("<2I4f", len(vertices), len(triangles), *middle, step)
    return b"".join([head, vertices.tobytes(), triangles.tobytes(), normals.tobytes()])
