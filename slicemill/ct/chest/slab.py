"""A slab of a scan while it is drawn: thin slices in HU, and what draws tubes and small shapes into them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.shapes import Floats, Point, Reals, capsule_distance
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


def tube_cover(slab: Slab, tubes: Tubes, *, wider_mm: float = 0.0) -> Floats:
    """Return the share of each voxel that tubes cover, `wider_mm` added to their radii: float32[z, y, x].

    A tube thinner than a pixel covers less than all of it: its share is that of its cross-section.
    """
    total = np.zeros(slab.hu.shape, dtype=np.float32)
    width = slab.steps[2]
    for start, end, radius in _near(slab, tubes, wider_mm + width):
        wide = radius + wider_mm
        reach = wide + width
        box = slab.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if box is None:
            continue
        distance = capsule_distance(slab.offsets(box, start), end - start)
        share = np.clip(0.5 + (wide - distance) / width, 0, 1) * min(1.0, 2 * wide / width)
        np.maximum(total[box], share, out=total[box], casting="same_kind")
    return total


def _near(
    slab: Slab, tubes: Tubes, margin_mm: float
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]]:
    """Yield start, end and radius of the tubes that may reach the slab."""
    reach = tubes.radii + margin_mm
    low = np.minimum(tubes.starts[:, 2], tubes.ends[:, 2]) - reach
    high = np.maximum(tubes.starts[:, 2], tubes.ends[:, 2]) + reach
    for index in np.flatnonzero((high >= slab.z[0]) & (low <= slab.z[-1])):
        yield tubes.starts[index], tubes.ends[index], float(tubes.radii[index])
