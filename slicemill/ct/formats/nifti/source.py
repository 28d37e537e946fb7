"""NIfTI files as a `slicemill.ct.formats.source.ScanSource`."""

from collections.abc import Iterator

import numpy as np

from slicemill.common.files import Location
from slicemill.ct.formats.nifti.header import (
    HEADER_BYTES,
    MAX_EXTENSION_BYTES,
    blank_text,
    read_extensions,
    read_header,
)
from slicemill.ct.formats.nifti.stream import (
    open_voxels,
    read_exactly,
    read_to_end,
    report_damage,
    skip_bytes,
    view_bytes,
)
from slicemill.ct.formats.source import RawPlanes, Scaling


class NiftiSource:
    """An open NIfTI file or pair."""

    def __init__(self, path: Location, *, hashed: bool) -> None:
        self._path = path
        self.header = read_header(path)
        self.format = HEADER_BYTES[len(self.header.raw)]
        self.grid = self.header.grid
        self.scaling: tuple[Scaling, Scaling] = (self.header.slope, self.header.inter)
        self.dtype = self.header.dtype
        self.warnings = self.header.warnings
        self.private_bytes = self.header.extension_bytes
        self._stream, self._hashing = open_voxels(path, hashed=hashed)

    @property
    def bytes_read(self) -> int:
        """Return the number of bytes of the file that were read."""
        return self._hashing.bytes_read

    @property
    def read_seconds(self) -> float:
        """Return the time spent reading the file, s, without decompression."""
        return self._hashing.seconds

    def planes(self, depth: int, buffers: int) -> Iterator[RawPlanes]:
        """Yield all planes any[k, j, i] in the file's order, `depth` at a time, cycling through `buffers` arrays."""
        skip_bytes(self._stream, self.header.data_offset, self._path)
        ni, nj, nk = self.grid.shape
        arrays = [np.empty((min(depth, nk), nj, ni), dtype=self.dtype) for _ in range(buffers)]
        for turn, k in enumerate(range(0, nk, depth)):
            raw = arrays[turn % buffers][: nk - k]
            read_exactly(self._stream, view_bytes(raw), self._path)
            yield RawPlanes(k=k, voxels=raw, slope=self.header.slope, inter=self.header.inter)

    def finish(self) -> str:
        """Read the rest, which verifies a gzip checksum, and return the SHA-256 of the stored bytes."""
        read_to_end(self._stream, self._path)
        with report_damage(self._path):
            return self._hashing.drain()

    def template_header(self, *, private: bool) -> bytes:
        """Return the header: if `private`, with its text and extensions of up to MAX_EXTENSION_BYTES."""
        if not private:
            return blank_text(self.header.raw)
        fits = self.header.extension_bytes <= MAX_EXTENSION_BYTES
        return self.header.raw + (read_extensions(self._path, self.header) if fits else b"")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
