"""A slab of a scan while it is drawn: thin slices in HU, and what draws tubes and small shapes into them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.shapes import Floats, Point, Reals
from slicemill.ct.chest.trees import Tubes

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class Slab:
    """A slab of thin slices."""

    x: Floats
    """float32[nx]: positions of the columns, mm."""
    y: Floats
    z: Floats
    hu: Floats
    """float32[z, y, x]."""

    @property
    def steps(self) -> Point:
        """Return the spacing along z, y, x, mm."""
        return (
            float(self.z[1] - self.z[0]),
            float(self.y[1] - self.y[0]),
            float(self.x[1] - self.x[0]),
        )

    def box(self, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> Box | None:
        """Return the slices of the voxels between two corners x, y, z in mm; None if there are none."""
        slices = []
        for ticks, first, last in zip((self.z, self.y, self.x), low[::-1], high[::-1], strict=True):
            start, stop = int(np.searchsorted(ticks, first)), int(np.searchsorted(ticks, last, side="right"))
            if start >= stop:
                return None
            slices.append(slice(start, stop))
        z, y, x = slices
        return z, y, x

    def offsets(self, box: Box, center: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the positions x, y, z of a box's voxels relative to a point: float64[z, y, x, 3]."""
        z, y, x = np.meshgrid(self.z[box[0]], self.y[box[1]], self.x[box[2]], indexing="ij")
        return np.stack([x, y, z], axis=-1) - center

    def blend(self, weight: Reals, hu: float | Reals, box: Box | None = None) -> None:
        """Blend a tissue in: weight 0 keeps the present HU, 1 replaces them."""
        part = self.hu if box is None else self.hu[box]
        part += weight * (hu - part)


def tube_cover(slab: Slab, tubes: Tubes) -> Floats:
    """Return the share of each voxel that tubes cover: float32[z, y, x].

    A tube thinner than a pixel covers less than all of it: its share is that of its cross-section.
    """
    total = np.zeros(slab.hu.shape, dtype=np.float32)
    width = slab.steps[2]
    reach = (tubes.radii + width)[:, None]
    low = np.maximum(_indices(slab, np.minimum(tubes.starts, tubes.ends) - reach), 0)
    high = np.minimum(_indices(slab, np.maximum(tubes.starts, tubes.ends) + reach) + 1, slab.hu.shape)
    near = np.flatnonzero((high > low).all(axis=1))
    for index, first, last in zip(near, low[near].tolist(), high[near].tolist(), strict=True):
        box = tuple(slice(one, other) for one, other in zip(first, last, strict=True))
        radius = float(tubes.radii[index])
        distance = _tube_distance(slab, box, tubes.starts[index], tubes.ends[index] - tubes.starts[index])
        share = np.clip(0.5 + (radius - distance) / width, 0, 1) * np.float32(min(1.0, 2 * radius / width))
        np.maximum(total[box], share, out=total[box])
    return total


def _indices(slab: Slab, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the voxels z, y, x nearest to points x, y, z in mm, from -1, before the slab, to one behind it."""
    ticks = (slab.z, slab.y, slab.x)
    places = [(points[:, 2 - axis] - tick[0]) / slab.steps[axis] for axis, tick in enumerate(ticks)]
    inside = [np.clip(np.rint(place), -1, len(tick)) for place, tick in zip(places, ticks, strict=True)]
    return np.stack(inside, axis=-1).astype(np.int64)


def _tube_distance(
    slab: Slab, box: tuple[slice, ...], start: npt.NDArray[np.float64], along: npt.NDArray[np.float64]
) -> Floats:
    """Return the distance of a box's voxels from a line segment, float32[z, y, x], as `capsule_distance` does."""
    sides = (slab.z[box[0], None, None], slab.y[box[1], None], slab.x[box[2]])
    z, y, x = (side - np.float32(at) for side, at in zip(sides, start[::-1], strict=True))
    ahead = z * np.float32(along[2]) + y * np.float32(along[1]) + x * np.float32(along[0])
    length = np.float32(max(float(along @ along), 1e-9))
    share = np.clip(ahead / length, 0, 1)
    squared = z * z + y * y + x * x + share * (share * length - 2 * ahead)
    return np.asarray(np.sqrt(np.maximum(squared, 0)), dtype=np.float32)
