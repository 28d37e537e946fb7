"""The interface between a file format and `slicemill.ct.scan.ScanReader`.

To add a format:

1. Write a package next to ``nifti/`` with a class that implements `ScanSource`.
2. Let `slicemill.ct.formats.open.open_source` choose it.
3. Add its suffixes to `slicemill.ct.formats.names`, by which scans are found.

`ScanReader` handles axis order, HU or label values, and slabs for all formats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid

Scaling: TypeAlias = "float | npt.NDArray[np.float64]"
"""A number for all planes, or float64[k], one for each plane."""


@dataclass(frozen=True, kw_only=True)
class RawPlanes:
    """Neighboring planes of a file, as stored."""

    k: int
    """Index of the first plane along the file's slowest axis."""
    voxels: npt.NDArray[Any]
    """any[k, j, i], stored numbers; valid until `planes` overwrites its buffer. The caller may change them."""
    slope: Scaling
    """HU or label value = stored number * slope + inter."""
    inter: Scaling


class ScanSource(Protocol):
    """An open scan or segmentation file, checked against its header. It is read once, from start to end.

    - The header has been checked when the object exists; no voxel has been read.
    - Errors are `ScanError`, or `ReadError` if the disk or network failed, and name the file.
    - Memory does not grow with the number of planes.
    """

    format: str
    """Name of the format, for people."""
    grid: Grid
    """The voxel grid in the file's axis order."""
    dtype: np.dtype[Any]
    """Type of the stored numbers."""
    scaling: tuple[Scaling, Scaling]
    """Slope and intercept of all planes."""
    warnings: tuple[str, ...]
    """Warnings about unusual fields."""
    private_bytes: int
    """Size of further header data, which may identify a person."""

    @property
    def bytes_read(self) -> int:
        """Return the number of bytes of the file that were read; after `finish`, its size."""

    @property
    def read_seconds(self) -> float:
        """Return the time spent reading the file, s, without decompression."""

    def planes(self, depth: int, buffers: int) -> Iterator[RawPlanes]:
        """Yield all planes in the file's order, `depth` at a time; each result is valid while `buffers` - 1 follow."""

    def finish(self) -> str:
        """Read the rest, verify checksums, and return the SHA-256 of the stored bytes (empty if not requested)."""

    def template_header(self, *, private: bool) -> bytes:
        """Return a NIfTI header of this grid, to write segmentations with; with private data only on request."""

    def close(self) -> None:
        """Close the file."""
