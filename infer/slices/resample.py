"""Slices at the pixel size that a network was trained at, and what it says of them back on the scan's own pixels.

Both grids have one center. Pixel i of n, at spacing t, lies at pixel ``((i + 0.5) - n / 2) * t / s + N / 2 - 0.5`` of N at
spacing s: the convention of torch's `affine_grid` and `grid_sample` with ``align_corners=False``. Beyond its edge a slice
goes on as it ends.

Labels come back from interpolated probabilities: nearest labels cost 0.003 to 0.006 of Dice for a liver at two to three
times the spacing of the scan. Where the four network pixels around a pixel have one label, so has the pixel, whatever the
weights are: a largest probability stays the largest in any mean. Only the pixels along borders are computed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError

SAME_SPACING = 1e-3
"""Spacings that differ by less, as a share, are one: a quarter of a pixel at the edge of 512."""
MAX_EXTENT = 8192
"""Pixels along an axis that a slice may be brought to: more comes from a damaged spacing."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the pixels of one grid lie between those of another, along one axis."""

    low: npt.NDArray[np.intp]
    """intp[n]: the pixel before."""
    high: npt.NDArray[np.intp]
    """intp[n]: the pixel behind; the same at an edge."""
    weight: npt.NDArray[np.float32]
    """float32[n]: the share of the pixel behind."""

    @property
    def nearest(self) -> npt.NDArray[np.intp]:
        """Return intp[n]: the pixel that lies nearest."""
        return np.where(self.weight < 0.5, self.low, self.high)


def axis_between(count: int, spacing: float, of_count: int, of_spacing: float) -> Axis:
    """Return where `count` pixels of `spacing` lie among `of_count` pixels of `of_spacing` with the same center.

    >>> axis = axis_between(2, 2.0, 4, 1.0)
    >>> axis.low.tolist(), axis.high.tolist(), axis.weight.tolist()
    ([0, 2], [1, 3], [0.5, 0.5])
    """
    place = ((np.arange(count) + 0.5) - count / 2) * (spacing / of_spacing) + of_count / 2 - 0.5
    place = place.clip(0, of_count - 1)
    low = np.floor(place).astype(np.intp)
    return Axis(low, np.minimum(low + 1, of_count - 1), (place - low).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """The way from a scan's slices to a network's pixel size and back."""

    shape: tuple[int, int]
    """Rows and columns of a slice on the network's grid."""
    to_network: tuple[Axis, Axis]
    """Along y and x."""
    to_scan: tuple[Axis, Axis]

    def image(self, section: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """Return a slice of the scan, int16[y, x], HU, on the network's grid, rounded to whole HU."""
        return np.rint(interpolated(section, self.to_network)).astype(np.int16)

    def map_back(self, map_: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Return a map any[y, x] of the network's grid on the scan's."""
        return interpolated(map_, self.to_scan)

    def labels_back(
        self, label: npt.NDArray[np.uint8], probability: npt.NDArray[np.float32] | None, table: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        """Return the labels of a slice, uint8[y, x], on the scan's grid.

        Parameters
        ----------
        label
            uint8[y, x] on the network's grid: the value of the most probable class.
        probability
            float32[k, y, x] on the network's grid; without it each pixel takes the nearest label.
        table
            uint8[k]: the values of the classes.
        """
        y, x = self.to_scan
        out = label[y.nearest][:, x.nearest]
        if probability is not None:
            rows, columns = np.nonzero(self._on_border(label))
            mixed = np.zeros((len(probability), len(rows)), dtype=np.float32)
            for lines, down in ((y.low, 1 - y.weight), (y.high, y.weight)):
                for sides, across in ((x.low, 1 - x.weight), (x.high, x.weight)):
                    mixed += probability[:, lines[rows], sides[columns]] * (down[rows] * across[columns])
            out[rows, columns] = table[mixed.argmax(axis=0)]
        return out

    def _on_border(self, label: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return which pixels of the scan, bool[y, x], lie between network pixels of more than one label."""
        mixed = np.zeros(label.shape, dtype=bool)
        below, beside = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
        mixed[:-1] = below
        mixed[:, :-1] |= beside
        mixed[:-1, :-1] |= below[:, 1:] | beside[1:]
        found: npt.NDArray[np.bool_] = mixed[self.to_scan[0].low][:, self.to_scan[1].low]
        return found


def interpolated(section: npt.NDArray[np.generic], axes: tuple[Axis, Axis]) -> npt.NDArray[np.float32]:
    """Return a slice any[y, x] between its pixels, float32[n, m]: bilinear, first along y, then along x."""
    for axis in axes:  # each turn works along the rows, which is fast, and turns the slice on its side
        low = section.take(axis.low, axis=0).astype(np.float32)
        rise = section.take(axis.high, axis=0)
        rise = np.subtract(rise, low, dtype=np.float32)
        rise *= axis.weight[:, None]
        low += rise
        section = np.ascontiguousarray(low.T)
    return np.asarray(section, dtype=np.float32)


def resampling(
    shape: tuple[int, int], spacing_mm: tuple[float, float], target_mm: float | None, size: tuple[int, int]
) -> Resampling | None:
    """Return the way to a network's pixels; None where it takes the scan's own.

    Parameters
    ----------
    shape, spacing_mm
        Pixels of the scan's slices and their size in mm, along y and x.
    target_mm
        Size of the pixels that the network was trained at; None for one that takes any.
    size
        Height and width that go into the network. The new extents are odd where these are, so that the centers agree.

    Raises
    ------
    ScanError
        The scan's pixels are so large that its slices would become huge.
    """
    if target_mm is None or all(abs(step / target_mm - 1) < SAME_SPACING for step in spacing_mm):
        return None
    extents = []
    for count, step, side in zip(shape, spacing_mm, size, strict=True):
        extent = max(1, round(min(count * step / target_mm, 2.0 * MAX_EXTENT)))
        extents.append(extent + (extent - side) % 2)
    if max(extents) > MAX_EXTENT:
        raise ScanError(
            f"slices of {shape[0]}x{shape[1]} pixels of {spacing_mm[0]:g}x{spacing_mm[1]:g} mm would have more than {MAX_EXTENT:,} pixels a side "
            f"at the model's {target_mm:g} mm; correct the header's spacing."
        )
    both = list(zip(shape, spacing_mm, extents, strict=True))
    to_network = [axis_between(extent, target_mm, count, step) for count, step, extent in both]
    to_scan = [axis_between(count, step, extent, target_mm) for count, step, extent in both]
    return Resampling(
        shape=(extents[0], extents[1]), to_network=(to_network[0], to_network[1]), to_scan=(to_scan[0], to_scan[1])
    )
