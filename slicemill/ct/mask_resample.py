"""Brings a segmentation to another grid by nearest neighbor, a slab at a time.

1. The segmentation is written to an unnamed temporary file in stored order, uint8[z, y, x], and mapped into memory. The
   pages of a slab are given back after it, so that memory does not grow with the number of slices.
2. A voxel of the new grid gets the value of the segmentation's voxel whose center is nearest; outside, background.
3. A labeled voxel of the segmentation has changed if the new grid's voxel nearest to its center has another value, or
   if it lies outside the new grid.
"""

import math
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError
from slicemill.common.files import Location
from slicemill.ct.formats.nifti.stream import view_bytes
from slicemill.ct.geometry import Floats, Grid, voxel_ml
from slicemill.ct.scan import Slab
from slicemill.ct.transpose import write_all

Uint8s = npt.NDArray[np.uint8]
NEGLIGIBLE = 1e-6
"""Voxels by which an axis may shift along another one over the whole grid and still count as parallel."""


class ReadSlabs(Protocol):
    """The method `slabs` of an open segmentation (`slicemill.ct.scan.ScanReader.slabs`)."""

    def __call__(self, *, temp_folder: Path | None = None) -> Iterator[Slab]:
        """Yield every slice once, uint8[z, y, x]."""


@dataclass(kw_only=True)
class ResampleCounts:
    """What resampling changed; complete after the last slab."""

    labeled: int = 0
    """Labeled voxels of the segmentation."""
    outside: int = 0
    """Labeled voxels outside the new grid."""
    changed: int = 0
    """Labeled voxels that are outside, or have another value at their center now."""
    labeled_after: int = 0
    """Labeled voxels of the new grid."""
    uncovered: int = 0
    """Voxels of the new grid outside the segmentation's, which are background."""


class NearestMask:
    """A segmentation on the grid of an image. It is read once."""

    def __init__(self, slabs: ReadSlabs, mask: Grid, image: Grid, path: Location) -> None:
        """Prepare to read the slabs of a segmentation on the grid `mask`; `path` names it in messages."""
        self._slabs, self._mask, self._image, self._path = slabs, mask, image, path
        self._shape = mask.stored_shape
        to_mask = np.asarray(np.linalg.solve(mask.affine_lps, image.affine_lps), dtype=np.float64)
        self._to_mask: Floats = to_mask
        """float64[4, 4], voxel (x, y, z, 1) of the image to voxel of the segmentation."""
        self._to_image: Floats = np.asarray(np.linalg.inv(to_mask), dtype=np.float64)
        self.counts = ResampleCounts()

    def slabs(self, depth: int, *, temp_folder: Path | None = None) -> Iterator[Slab]:
        """Yield every slice of the image's grid once, z upwards, uint8[z, y, x].

        Raises
        ------
        GeometryError
            The segmentation has labels, and none of them lies in the image.
        """
        with tempfile.TemporaryFile(dir=temp_folder) as file:
            self._write(file.fileno(), temp_folder)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last array that shows it
            source = np.frombuffer(mapped, np.uint8).reshape(self._shape)
            self._count(source, mapped)
            nz, ny, nx = self._image.stored_shape
            for z in range(0, nz, depth):
                rows = np.arange(z, min(z + depth, nz))
                voxels, covered = _take_nearest(source, self._to_mask, (np.arange(nx), np.arange(ny), rows))
                self.counts.uncovered += voxels.size - covered
                mapped.madvise(mmap.MADV_DONTNEED)
                self.counts.labeled_after += int(np.count_nonzero(voxels))
                yield Slab(z=z, voxels=voxels)

    def _write(self, descriptor: int, temp_folder: Path | None) -> None:
        """Write the segmentation to the temporary file."""
        slice_bytes = self._shape[1] * self._shape[2]
        for slab in self._slabs(temp_folder=temp_folder):
            write_all(descriptor, view_bytes(slab.voxels), slab.z * slice_bytes, temp_folder)

    def _count(self, source: Uint8s, mapped: mmap.mmap) -> None:
        """Count the labeled voxels that change."""
        counts = self.counts
        for z, section in enumerate(source):
            rows, columns = np.nonzero(section)
            points = np.stack([columns, rows, np.full(len(rows), z)])
            inside, there = _nearest(points, self._to_image, self._image.stored_shape)
            back_inside, back = _nearest(there, self._to_mask, self._shape)
            now = np.where(inside & back_inside, source[tuple(np.where(back_inside, back, 0)[::-1])], 0)
            counts.labeled += len(rows)
            counts.outside += int(np.count_nonzero(~inside))
            counts.changed += int(np.count_nonzero(now != section[rows, columns]))
            mapped.madvise(mmap.MADV_DONTNEED)
        if counts.labeled and counts.outside == counts.labeled:
            raise GeometryError(
                f"none of its {counts.labeled:,} labeled voxels lies in the image, so one of the two "
                "headers is wrong. Correct it.",
                where=self._path,
            )

    def warning(self) -> str:
        """Return what was done and what it changed, for the manifest; after the last slab."""
        counts = self.counts
        before = counts.labeled * voxel_ml(self._mask.affine)
        after = counts.labeled_after * voxel_ml(self._image.affine)
        share = counts.changed / counts.labeled if counts.labeled else 0.0
        uncovered = counts.uncovered / math.prod(self._image.shape)
        beyond = f"; it does not cover {uncovered:.2%} of the image, which is background" if uncovered else ""
        return (
            f"segmentation resampled to the image's grid by nearest neighbor: {share:.2%} of its labeled voxels "
            f"changed ({counts.changed:,} of {counts.labeled:,}, {counts.outside:,} of them outside the image); "
            f"labeled volume {before:.3g} ml before, {after:.3g} ml after{beyond}"
        )


def _nearest(
    points: npt.NDArray[np.int64], affine: Floats, shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return for int64[3, n], voxels x y z, the nearest voxels of another grid, and whether that grid has them.

    Parameters
    ----------
    affine
        float64[4, 4], voxel (x, y, z, 1) to voxel of the other grid.
    shape
        Shape [z, y, x] of the other grid.
    """
    nearest = np.floor(affine[:3, :3] @ points + affine[:3, 3:] + 0.5).astype(np.int64)
    inside = (nearest >= 0) & (nearest < np.array(shape[::-1])[:, None])
    return np.asarray(inside.all(axis=0)), nearest


def _take_nearest(source: Uint8s, affine: Floats, voxels: tuple[npt.NDArray[Any], ...]) -> tuple[Uint8s, int]:
    """Return uint8[z, y, x] at the `voxels` x, y, z of another grid, and how many of them `source` has.

    `affine` maps the voxels to those of `source`, a voxel outside of which is background.

    Terms of axes that do not matter are left out, so that parallel grids need one index per row instead of per voxel.
    """
    axes = (voxels[0][None, None, :], voxels[1][None, :, None], voxels[2][:, None, None])
    inside: Any = True
    index: list[npt.NDArray[np.int64]] = []
    for row, count in zip(affine[:3], source.shape[::-1], strict=True):
        position: Any = row[3]
        for step, along in zip(row[:3], axes, strict=True):
            # the last index bounds the shift over the whole grid along an axis
            if abs(step) * along.max() > NEGLIGIBLE:
                position = position + step * along
        nearest = np.floor(np.asarray(position) + 0.5).astype(np.int64)
        inside = inside & (nearest >= 0) & (nearest < count)
        index.append(np.clip(nearest, 0, count - 1))
    found = source[index[2], index[1], index[0]]
    shape = tuple(len(one) for one in voxels[::-1])
    result = np.ascontiguousarray(np.broadcast_to(np.where(inside, found, np.uint8(0)), shape))
    return result, int(np.count_nonzero(np.broadcast_to(inside, shape)))
