"""Scans that are a text header and bare voxels, in the header's file or in files beside it: MetaImage and NRRD.

The stored bytes of a scan are one stream, which is hashed: the header's file, then the files of voxels.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ReadError, ScanError
from slicemill.common.files import HashingStream, Location, open_stream
from slicemill.ct.formats.inflate import Inflate
from slicemill.ct.formats.nifti.header import MAX_DEFLATE_RATIO
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.nifti.stream import Gunzip, read_exactly, report_damage, view_bytes
from slicemill.ct.formats.source import RawPlanes, Scaling
from slicemill.ct.geometry import Grid

Encoding = Literal["raw", "gzip", "zlib"]
SKIP_STEP = 1 << 20
FROM_END = -1
"""`VoxelFiles.skip` if the voxels are the last bytes of each file."""


@dataclass(frozen=True, kw_only=True)
class VoxelFiles:
    """Where the voxels are."""

    files: tuple[Location, ...]
    """The files with voxels in order, each with the same number of them; the header's own file if they follow it."""
    header: bytes
    """The bytes of the header's file if the voxels are in other files, else empty."""
    encoding: Encoding = "raw"
    skip: int = 0
    """Stored bytes of each file before its voxels, or FROM_END."""
    skip_inside: int = 0
    """Bytes before the voxels once they are decompressed."""


@dataclass(frozen=True, kw_only=True)
class VolumeHeader:
    """A header that was checked against its files."""

    format: str
    """Name of the format, for people."""
    grid: Grid
    dtype: np.dtype[Any]
    voxels: VoxelFiles
    warnings: tuple[str, ...]
    layers: tuple[tuple[int, ...], ...] = ()
    """If each voxel has a number in several layers (the file's fastest axis): the label values of each layer."""

    @property
    def voxel_bytes(self) -> int:
        """Return the bytes of a voxel in all its layers."""
        return self.dtype.itemsize * max(1, len(self.layers))

    @property
    def data_bytes(self) -> int:
        """Return the bytes of all voxels."""
        return math.prod(self.grid.shape) * self.voxel_bytes


class VolumeSource:
    """An open MetaImage or NRRD scan."""

    def __init__(self, path: Location, header: VolumeHeader, *, hashed: bool) -> None:
        self._path = path
        self._header = header
        self.format = header.format
        self.grid = header.grid
        self.dtype = header.dtype
        self.scaling: tuple[Scaling, Scaling] = (1.0, 0.0)
        self.private_bytes = 0
        self._parts, extra = _check_sizes(path, header)
        self.warnings = (*header.warnings, *extra)
        self._files = _Joined(header.voxels.files)
        self._hashing = HashingStream(self._files, header.voxels.header, hashed=hashed)

    @property
    def bytes_read(self) -> int:
        """Return the number of bytes that were read, of all files."""
        return self._hashing.bytes_read

    @property
    def read_seconds(self) -> float:
        """Return the time spent reading the files, s, without decompression."""
        return self._hashing.seconds

    def planes(self, depth: int, buffers: int) -> Iterator[RawPlanes]:
        """Yield all planes any[k, j, i] in the file's order, `depth` at a time, cycling through `buffers` arrays."""
        voxels = _Voxels(self._hashing, self._header, self._parts, self._path)
        ni, nj, nk = self.grid.shape
        layers = len(self._header.layers)
        shape = (min(depth, nk), nj, ni, *([layers] if layers else []))
        arrays = [np.empty(shape, dtype=self.dtype) for _ in range(buffers)]
        for turn, k in enumerate(range(0, nk, depth)):
            raw = arrays[turn % buffers][: nk - k]
            voxels.fill(view_bytes(raw))
            yield RawPlanes(k=k, voxels=self._merge(raw) if layers else raw, slope=1.0, inter=0.0)
        voxels.check_end()

    def _merge(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the label values any[k, j, i] of layers any[k, j, i, layer] that do not overlap."""
        inside = np.zeros(raw.shape[:3], dtype=np.uint8)
        merged = np.zeros(raw.shape[:3], dtype=raw.dtype)
        for layer, values in enumerate(self._header.layers):
            one = raw[..., layer]
            wrong = one[~np.isin(one, (0, *values))]
            if wrong.size:
                raise ScanError(
                    f"layer {layer} has the value {wrong.flat[0]}, which no segment of that layer has. Export the "
                    "segmentation from 3D Slicer as a labelmap.",
                    where=self._path,
                )
            inside += one != 0
            merged += one
        overlaps = int(np.count_nonzero(inside > 1))
        if overlaps:
            raise ScanError(
                f"its segments overlap (at least {overlaps:,} voxels), and a mask has one label a voxel. Export it "
                "from 3D Slicer as a labelmap, which settles the order of the segments.",
                where=self._path,
            )
        return merged

    def finish(self) -> str:
        """Read the rest, and return the SHA-256 of the stored bytes (empty if not requested)."""
        with report_damage(self._path):
            return self._hashing.drain()

    def template_header(self, *, private: bool) -> bytes:  # noqa: ARG002 (nothing is private)
        """Return a NIfTI header of the grid; nothing else of the file is kept, whether `private` or not."""
        return make_header(self.grid)

    def close(self) -> None:
        """Close the files."""
        self._files.close()


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A file of voxels."""

    before: int
    """Bytes before its voxels."""
    count: int
    """Bytes of its voxels, as stored."""
    after: int
    """Bytes after them."""


class _Voxels:
    """The voxels of the stored bytes, decompressed and without what lies before, between and after them."""

    def __init__(self, stored: HashingStream, header: VolumeHeader, parts: Sequence[_Part], path: Location) -> None:
        self._header = header
        self._path = path
        self._parts = list(parts)
        self._stream: Any = stored
        self._left = self._after = 0
        packing = header.voxels.encoding
        if packing != "raw":
            first = self._parts.pop()
            self._discard(first.before)
            self._stream = Gunzip(fileobj=stored, mode="rb") if packing == "gzip" else Inflate(stored)
            self._discard(header.voxels.skip_inside)
            self._left = first.count

    def fill(self, out: memoryview) -> None:
        """Fill `out` with the next voxels."""
        while len(out):
            if not self._left:
                part = self._parts.pop(0)
                self._discard(self._after + part.before)
                self._left, self._after = part.count, part.after
            count = min(self._left, len(out))
            read_exactly(self._stream, out[:count], self._path)
            out, self._left = out[count:], self._left - count

    def _discard(self, count: int) -> None:
        """Read and discard bytes, a few at a time."""
        block = memoryview(bytearray(min(count, SKIP_STEP)))
        while count:
            part = block[:count]
            read_exactly(self._stream, part, self._path)
            count -= len(part)

    def check_end(self) -> None:
        """Verify the checksum of compressed data, and refuse data that hold more than the voxels of the header."""
        if self._header.voxels.encoding == "raw":
            return
        with report_damage(self._path):
            more = self._stream.read(1)
        if more:
            raise ScanError(
                f"its compressed data hold more than the {self._header.data_bytes:,} bytes of voxels of the header "
                f"({_describe(self._header)}). The header is damaged or of another file.",
                where=self._path,
            )


class _Joined(io.RawIOBase):
    """The bytes of several files, one after the other; a file is opened when it is needed."""

    def __init__(self, files: Sequence[Location]) -> None:
        self._left = list(files)
        self._file: io.RawIOBase | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None or self._left:
            if self._file is None:
                self._file = open_stream(self._left.pop(0))
            count = self._file.readinto(buffer)
            if count or not len(buffer):
                return int(count or 0)
            self._file.close()
            self._file = None
        return 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._left = []
        super().close()


def _check_sizes(path: Location, header: VolumeHeader) -> tuple[list[_Part], list[str]]:
    """Return the parts of the files, and warnings.

    Raises
    ------
    ScanError
        A file cannot hold the voxels that the header claims.
    """
    voxels = header.voxels
    share, rest = divmod(header.data_bytes, len(voxels.files))
    if rest or share % (math.prod(header.grid.shape[:2]) * header.voxel_bytes):
        raise ScanError(
            f"its voxels ({_describe(header)}) cannot be divided into {len(voxels.files)} files. Correct the header.",
            where=path,
        )
    parts, longest = [], 0
    for file in voxels.files:
        size = file_bytes(file, path)
        packed = voxels.encoding != "raw"
        before = size - share if voxels.skip == FROM_END else voxels.skip
        claimed = share + voxels.skip_inside
        has = (size - before) * MAX_DEFLATE_RATIO + 1024 if packed else size - before
        if before < 0 or size <= before or claimed > has:
            raise ScanError(
                f"the header claims {claimed:,} bytes ({_describe(header)}"
                f"{f' in {len(voxels.files)} files' if len(voxels.files) > 1 else ''}), but {file.name} has "
                f"{max(0, size - max(0, before)):,}{' compressed' if packed else ''}. It is truncated or the header is "
                "damaged; copy it again.",
                where=path,
            )
        after = 0 if packed else size - before - share
        longest = max(longest, after)
        parts.append(_Part(before=before, count=share, after=after))
    if longest:
        return parts, [f"{longest:,} bytes follow the voxels; the header may be of another file"]
    return parts, []


def file_bytes(file: Location, header: Location) -> int:
    """Return the size of a file that a header names.

    Raises
    ------
    ScanError
        There is no such file, or it is no regular file.
    """
    try:
        if isinstance(file, Path) and not file.is_file() and file.exists():
            raise ScanError(f"{file.name} is a folder, a pipe or a device.", where=header)
        return file.stat().st_size
    except FileNotFoundError as error:
        raise ScanError(
            f"its file of voxels {file.name} is missing; put it in the same folder.", where=header
        ) from error
    except OSError as error:
        raise ReadError(f"{file.name} cannot be read: {error.strerror or error}.", where=header) from error


def _describe(header: VolumeHeader) -> str:
    layers = f" in {len(header.layers)} layers" if header.layers else ""
    return f"{'x'.join(map(str, header.grid.shape))} of {header.dtype}{layers}"
