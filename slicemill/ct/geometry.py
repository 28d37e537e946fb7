"""Voxel grids: positions of voxels in mm, and axis orders.

Only this module transposes and flips between a file's axis order and the stored order.

A NIfTI file stores voxels with its first axis fastest, in any of 48 axis orders. Stores, networks and pictures use
``[z, y, x]`` in LPS+ order (z to superior, y to posterior, x to the patient's left).

1. `Grid` holds a file's shape and affine (voxel i j k 1 to RAS mm, as in the NIfTI header).
2. `Grid.to_stored` views the file's array ``[k, j, i]`` (its bytes, read in C order) as ``[z, y, x]``.
3. `Grid.to_file` is its inverse, so that a segmentation returns to the voxels of its scan.

An oblique axis gets the name of the nearest patient axis (nibabel's `io_orientation`); nothing is resampled.

Two files may hold the same voxels in different axis orders. `Grid.turned_to` describes one file's axes by the positions
of the other, so that `to_stored` of both gives arrays of the same voxels (`slicemill.ct.same_grid`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import inv_ornt_aff, io_orientation

from slicemill.common.errors import GeometryError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_GRID_MM = 0.1
"""Largest distance of corners of equal grids: above rounding in headers and text exports, below a real shift."""

SMALLEST_VOXEL_MM3 = 1e-9
MAX_MM = 1e6
"""Largest number in an affine: one kilometer. A larger number means a damaged header, and its square could overflow."""

Floats = npt.NDArray[np.float64]
G = TypeVar("G", bound=np.generic)
WORD = 8
"""Bytes that are reversed at a time."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The voxel grid of a file: number and positions of voxels."""

    shape: tuple[int, int, int]
    """Number of voxels along the file's axes i, j, k."""
    affine: Floats
    """float64[4, 4], voxel (i, j, k, 1) to mm, RAS+ as in the NIfTI header."""
    axes: tuple[tuple[int, int], ...] | None = None
    """For each file axis the LPS axis (0 x, 1 y, 2 z) and direction, +1 or -1. None: the nearest axes of the affine."""
    oriented: bool = True
    """Whether the header states where the axes point; a NIfTI header without sform and qform does not."""

    def __post_init__(self) -> None:
        """Check that there are voxels and that the affine is plausible and invertible."""
        if min(self.shape) < 1:
            raise GeometryError(f"a scan must have voxels; its shape is {self.shape}.")
        linear = self.affine[:3, :3]
        if not np.isfinite(self.affine).all() or np.abs(self.affine).max() > MAX_MM:
            raise GeometryError(
                f"the affine must have numbers within {MAX_MM:,.0f} mm; it is {self.affine[:3].tolist()}. "
                "Correct the header's sform or qform."
            )
        with np.errstate(all="ignore"):  # the determinant of denormal numbers divides by zero internally
            volume = abs(np.linalg.det(linear))
        if not volume >= SMALLEST_VOXEL_MM3:
            raise GeometryError(
                f"the affine must be invertible; its columns are {linear.T.round(4).tolist()}. "
                "Correct the header's spacing."
            )
        if not np.isfinite(self._axes).all():
            raise GeometryError(
                f"no axis order fits the affine {linear.tolist()}; its axes nearly coincide. "
                "Correct the header's sform."
            )

    @cached_property
    def _axes(self) -> Floats:
        """Return float64[3, 2]: for each file axis the LPS axis (0 x, 1 y, 2 z) and direction, +1 or -1; else NaN."""
        if self.axes is not None:
            return np.array(self.axes, dtype=np.float64)
        return np.asarray(io_orientation(RAS_TO_LPS @ self.affine), dtype=np.float64)

    @cached_property
    def _orientation(self) -> npt.NDArray[np.int64]:
        """Return `_axes` as int64[3, 2]."""
        return self._axes.astype(np.int64)

    @property
    def axcodes(self) -> str:
        """Return the file's axis codes, like ``LPS`` or ``RAS``: the direction of each of i, j, k."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @cached_property
    def stored_shape(self) -> tuple[int, int, int]:
        """Return the shape [z, y, x] of the stored array."""
        by_axis = {int(axis): count for (axis, _), count in zip(self._orientation, self.shape, strict=True)}
        return by_axis[2], by_axis[1], by_axis[0]

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the spacing in mm of the stored array, in array order z, y, x."""
        lengths = np.sqrt((self.affine_lps[:3, :3] ** 2).sum(axis=0))
        return float(lengths[2]), float(lengths[1]), float(lengths[0])

    @cached_property
    def affine_lps(self) -> Floats:
        """Return float64[4, 4], voxel (x, y, z, 1) of the stored array to LPS mm."""
        inverse = inv_ornt_aff(self._orientation, self.shape)
        return np.asarray(RAS_TO_LPS @ self.affine @ inverse, dtype=np.float64) + 0.0

    @cached_property
    def file_axis_of_z(self) -> int:
        """Return the axis of the file's array [k, j, i] that is the patient's z: 0, 1 or 2."""
        return 2 - int(np.flatnonzero(self._orientation[:, 0] == 2)[0])

    @property
    def slowest_is_z(self) -> bool:
        """Return whether the file's slowest axis k is the patient's z, so that slices can be streamed."""
        return self.file_axis_of_z == 0

    @property
    def z_is_flipped(self) -> bool:
        """Return whether the file runs from superior to inferior along its z axis."""
        return bool(self._orientation[2 - self.file_axis_of_z, 1] < 0)

    def to_stored(self, voxels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View `voxels`: any[k, j, i], the file's bytes in C order, as any[z, y, x] in LPS+ order."""
        flipped = voxels[tuple(slice(None, None, int(sign)) for sign in self._orientation[::-1, 1])]
        axis_of = {int(axis): 2 - index for index, axis in enumerate(self._orientation[:, 0])}
        return flipped.transpose(axis_of[2], axis_of[1], axis_of[0])

    def to_file(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View `stored`: any[z, y, x] in LPS+ order, as any[k, j, i] in the file's order."""
        transposed = stored.transpose([2 - int(axis) for axis in self._orientation[::-1, 0]])
        return transposed[tuple(slice(None, None, int(sign)) for sign in self._orientation[::-1, 1])]

    def turned_to(self, other: "Grid") -> "Grid | None":
        """Return this file's axes with the positions of the `other` file's voxels, or None if the shapes do not fit.

        Each axis is matched to the nearest one of the other file, by direction. `to_stored` of the result gives the
        axes of `other`'s. `distance_mm` to the result shows whether the voxels are the same.
        """
        between = np.linalg.solve(other.affine, self.affine)[:3, :3]
        rows = np.abs(between / np.linalg.norm(between, axis=0)).argmax(axis=0)
        if sorted(rows.tolist()) != [0, 1, 2] or any(
            other.shape[row] != count for row, count in zip(rows, self.shape, strict=True)
        ):
            return None
        signs = np.sign(between[rows, range(3)]).astype(int)
        turn = np.eye(4)
        turn[:3, :3] = 0
        turn[rows, range(3)] = signs
        turn[rows, 3] = np.where(signs < 0, np.array(self.shape) - 1, 0)
        axes = tuple((axis, sign * own) for (axis, own), sign in zip(other.axes_of(rows), signs.tolist(), strict=True))
        return Grid(shape=self.shape, affine=other.affine @ turn, axes=axes, oriented=other.oriented)

    def axes_of(self, file_axes: npt.ArrayLike = (0, 1, 2)) -> tuple[tuple[int, int], ...]:
        """Return the LPS axis (0 x, 1 y, 2 z) and the direction, +1 or -1, of file axes."""
        return tuple((int(axis), int(sign)) for axis, sign in self._orientation[np.asarray(file_axes)])

    def distance_mm(self, other: "Grid") -> float:
        """Return the largest distance in mm between the same corner voxels of two grids of one shape."""
        corners = np.array(np.meshgrid(*[(0, count - 1) for count in self.shape], indexing="ij")).reshape(3, -1)
        voxels = np.vstack([corners, np.ones(corners.shape[1])])
        return float(np.linalg.norm(((self.affine - other.affine) @ voxels)[:3], axis=0).max())


def make_contiguous(voxels: npt.NDArray[G]) -> npt.NDArray[G]:
    """Return an array in C order, copied if it is in another order.

    Rows of single bytes in reverse order are reversed eight bytes at a time; numpy copies them byte by byte.
    """
    if voxels.dtype.itemsize > 1 or voxels.ndim < 2 or voxels.strides[-1] != -1 or voxels.shape[-1] % WORD:
        return np.ascontiguousarray(voxels)
    # undo the reversal, then reverse 8-byte words, then the bytes within each word
    rows = np.ascontiguousarray(voxels[..., ::-1]).view(np.uint64)
    return rows[..., ::-1].copy().byteswap(inplace=True).view(voxels.dtype)


def voxel_ml(affine: Floats) -> float:
    """Return the volume of a voxel in ml, from float64[4, 4], voxel to mm.

    >>> round(voxel_ml(np.diag([10.0, 10.0, 20.0, 1.0])), 9)
    2.0
    """
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def voxel_to_mm(affine: Floats, point_zyx: npt.ArrayLike) -> tuple[float, float, float]:
    """Return the position x, y, z in LPS mm of a voxel position in array order z, y, x.

    >>> voxel_to_mm(np.diag([2.0, 2.0, 5.0, 1.0]), (1, 2, 3))
    (6.0, 4.0, 5.0)
    """
    z, y, x = np.asarray(point_zyx, dtype=np.float64)
    x_mm, y_mm, z_mm = (affine @ np.array([x, y, z, 1.0]))[:3].tolist()
    return x_mm, y_mm, z_mm
