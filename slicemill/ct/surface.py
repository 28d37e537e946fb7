"""Surfaces of labels as triangles, for pictures in 3-D.

1. Each part of the label is reduced to blocks of voxels, until its surface has few enough faces.
2. The faces between blocks inside and outside of the part become quads, of two triangles each.
3. The vertices are smoothed without shrinking (Taubin, "A signal processing approach to fair surface design", 1995).
4. The surface is scaled about its center until it encloses exactly the volume of the part's voxels.

Step 4 makes the volume right for any shape, spacing and affine; steps 1 to 3 decide only how the surface looks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from slicemill.ct.lesions import BATCH_SLICES, Lesion

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
ReadMask = Callable[[int, int], npt.NDArray[np.bool_]]
"""Returns bool[z, y, x] of the slices from the first number to before the second one."""
MOST_CELLS = 2 << 20
"""Blocks of a part that are in memory at first, at about 20 bytes each."""
LEAST_TRIANGLES = 64
"""Triangles that each part may have at least."""
MOST_PARTS = 200
"""Parts that are drawn, the largest; more are noise."""
SMOOTHING = (0.5, -0.53)
"""Steps of one round of smoothing, by Taubin's rule: the second is slightly larger and goes back."""
ROUNDS = 20
LEAST_LEFT = 0.7
"""Part of the volume that smoothing must leave, or the faces stay as they are: scaled back to its volume, a thin shell
of which little is left would be far too large."""
CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))
"""Corners of a face along its two axes, in order around it."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A closed surface."""

    vertices: Floats
    """float64[n, 3], x, y, z in LPS mm."""
    triangles: Integers
    """int64[m, 3], numbers of vertices, counterclockwise seen from outside."""

    def volume_ml(self) -> float:
        """Return the enclosed volume, by the divergence theorem."""
        centered = self.vertices - self.vertices.mean(axis=0)
        a, b, c = (centered[self.triangles[:, corner]] for corner in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6000)

    def normals(self) -> Floats:
        """Return float64[n, 3]: the mean direction of the triangles at each vertex, of length 1, outward."""
        a, b, c = (self.vertices[self.triangles[:, corner]] for corner in range(3))
        faces = np.cross(b - a, c - a)
        sums = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(sums, self.triangles[:, corner], faces)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / np.where(lengths > 0, lengths, 1)


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """A part in blocks of voxels."""

    counts: npt.NDArray[np.int32]
    """int32[z, y, x], voxels of the part in each block."""
    steps: tuple[int, int, int]
    """z, y, x: voxels along a block."""
    corner: tuple[int, int, int]
    """z, y, x of the first voxel."""

    def reduced(self, steps: tuple[int, int, int]) -> "_Cells":
        """Join blocks, `steps` of them along each axis."""
        counts = self.counts
        for axis, step in enumerate(steps):
            if step > 1:
                counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], step), axis=axis, dtype=np.int32)
        z, y, x = (old * new for old, new in zip(self.steps, steps, strict=True))
        return replace(self, counts=counts, steps=(z, y, x))

    def solid(self) -> npt.NDArray[np.bool_]:
        """Return bool[z, y, x]: the fullest blocks, as many as have the part's volume together."""
        wanted = max(1, round(self.counts.sum() / np.prod(self.steps)))
        filled = np.sort(self.counts[self.counts > 0])[::-1]
        is_full: npt.NDArray[np.bool_] = self.counts >= filled[min(wanted, len(filled)) - 1]
        return is_full


def make_surface(parts: tuple[Lesion, ...], read: ReadMask, affine_lps: Floats, most_triangles: int) -> Surface:
    """Return the surface of the largest parts of a label: at most `MOST_PARTS`, and fewer with few triangles.

    Parameters
    ----------
    parts
        The label's 26-connected parts, the largest first.
    read
        Reads the label's voxels.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    most_triangles
        Triangles of all parts together, at least `LEAST_TRIANGLES`.
    """
    shown = parts[: max(1, min(MOST_PARTS, most_triangles // LEAST_TRIANGLES))]
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)[::-1]
    left = most_triangles
    surfaces = []
    for number, part in enumerate(reversed(shown)):  # what small parts do not need is left for the larger ones
        cells = _reduce_to(_isolate(_read_cells(part, read), part, affine_lps), spacing, left // (len(shown) - number))
        surface = _scale(_smooth_cells(cells, affine_lps), part)
        left -= len(surface.triangles)
        surfaces.append(surface)
    return _join(surfaces)


def _read_cells(part: Lesion, read: ReadMask) -> _Cells:
    """Read the box of a part, in blocks if it is large."""
    z0, y0, x0, z1, y1, x1 = part.bbox_zyx
    step = int(np.ceil(((z1 - z0) * (y1 - y0) * (x1 - x0) / MOST_CELLS) ** (1 / 3)))
    whole = _Cells(counts=np.zeros(0, dtype=np.int32), steps=(1, 1, 1), corner=(z0, y0, x0))
    slabs = []
    depth = -(-BATCH_SLICES // step) * step
    for z in range(z0, z1, depth):
        voxels = read(z, min(z + depth, z1))[:, y0:y1, x0:x1]
        slabs.append(replace(whole, counts=voxels.astype(np.int32)).reduced((step, step, step)).counts)
    return _Cells(counts=np.concatenate(slabs), steps=(step, step, step), corner=(z0, y0, x0))


def _isolate(cells: _Cells, part: Lesion, affine_lps: Floats) -> _Cells:
    """Remove the other parts in the box of a part.

    The part's component reaches all sides of the box, and has all its voxels: more, if parts meet in a block. Of
    several such components, it is the one of the nearest number of voxels, then of the nearest center.
    """
    numbers = cc3d.connected_components(np.pad(cells.counts > 0, 1), connectivity=26)[1:-1, 1:-1, 1:-1]
    sums = np.bincount(numbers.ravel(), weights=cells.counts.ravel())
    sides = [set(numbers.take(end, axis).ravel().tolist()) for axis in range(3) for end in (0, -1)]
    possible = [number for number in set.intersection(*sides) - {0} if sums[number] >= part.voxels]

    def difference(number: int) -> tuple[float, float]:
        at = np.argwhere(numbers == number)
        center = np.average(at, axis=0, weights=cells.counts[tuple(at.T)])
        voxel = ((center + 0.5) * cells.steps + cells.corner - 0.5)[::-1]
        lps = affine_lps[:3, :3] @ voxel + affine_lps[:3, 3]
        return float(sums[number] - part.voxels), float(np.linalg.norm(lps - part.centroid_lps_mm))

    own = min(possible, key=difference)
    return replace(cells, counts=cells.counts * (numbers == own))


def _reduce_to(cells: _Cells, spacing: Floats, most_triangles: int) -> _Cells:
    """Join blocks until the surface has few enough triangles; blocks become cubes rather than slabs."""
    sizes = spacing * cells.steps
    count, area = _measure_faces(cells.solid(), sizes)
    if 2 * count <= most_triangles:
        return cells
    size = max(np.sqrt(2 * area / most_triangles), float(sizes.min()))
    while True:
        z, y, x = (max(1, round(size / one)) for one in sizes)
        reduced = cells.reduced((z, y, x))
        if 2 * _measure_faces(reduced.solid(), sizes)[0] <= most_triangles:
            return reduced
        size *= 1.1


def _measure_faces(solid: npt.NDArray[np.bool_], sizes: Floats) -> tuple[int, float]:
    """Return the number of faces between inside and outside, and their area."""
    padded = np.pad(solid, 1)
    counts = [int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in range(3)]
    volume = float(np.prod(sizes))
    return sum(counts), sum(count * volume / size for count, size in zip(counts, sizes, strict=True))


def _smooth_cells(cells: _Cells, affine_lps: Floats) -> Surface:
    """Return the smoothed faces of blocks; those of single voxels at corners would collapse, and stay as they are."""
    points, quads = find_faces(cells.solid())
    voxels = (points * cells.steps + cells.corner - 0.5)[:, ::-1]
    vertices = voxels @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    if np.linalg.det(affine_lps[:3, :3]) < 0:
        quads = quads[:, ::-1]
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    faces = Surface(vertices=vertices, triangles=triangles)
    smoothed = replace(faces, vertices=smooth(vertices, quads))
    return smoothed if smoothed.volume_ml() > LEAST_LEFT * faces.volume_ml() else faces


def find_faces(solid: npt.NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Return the corners and the faces between inside and outside of bool[z, y, x].

    Returns
    -------
    points
        int64[n, 3], z, y, x: cell (0, 0, 0) has the corners (0, 0, 0) to (1, 1, 1).
    quads
        int64[m, 4], numbers of points, counterclockwise seen from outside in axes x, y, z of a right hand.
    """
    padded = np.pad(solid.astype(np.int8), 1)
    shape = tuple(count + 1 for count in solid.shape)
    faces = []
    for axis in range(3):
        step = np.diff(padded, axis=axis)  # 1: the inside begins, -1: it ends
        first, second = (axis + 1) % 3, (axis + 2) % 3
        for sign in (1, -1):
            at = np.argwhere(step == sign)
            at[:, [first, second]] -= 1  # the padding
            corners = np.repeat(at[:, None], 4, axis=1)
            for number, (along, across) in enumerate(CORNERS if sign > 0 else CORNERS[::-1]):
                corners[:, number, first] += along
                corners[:, number, second] += across
            faces.append(np.ravel_multi_index(tuple(np.moveaxis(corners, 2, 0)), shape))
    used, quads = np.unique(np.concatenate(faces), return_inverse=True)
    return np.stack(np.unravel_index(used, shape), axis=1), quads.reshape(-1, 4)


def smooth(vertices: Floats, quads: Integers) -> Floats:
    """Return float64[n, 3] with smoothed positions."""
    import scipy.sparse  # takes a tenth of the start of a page, which may never show a surface

    count = len(vertices)
    ends = np.concatenate([quads[:, [corner, (corner + 1) % 4]] for corner in range(4)])
    both = np.concatenate([ends, ends[:, ::-1]])
    ones: npt.NDArray[Any] = np.ones(len(both))
    near = scipy.sparse.csr_array((ones, (both[:, 0], both[:, 1])), shape=(count, count))
    near.data[:] = 1  # an edge counts once
    weights = 1 / near.sum(axis=1)[:, None]
    for _ in range(ROUNDS):
        for step in SMOOTHING:
            vertices = vertices + step * ((near @ vertices) * weights - vertices)
    return vertices


def _scale(surface: Surface, part: Lesion) -> Surface:
    """Scale a surface about its center to the volume of a part."""
    center = surface.vertices.mean(axis=0)
    factor = np.cbrt(part.volume_ml / surface.volume_ml())
    return replace(surface, vertices=(surface.vertices - center) * factor + center)


def _join(surfaces: list[Surface]) -> Surface:
    starts = np.cumsum([0, *(len(one.vertices) for one in surfaces[:-1])])
    return Surface(
        vertices=np.concatenate([one.vertices for one in surfaces]),
        triangles=np.concatenate([one.triangles + start for one, start in zip(surfaces, starts, strict=True)]),
    )
