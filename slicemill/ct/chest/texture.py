"""Random textures in mm, drawn on a coarse grid and interpolated, so that each part of a scan can be drawn alone."""

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.shapes import Floats

EXTENT_MM = 400.0


class Texture:
    """A random function of mean 0 and standard deviation 1, with a correlation length of about two nodes."""

    def __init__(self, rng: np.random.Generator, node_mm: float) -> None:
        from scipy import ndimage

        count = int(EXTENT_MM / node_mm)
        nodes = ndimage.gaussian_filter(rng.standard_normal((count,) * 3, dtype=np.float32), 0.8)
        self._nodes = nodes / nodes.std()
        self._node_mm = node_mm

    def at(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return the values on a grid of positions float32[nx], [ny] and [nz], mm: float32[z, y, x]."""
        values = self._nodes
        for axis, ticks in enumerate((z, y, x)):
            values = _interpolate(values, axis, self._place(ticks))
        return np.asarray(values, dtype=np.float32)

    def _place(self, ticks: Floats) -> npt.NDArray[np.float32]:
        place = (ticks + EXTENT_MM / 2) / self._node_mm
        return np.asarray(np.clip(place, 0, len(self._nodes) - 1.001), dtype=np.float32)


def _interpolate(values: Floats, axis: int, place: npt.NDArray[np.float32]) -> Floats:
    """Interpolate along an axis at float32[n], in nodes."""
    low = place.astype(np.int64)
    shape = [1, 1, 1]
    shape[axis] = -1
    share = (place - low).reshape(shape)
    lower = np.take(values, low, axis=axis)
    return np.asarray(lower + share * (np.take(values, low + 1, axis=axis) - lower), dtype=np.float32)
