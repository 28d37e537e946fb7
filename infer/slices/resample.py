"""Resampling: slices to the pixel size that a network was trained at, and its outputs back to the scan's pixels.

Both grids have the same center. Pixel i of n, at spacing t, has the coordinate
``((i + 0.5) - n / 2) * t / s + N / 2 - 0.5`` among N pixels at spacing s. This is the convention of torch's
`affine_grid` and `grid_sample` with ``align_corners=False``. Beyond its edge a slice repeats its last pixel.

Labels are computed from interpolated probabilities: nearest labels cost 0.003 to 0.006 of Dice for a liver at two to
three times the spacing of the scan. Where the four network pixels around a pixel have one label, the pixel has that
label for any weights, since the largest probability stays the largest in every mean. So only pixels along borders are
computed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError

SAME_SPACING = 1e-3
"""Relative difference below which two spacings count as equal: a quarter of a pixel at the edge of 512."""
MAX_EXTENT = 8192
"""Largest number of pixels along an axis of a resampled slice; larger ones indicate a wrong spacing in the header."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Coordinates of one grid's pixels between the pixels of another grid, along one axis."""

    low: npt.NDArray[np.intp]
    """intp[n]: index of the pixel before."""
    high: npt.NDArray[np.intp]
    """intp[n]: index of the pixel after; the same as `low` at an edge."""
    weight: npt.NDArray[np.float32]
    """float32[n]: weight of the pixel after."""

    @property
    def nearest(self) -> npt.NDArray[np.intp]:
        """Return intp[n]: index of the nearest pixel."""
        return np.where(self.weight < 0.5, self.low, self.high)


def locate_pixels(count: int, spacing: float, of_count: int, of_spacing: float) -> Axis:
    """Locate `count` pixels of `spacing` among `of_count` pixels of `of_spacing` with the same center.

    >>> axis = locate_pixels(2, 2.0, 4, 1.0)
    >>> axis.low.tolist(), axis.high.tolist(), axis.weight.tolist()
    ([0, 2], [1, 3], [0.5, 0.5])
    """
    coordinate = ((np.arange(count) + 0.5) - count / 2) * (spacing / of_spacing) + of_count / 2 - 0.5
    coordinate = coordinate.clip(0, of_count - 1)
    low = np.floor(coordinate).astype(np.intp)
    return Axis(low, np.minimum(low + 1, of_count - 1), (coordinate - low).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Maps between a scan's slices and a network's pixel size, in both directions."""

    shape: tuple[int, int]
    """Rows and columns of a slice on the network's grid."""
    to_network: tuple[Axis, Axis]
    """The network's pixels among the scan's, along y and x."""
    to_scan: tuple[Axis, Axis]
    """The scan's pixels among the network's, along y and x."""

    def image_to_network(self, section: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """Resample a slice int16[y, x], HU, to the network's grid, rounded to integer HU."""
        return np.rint(interpolate(section, self.to_network)).astype(np.int16)

    def map_to_scan(self, map_: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Resample a map any[y, x] from the network's grid to the scan's."""
        return interpolate(map_, self.to_scan)

    def labels_to_scan(
        self, label: npt.NDArray[np.uint8], probability: npt.NDArray[np.float32] | None, table: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        """Return the labels of a slice on the scan's grid, uint8[y, x].

        Parameters
        ----------
        label
            uint8[y, x] on the network's grid: the value of the most probable class.
        probability
            float32[k, y, x] on the network's grid; without it each pixel takes the nearest label.
        table
            uint8[k]: label values of the classes.
        """
        y, x = self.to_scan
        out = label[y.nearest][:, x.nearest]
        if probability is not None:
            # along borders: the class with the largest bilinear mean of the four pixels around
            rows, columns = np.nonzero(self._find_borders(label))
            mixed = np.zeros((len(probability), len(rows)), dtype=np.float32)
            for y_index, y_weight in ((y.low, 1 - y.weight), (y.high, y.weight)):
                for x_index, x_weight in ((x.low, 1 - x.weight), (x.high, x.weight)):
                    corner = probability[:, y_index[rows], x_index[columns]]
                    mixed += corner * (y_weight[rows] * x_weight[columns])
            out[rows, columns] = table[mixed.argmax(axis=0)]
        return out

    def _find_borders(self, label: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Find the scan's pixels, bool[y, x], that are between network pixels of more than one label."""
        mixed = np.zeros(label.shape, dtype=bool)  # whether a pixel and its next along y, x or both differ
        along_y, along_x = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
        mixed[:-1] = along_y
        mixed[:, :-1] |= along_x
        mixed[:-1, :-1] |= along_y[:, 1:] | along_x[1:]
        borders: npt.NDArray[np.bool_] = mixed[self.to_scan[0].low][:, self.to_scan[1].low]
        return borders


def interpolate(section: npt.NDArray[np.generic], axes: tuple[Axis, Axis]) -> npt.NDArray[np.float32]:
    """Interpolate a slice any[y, x] bilinearly, first along y, then along x: float32[n, m]."""
    for axis in axes:  # each pass works on whole rows, which is fast, and transposes the slice
        low = section.take(axis.low, axis=0).astype(np.float32)
        rise = section.take(axis.high, axis=0)
        rise = np.subtract(rise, low, dtype=np.float32)
        rise *= axis.weight[:, None]
        low += rise
        section = np.ascontiguousarray(low.T)
    return np.asarray(section, dtype=np.float32)


def make_resampling(
    shape: tuple[int, int], spacing_mm: tuple[float, float], target_mm: float | None, size: tuple[int, int]
) -> Resampling | None:
    """Return the maps to and from a network's pixel size, or None if it takes the scan's pixels.

    Parameters
    ----------
    shape, spacing_mm
        Pixels of the scan's slices and their size in mm, along y and x.
    target_mm
        Pixel size that the network was trained at; None for a network without one.
    size
        Height and width of the network's input. A new extent is odd where `size` is, so that the centers agree.

    Raises
    ------
    ScanError
        The scan's pixels are so large that resampled slices would be too large.
    """
    if target_mm is None or all(abs(step / target_mm - 1) < SAME_SPACING for step in spacing_mm):
        return None
    extents = []
    for count, step, side in zip(shape, spacing_mm, size, strict=True):
        extent = max(1, round(min(count * step / target_mm, 2.0 * MAX_EXTENT)))
        extents.append(extent + (extent - side) % 2)
    if max(extents) > MAX_EXTENT:
        raise ScanError(
            f"slices of {shape[0]}x{shape[1]} pixels of {spacing_mm[0]:g}x{spacing_mm[1]:g} mm would have more than "
            f"{MAX_EXTENT:,} pixels a side at the model's {target_mm:g} mm; correct the header's spacing."
        )
    both = list(zip(shape, spacing_mm, extents, strict=True))
    to_network = [locate_pixels(extent, target_mm, count, step) for count, step, extent in both]
    to_scan = [locate_pixels(count, step, extent, target_mm) for count, step, extent in both]
    return Resampling(
        shape=(extents[0], extents[1]), to_network=(to_network[0], to_network[1]), to_scan=(to_scan[0], to_scan[1])
    )
