"""Any scan or segmentation file -> slabs of ``[z, y, x]`` in LPS+ order, in HU or label values.

A slab at a time, in the file's own order, so that memory does not grow with the number of slices. When the file's
slowest axis is not the patient's z (a sagittal or coronal volume), no slice is complete before the last byte: such a
file is read whole, once, at its own voxel size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from store.errors import LabelError, ScanError
from store.geometry import Grid
from store.nifti import NiftiHeader, blank_text, bytes_of, open_voxels, read_exactly, read_header, read_to_end, skip

SLAB_BYTES = 8 << 20
"""Voxel bytes held at a time: 16 int16 slices of 512x512, the slab of the prototype (STORAGE section 4)."""
INT16 = np.iinfo(np.int16)

Kind = Literal["image", "mask"]
Int16s = npt.NDArray[np.int16]
Uint8s = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Neighbouring slices of a scan."""

    z: int
    """Index of the first slice in the stored (LPS+) order."""
    voxels: npt.NDArray[Any]
    """int16[z, y, x], HU, or uint8[z, y, x], label values; valid until the next slab is asked for."""


class ScanReader:
    """An open scan or segmentation: its grid at once, its slabs one after the other, its hash at the end.

    >>> with ScanReader(path, "image") as reader:          # doctest: +SKIP
    ...     volume = reader.read()                         # int16[z, y, x], HU
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path = path
        self.kind = kind
        self.header: NiftiHeader = read_header(path)
        self.max_rounding_error = 0.0
        """Largest difference between a voxel's value and what it was rounded to, HU; known when all slabs were read."""
        self._stream, self._hashing = open_voxels(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def grid(self) -> Grid:
        """Return the file's voxel grid."""
        return self.header.grid

    def lie_on(self, grid: Grid) -> None:
        """Take another grid of the same shape in place of the header's own, before any slab is read."""
        self.header = replace(self.header, grid=grid)

    def slabs(self, depth: int | None = None) -> Iterator[Slab]:
        """Yield every slice once, in slabs of `depth` slices (by default as many as fit in SLAB_BYTES)."""
        skip(self._stream, self.header.data_offset, self.path)
        ni, nj, nk = self.grid.shape
        if depth is None:
            depth = max(1, SLAB_BYTES // (ni * nj * self.header.dtype.itemsize))
        if not self.grid.slowest_is_z:
            yield from self._slabs_of_whole(depth)
            return
        buffer = np.empty((min(depth, nk), nj, ni), dtype=self.header.dtype)
        for start in range(0, nk, depth):
            raw = buffer[: min(depth, nk - start)]
            read_exactly(self._stream, bytes_of(raw), self.path)
            z = nk - start - len(raw) if self.grid.z_is_flipped else start
            yield Slab(z=z, voxels=np.ascontiguousarray(self.grid.to_stored(self._convert(raw))))

    def _slabs_of_whole(self, depth: int) -> Iterator[Slab]:
        ni, nj, nk = self.grid.shape
        whole = np.empty((nk, nj, ni), dtype=np.int16 if self.kind == "image" else np.uint8)
        row = np.empty((1, nj, ni), dtype=self.header.dtype)
        for k in range(nk):
            read_exactly(self._stream, bytes_of(row), self.path)
            whole[k] = self._convert(row)[0]
        stored = self.grid.to_stored(whole)
        for z in range(0, len(stored), depth):
            yield Slab(z=z, voxels=np.ascontiguousarray(stored[z : z + depth]))

    def read(self) -> npt.NDArray[Any]:
        """Return the whole volume: int16[z, y, x], HU, or uint8[z, y, x], label values."""
        volume = np.empty(self.grid.stored_shape, dtype=np.int16 if self.kind == "image" else np.uint8)
        for slab in self.slabs():
            volume[slab.z : slab.z + len(slab.voxels)] = slab.voxels
        return volume

    def finish(self) -> str:
        """Read what is left, which checks a gzip file's own checksum, and return the SHA-256 of the file's bytes."""
        read_to_end(self._stream, self.path)
        return self._hashing.drain()

    @property
    def bytes_read(self) -> int:
        """Return the file's size, once it was finished."""
        return self._hashing.bytes_read

    def stored_header(self, *, keep_text: bool) -> bytes:
        """Return the header's bytes, with free text blanked unless it is to be kept."""
        return self.header.raw if keep_text else blank_text(self.header.raw)

    def _convert(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.kind == "mask":
            return to_labels(raw, self.header.slope, self.header.inter, self.path)
        image, error = to_hu(raw, self.header.slope, self.header.inter, self.path)
        self.max_rounding_error = max(self.max_rounding_error, error)
        return image


def to_hu(raw: npt.NDArray[Any], slope: float, inter: float, path: Path) -> tuple[Int16s, float]:
    """Turn stored numbers into HU: ``raw * slope + inter``, rounded to int16; return it and the largest rounding error.

    Raises
    ------
    ScanError
        A value is not finite or does not fit in int16.
    """
    scaled = slope != 1 or inter != 0
    if not scaled and raw.dtype.kind in "iu":
        if not np.can_cast(raw.dtype, np.int16):
            _check_range(raw.min(), raw.max(), path)
        return raw.astype(np.int16, copy=False), 0.0
    values = raw.astype(np.float64) * slope + inter if scaled else raw
    low, high = values.min(), values.max()
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise ScanError(
            f"{path}: HU must be finite numbers; a slab holds {count:,} NaN or infinite voxels. Replace them by air (-1024)."
        )
    _check_range(low, high, path)
    rounded = np.rint(values)
    return rounded.astype(np.int16), float(np.abs(values - rounded).max())


def _check_range(low: float, high: float, path: Path) -> None:
    if math.floor(low) < INT16.min or math.ceil(high) > INT16.max:
        raise ScanError(
            f"{path}: HU must fit in {INT16.min}..{INT16.max}; found {low:g}..{high:g}. Is this a CT? Rescale it to HU first."
        )


def to_labels(raw: npt.NDArray[Any], slope: float, inter: float, path: Path) -> Uint8s:
    """Turn stored numbers into label values.

    Raises
    ------
    LabelError
        A value is no integer from 0 to 255.
    """
    if slope == 1 and inter == 0 and raw.dtype == np.uint8:
        return raw
    values = raw.astype(np.float64) * slope + inter if slope != 1 or inter != 0 else raw
    labels = (
        values.astype(np.uint8) if values.dtype.kind in "iu" else np.nan_to_num(values).clip(0, 255).astype(np.uint8)
    )
    if not np.array_equal(labels, values):
        odd = values[values != labels].flat[0]
        raise LabelError(f"{path}: label values must be integers from 0 to 255; found {odd:g}.")
    return labels
