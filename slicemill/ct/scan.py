"""Any scan or segmentation file -> slabs of ``[z, y, x]`` in LPS+ order, in HU or label values.

A slab at a time, in the file's own order, so that memory does not grow with the number of slices. When the file's
slowest axis is not the patient's z (a sagittal or coronal volume), no slice is complete before the last byte: such a
file goes through a temporary file (`slicemill.ct.transpose`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.nifti.header import MAX_EXTENSION_BYTES, NiftiHeader, blank_text, read_extensions, read_header
from slicemill.ct.formats.nifti.stream import bytes_of, damage_named, open_voxels, read_exactly, read_to_end, skip
from slicemill.ct.geometry import Grid, contiguous
from slicemill.ct.transpose import Spill

BATCH_BYTES = 16 << 20
"""Voxels turned at a time: 32 planes of 512x512 int16, so that a part of a slice is a write of 32 KB;
fewer do as well here (`slicemill bench constants`), and ask more of a slow disk."""
SLAB_BYTES = 2 << 20
"""Voxel bytes held at a time, at 2 a voxel: 4 slices of 512x512, which the processor's cache still holds when they are
encoded (`slicemill bench constants`)."""
INT16 = np.iinfo(np.int16)

Kind = Literal["image", "mask"]
Room = Callable[[tuple[int, ...], Any], npt.NDArray[Any]]
"""Makes an array of a shape and type, as `numpy.empty` does."""
Int16s = npt.NDArray[np.int16]
Uint8s = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Neighbouring slices of a scan."""

    z: int
    """Index of the first slice in the stored (LPS+) order."""
    voxels: npt.NDArray[Any]
    """int16[z, y, x], HU, or uint8[z, y, x], label values; valid until the next slab is asked for."""


def slab_depth(shape: tuple[int, int, int]) -> int:
    """Return how many slices of a scan of `shape` [z, y, x] are held at a time.

    >>> slab_depth((200, 512, 512))
    4
    """
    return max(1, SLAB_BYTES // (2 * shape[1] * shape[2]))


class ScanReader:
    """An open scan or segmentation: its grid at once, its slabs one after the other, its hash at the end.

    >>> with ScanReader(path, "image") as reader:          # doctest: +SKIP
    ...     volume = reader.read()                         # int16[z, y, x], HU
    """

    def __init__(self, path: Location, kind: Kind, *, hashed: bool = True) -> None:
        self.path = path
        self.kind = kind
        self.header: NiftiHeader = read_header(path)
        self.max_rounding_error = 0.0
        """Largest difference between a voxel's value and what it was rounded to, HU; known when all slabs were read."""
        self._stream, self._hashing = open_voxels(path, hashed=hashed)

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

    def slabs(self, depth: int | None = None, *, buffers: int = 1, spill: Path | None = None) -> Iterator[Slab]:
        """Yield every slice once, in slabs of `depth` slices (by default as many as fit in SLAB_BYTES).

        Parameters
        ----------
        buffers
            How many slabs stay valid: a slab is overwritten when that many more were asked for.
        spill
            Folder for the temporary file that a volume goes through whose file runs along another axis than z.
        """
        if depth is None:
            depth = slab_depth(self.grid.stored_shape)
        if not self.grid.slowest_is_z:
            yield from self._turned(depth, spill)
            return
        nk = self.grid.shape[2]
        for k, planes in self._planes(depth, buffers):
            z = nk - k - len(planes) if self.grid.z_is_flipped else k
            yield Slab(z=z, voxels=contiguous(self.grid.to_stored(planes)))

    def _turned(self, depth: int, spill: Path | None) -> Iterator[Slab]:
        ni, nj, nk = self.grid.shape
        axis = self.grid.file_axis_of_z
        batch = max(1, BATCH_BYTES // (ni * nj * self.header.dtype.itemsize))
        with Spill(spill, (nk, nj, ni), axis, np.int16 if self.kind == "image" else np.uint8) as turned:
            for k, planes in self._planes(batch, 1):
                turned.put(k, planes)
            for start, slab in turned.slabs(depth):
                # back to the file's axis order [k, j, i], of which this is the part with these z
                part = self.grid.to_stored(np.moveaxis(slab, 0, axis))
                z = self.grid.stored_shape[0] - start - len(slab) if self.grid.z_is_flipped else start
                yield Slab(z=z, voxels=contiguous(part))

    def read(self, room: Room = np.empty) -> npt.NDArray[Any]:
        """Return the whole volume: int16[z, y, x], HU, or uint8[z, y, x], label values; in an array that `room` makes."""
        volume = room(self.grid.stored_shape, np.int16 if self.kind == "image" else np.uint8)
        in_file_order = self.grid.to_file(volume)  # a view: what is put in there lies in the right place
        for k, planes in self._planes(slab_depth(self.grid.shape[::-1]), 1):
            in_file_order[k : k + len(planes)] = planes
        return volume

    def _planes(self, depth: int, buffers: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield k and any[k, j, i], HU or label values in the file's own order, `depth` planes at a time."""
        skip(self._stream, self.header.data_offset, self.path)
        ni, nj, nk = self.grid.shape
        ring = [np.empty((min(depth, nk), nj, ni), dtype=self.header.dtype) for _ in range(buffers)]
        for turn, k in enumerate(range(0, nk, depth)):
            raw = ring[turn % buffers][: nk - k]
            read_exactly(self._stream, bytes_of(raw), self.path)
            yield k, self._convert(raw)

    def finish(self) -> str:
        """Read what is left, which checks a gzip file's own checksum, and return the SHA-256 of the file's bytes where it was `hashed`."""
        read_to_end(self._stream, self.path)
        with damage_named(self.path):
            return self._hashing.drain()

    @property
    def read_seconds(self) -> float:
        """Return how long the reading of the file took, without decompression."""
        return self._hashing.seconds

    @property
    def bytes_read(self) -> int:
        """Return the file's size, once it was finished."""
        return self._hashing.bytes_read

    def stored_header(self, *, keep_text: bool) -> bytes:
        """Return the header's bytes: with its extensions when text is to be kept, else with free text blanked."""
        if not keep_text:
            return blank_text(self.header.raw)
        fits = self.header.extension_bytes <= MAX_EXTENSION_BYTES
        return self.header.raw + (read_extensions(self.path, self.header) if fits else b"")

    def left_out(self, *, keep_text: bool) -> list[str]:
        """Return a warning when the stored header lacks extensions that the file has."""
        count = self.header.extension_bytes
        if not count or (keep_text and count <= MAX_EXTENSION_BYTES):
            return []
        why = (
            f"at most {MAX_EXTENSION_BYTES:,} are kept"
            if keep_text
            else "they may name a person; --keep-text keeps them"
        )
        return [f"{count:,} bytes of header extensions were left out: {why}"]

    def _convert(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.kind == "mask":
            return to_labels(raw, self.header.slope, self.header.inter, self.path)
        image, error = to_hu(raw, self.header.slope, self.header.inter, self.path)
        self.max_rounding_error = max(self.max_rounding_error, error)
        return image


def to_hu(raw: npt.NDArray[Any], slope: float, inter: float, path: Location) -> tuple[Int16s, float]:
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
    with np.errstate(all="ignore"):  # what overflows is infinite, and said to be below
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


def _check_range(low: float, high: float, path: Location) -> None:
    if math.floor(low) < INT16.min or math.ceil(high) > INT16.max:
        raise ScanError(
            f"{path}: HU must fit in {INT16.min}..{INT16.max}; found {low:g}..{high:g}. Is this a CT? Rescale it to HU first."
        )


def to_labels(raw: npt.NDArray[Any], slope: float, inter: float, path: Location) -> Uint8s:
    """Turn stored numbers into label values.

    Raises
    ------
    LabelError
        A value is no integer from 0 to 255.
    """
    if slope == 1 and inter == 0 and raw.dtype == np.uint8:
        return raw
    with np.errstate(all="ignore"):  # what overflows is no label, and refused below
        values = raw.astype(np.float64) * slope + inter if slope != 1 or inter != 0 else raw
    labels = (
        values.astype(np.uint8) if values.dtype.kind in "iu" else np.nan_to_num(values).clip(0, 255).astype(np.uint8)
    )
    if not np.array_equal(labels, values):
        odd = values[values != labels].flat[0]
        raise LabelError(f"{path}: label values must be integers from 0 to 255; found {odd:g}.")
    return labels
