"""Reads any scan or segmentation as slabs ``[z, y, x]`` in LPS+ order, in HU or label values.

1. A source of the file's format (`slicemill.ct.formats.source`) yields planes in the file's order, a few at a time,
   so that memory does not grow with the number of slices.
2. Stored numbers are converted to HU or label values, and checked.
3. Each batch of planes is viewed in the patient's axis order (`slicemill.ct.geometry.Grid.to_stored`). If the file's
   slowest axis is the patient's z, it is a slab of complete slices. In a sagittal or coronal file no slice is complete
   before the last byte; such a file goes through a temporary file (`slicemill.ct.transpose`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom.source import DicomSource
from slicemill.ct.formats.nifti.header import MAX_EXTENSION_BYTES
from slicemill.ct.formats.open import open_source
from slicemill.ct.formats.source import Scaling, ScanSource
from slicemill.ct.geometry import Grid, make_contiguous
from slicemill.ct.geometry_option import Uneven
from slicemill.ct.hu_checks import rounding_warnings
from slicemill.ct.transpose import AxisTranspose

BATCH_BYTES = 16 << 20
"""Bytes of planes that are transposed at a time: 32 planes of 512x512 int16, so that each write has 32 KB of a slice.
Smaller batches are as fast here (`slicemill bench constants`), but make a slow disk seek more."""
SLAB_BYTES = 2 << 20
"""Bytes of a slab at 2 bytes a voxel: 4 slices of 512x512, which are still in the processor's cache when they are
encoded (`slicemill bench constants`)."""
INT16 = np.iinfo(np.int16)
MOST_LABEL_ERROR = 1e-3
"""Largest distance of a label value from its integer: above the rounding of scaled integers, below a probability."""
SHOWN_VALUES = 5

Kind = Literal["image", "mask"]
Allocate = Callable[[tuple[int, ...], Any], npt.NDArray[Any]]
"""Allocates an array of a shape and type, as `numpy.empty` does."""
Int16s = npt.NDArray[np.int16]
Uint8s = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Neighboring slices of a scan."""

    z: int
    """Index of the first slice in the stored (LPS+) order."""
    voxels: npt.NDArray[Any]
    """int16[z, y, x], HU, or uint8[z, y, x], label values; valid until the next slab is requested."""


def slab_depth(shape: tuple[int, int, int]) -> int:
    """Return the number of slices of a slab, for a scan of `shape` [z, y, x].

    >>> slab_depth((200, 512, 512))
    4
    """
    return max(1, SLAB_BYTES // (2 * shape[1] * shape[2]))


class ScanReader:
    """An open scan or segmentation. Opening reads the header; then the voxels can be read once, then the hash.

    >>> with ScanReader(path, "image") as reader:          # doctest: +SKIP
    ...     volume = reader.read()                         # int16[z, y, x], HU
    """

    _source: ScanSource

    def __init__(
        self,
        path: Location,
        kind: Kind,
        *,
        hashed: bool = True,
        uneven: Uneven = "refuse",
        source: ScanSource | None = None,
    ) -> None:
        """Open the file; or take an open `source`, as a mask that needs the grid of its scan is one."""
        self.path = path
        self.kind = kind
        source = source or open_source(path, hashed=hashed, uneven=uneven)
        self._source = source
        self.grid = source.grid
        """The file's voxel grid, or the one set by `replace_grid`."""
        self.max_rounding_error = 0.0
        """Largest difference between a voxel's value and its rounded value; final after the last slab."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    @property
    def series(self) -> Series | None:
        """Return the DICOM series; None for other formats."""
        return self._source.series if isinstance(self._source, DicomSource) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return warnings about unusual fields of the file."""
        return self._source.warnings

    def value_warnings(self) -> list[str]:
        """Return a warning if values were rounded; final after the last slab."""
        if self.kind == "image":
            return rounding_warnings(self.max_rounding_error)
        error = self.max_rounding_error
        return [f"segmentation: label values were rounded to integers, by at most {error:.3g}"] if error else []

    @property
    def read_seconds(self) -> float:
        """Return the time spent reading the file, s, without decompression."""
        return self._source.read_seconds

    @property
    def bytes_read(self) -> int:
        """Return the size of the file, bytes, once it was finished."""
        return self._source.bytes_read

    def replace_grid(self, grid: Grid) -> None:
        """Replace the header's grid by another of the same shape, before any slab is read."""
        self.grid = grid

    def slabs(self, depth: int | None = None, *, buffers: int = 1, temp_folder: Path | None = None) -> Iterator[Slab]:
        """Yield every slice once, in slabs of `depth` slices (by default as many as fit in SLAB_BYTES).

        Parameters
        ----------
        buffers
            Number of slabs that stay valid: a slab is overwritten when that many more were requested.
        temp_folder
            Folder for the temporary file of a volume whose file runs along another axis than z.
        """
        if depth is None:
            depth = slab_depth(self.grid.stored_shape)
        if not self.grid.slowest_is_z:
            yield from self._transposed_slabs(depth, temp_folder)
            return
        nk = self.grid.shape[2]
        for k, planes in self._planes(depth, buffers):
            z = nk - k - len(planes) if self.grid.z_is_flipped else k
            yield Slab(z=z, voxels=make_contiguous(self.grid.to_stored(planes)))

    def _transposed_slabs(self, depth: int, temp_folder: Path | None) -> Iterator[Slab]:
        ni, nj, nk = self.grid.shape
        axis = self.grid.file_axis_of_z
        batch = max(1, BATCH_BYTES // (ni * nj * self._source.dtype.itemsize))
        with AxisTranspose(
            temp_folder, (nk, nj, ni), axis, np.int16 if self.kind == "image" else np.uint8
        ) as transposed:
            for k, planes in self._planes(batch, 1):
                transposed.write(k, planes)
            for start, slab in transposed.slabs(depth):
                # z back to its position in the file's axis order [k, j, i], in which this is the part with these slices
                part = self.grid.to_stored(np.moveaxis(slab, 0, axis))
                z = self.grid.stored_shape[0] - start - len(slab) if self.grid.z_is_flipped else start
                yield Slab(z=z, voxels=make_contiguous(part))

    def read(self, allocate: Allocate = np.empty) -> npt.NDArray[Any]:
        """Read the complete volume, int16[z, y, x], HU, or uint8[z, y, x], into an array from `allocate`."""
        volume = allocate(self.grid.stored_shape, np.int16 if self.kind == "image" else np.uint8)
        in_file_order = self.grid.to_file(volume)  # a view: voxels written to it go to `volume`
        for k, planes in self._planes(slab_depth(self.grid.shape[::-1]), 1):
            in_file_order[k : k + len(planes)] = planes
        return volume

    def _planes(self, depth: int, buffers: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield k and any[k, j, i], HU or label values in the file's order, `depth` planes at a time."""
        for planes in self._source.planes(depth, buffers):
            values: npt.NDArray[Any]
            if self.kind == "image":
                values, error = to_hu(planes.voxels, planes.slope, planes.inter, self.path, reuse=True)
            else:
                values, error = to_labels(planes.voxels, planes.slope, planes.inter, self.path)
            self.max_rounding_error = max(self.max_rounding_error, error)
            yield planes.k, values

    def finish(self) -> str:
        """Read the rest, which verifies a gzip checksum, and return the file's SHA-256 (empty if not `hashed`)."""
        return self._source.finish()

    def stored_header(self, *, keep_text: bool) -> bytes:
        """Return the header to store: complete if text is kept (without long extensions), else with blank text."""
        return self._source.template_header(private=keep_text)

    def dropped_header_warnings(self, *, keep_text: bool) -> list[str]:
        """Return a warning if the stored header lacks extensions that the file has."""
        count = self._source.private_bytes
        if not count or (keep_text and count <= MAX_EXTENSION_BYTES):
            return []
        why = (
            f"at most {MAX_EXTENSION_BYTES:,} are kept"
            if keep_text
            else "they may name a person; --keep-text keeps them"
        )
        return [f"{count:,} bytes of header extensions were left out: {why}"]


def to_hu(
    raw: npt.NDArray[Any], slope: Scaling, inter: Scaling, path: Location, *, reuse: bool = False
) -> tuple[Int16s, float]:
    """Convert stored numbers to HU, ``raw * slope + inter`` rounded to int16, and return the largest rounding error.

    `slope` and `inter` are numbers, or float64[k] with a number for each plane of `raw`: any[k, j, i]. With `reuse`,
    the memory of `raw` may become that of the HU: a fresh array of a slab costs more than its arithmetic.

    Raises
    ------
    ScanError
        A value is not finite or does not fit in int16.
    """
    if raw.dtype.kind in "iu":
        if not _is_scaled(slope, inter):
            if not np.can_cast(raw.dtype, np.int16):
                _check_range(raw.min(), raw.max(), path)
            return raw.astype(np.int16, copy=False), 0.0
        if _keeps_integers(raw, slope, inter):
            return _scale_integers(raw, slope, inter, path, reuse=reuse), 0.0
    values = _scale(raw, slope, inter)
    low, high = values.min(), values.max()
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise ScanError(
            f"HU must be finite numbers; a slab has {count:,} NaN or infinite voxels. Replace them by air (-1024).",
            where=path,
        )
    _check_range(low, high, path)
    rounded = np.rint(values)
    return rounded.astype(np.int16), float(np.abs(values - rounded).max())


def _is_scaled(slope: Scaling, inter: Scaling) -> bool:
    return bool(np.any(np.not_equal(slope, 1)) or np.any(np.not_equal(inter, 0)))


def _scale(raw: npt.NDArray[Any], slope: Scaling, inter: Scaling) -> npt.NDArray[Any]:
    """Return ``raw * slope + inter``; an overflow becomes infinite, which the caller refuses."""
    if not _is_scaled(slope, inter):
        return raw
    with np.errstate(all="ignore"):
        return np.asarray(raw.astype(np.float64) * _per_plane(slope) + _per_plane(inter))


def _per_plane(number: Scaling) -> Any:
    """Return a number, or one for each plane as float64[k, 1, 1]."""
    return number.reshape(-1, 1, 1) if isinstance(number, np.ndarray) else number


def _keeps_integers(raw: npt.NDArray[Any], slope: Scaling, inter: Scaling) -> bool:
    """Return whether integers of at most 16 bits stay integers when scaled: the usual scaling of CT scanners."""
    small = all(bool(np.all(np.abs(number) <= INT16.max)) for number in (slope, inter))
    return raw.dtype.itemsize <= 2 and small and bool(np.all(np.mod([*np.ravel(slope), *np.ravel(inter)], 1) == 0))


def _scale_integers(raw: npt.NDArray[Any], slope: Scaling, inter: Scaling, path: Location, *, reuse: bool) -> Int16s:
    """Return scaled integers. The extremes are checked, so that arithmetic modulo 2**16 is exact."""
    planes = (1, 2) if isinstance(slope, np.ndarray) or isinstance(inter, np.ndarray) else None
    ends = [raw.min(axis=planes).astype(np.float64), raw.max(axis=planes).astype(np.float64)]
    scaled = np.concatenate([np.ravel(end * slope + inter) for end in ends])
    _check_range(scaled.min(), scaled.max(), path)
    factor, shift = (np.asarray(_per_plane(number)).astype(np.int16) for number in (slope, inter))
    fits = raw.dtype.itemsize == 2 and raw.dtype.isnative
    values = raw.view(np.int16) if reuse and fits else raw.astype(np.int16)
    if np.any(factor != 1):
        np.multiply(values, factor, out=values)
    return np.add(values, shift, out=values)


def _check_range(low: float, high: float, path: Location) -> None:
    if math.floor(low) < INT16.min or math.ceil(high) > INT16.max:
        raise ScanError(
            f"HU must fit in {INT16.min}..{INT16.max}; they are {low:g}..{high:g}. "
            "Is this a CT? Rescale it to HU first.",
            where=path,
        )


def to_labels(raw: npt.NDArray[Any], slope: Scaling, inter: Scaling, path: Location) -> tuple[Uint8s, float]:
    """Convert stored numbers to label values, uint8, and return the largest rounding error.

    Raises
    ------
    LabelError
        A value is not an integer from 0 to 255, within MOST_LABEL_ERROR.
    """
    if raw.dtype == np.uint8 and not _is_scaled(slope, inter):
        return raw, 0.0
    values = _scale(raw, slope, inter)
    if values.dtype.kind in "iu":
        labels = values.astype(np.uint8)
        wrong = labels != values
    else:
        labels = np.rint(np.nan_to_num(values)).clip(0, 255).astype(np.uint8)
        errors = np.abs(labels - values)
        wrong = ~(errors <= MOST_LABEL_ERROR)  # also true for NaN
    if wrong.any():
        odd = np.unique(values[wrong])
        shown = ", ".join(str(value) for value in odd[:SHOWN_VALUES].tolist())
        raise LabelError(
            f"label values must be integers from 0 to 255 (within {MOST_LABEL_ERROR:g}); "
            f"found {shown}{' and others' if len(odd) > SHOWN_VALUES else ''}. "
            "Save the segmentation with integer voxels; a probability map must be thresholded first.",
            where=path,
        )
    return labels, 0.0 if values.dtype.kind in "iu" else float(errors.max())
