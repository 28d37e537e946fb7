"""NIfTI files as byte streams, plain or gzip. Damage is reported with the name of the file.

The first bytes of a file decide whether it is gzip, not its name. A .hdr/.img pair is one stream: the header file, then
the image file.
"""

import io
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip

from slicemill.common.errors import ReadError, ScanError
from slicemill.common.files import HASH_BLOCK, HashingStream, Location
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.nifti.names import is_header_name, scan_files

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW = 16 + zlib.MAX_WBITS
"""What zlib calls a stream with gzip's header and checksum."""
MAX_DATA_OFFSET = 1 << 24
"""Largest offset of the voxels, bytes; also the largest header file of a pair."""


def open_voxels(path: Location, *, hashed: bool = True) -> tuple[io.RawIOBase, HashingStream]:
    """Open a file, or both files of a pair, for reading from the first header byte, decompressed.

    Returns the stream to read from, and the stream below it that counts and hashes the bytes as stored.
    """
    content, plain = read_header_file(path) if is_header_name(path.name) else (b"", b"")
    file, compressed = _open_file(scan_files(path)[-1])
    hashing = HashingStream(file, start=content, hashed=hashed)
    inner = Gunzip(fileobj=hashing, mode="rb") if compressed else hashing
    return _Closing(inner, file, plain), hashing


def _open_file(path: Location) -> tuple[io.RawIOBase, bool]:
    """Return an open file and whether it is gzip.

    Raises
    ------
    ScanError
        The file cannot be opened, or is no regular file: reading a pipe could block forever.
    """
    try:
        if isinstance(path, RemotePath):
            stream = path.open_stream()
            return stream, bytes(stream.peek()[:2]) == GZIP_MAGIC
        if not stat.S_ISREG(path.stat().st_mode):
            raise ScanError("a scan is a file; this is a folder, a pipe or a device. Name the file itself.", where=path)
        file = path.open("rb", buffering=0)
        magic = file.read(2)
        file.seek(0)
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}.", where=path) from error
    return file, magic == GZIP_MAGIC


def is_gzip(path: Location) -> bool:
    """Return whether a file's first bytes are gzip's."""
    if isinstance(path, RemotePath):
        return path.read_range(0, len(GZIP_MAGIC)) == GZIP_MAGIC
    file, compressed = _open_file(path)
    file.close()
    return compressed


def read_header_file(path: Location) -> tuple[bytes, bytes]:
    """Return the bytes of a pair's header file, as stored and decompressed.

    Raises
    ------
    ScanError
        The file cannot be read, or is too long for a header.
    """
    file, compressed = _open_file(path)
    with file:
        content = plain = read_up_to(file, MAX_DATA_OFFSET + 1, path)
    if compressed:
        plain = read_up_to(igzip.IGzipFile(fileobj=io.BytesIO(content), mode="rb"), MAX_DATA_OFFSET + 1, path)
    if max(len(content), len(plain)) > MAX_DATA_OFFSET:
        raise ScanError(
            f"the header of a .hdr/.img pair has at most {MAX_DATA_OFFSET:,} bytes; this file has more. "
            "It is damaged or no header.",
            where=path,
        )
    return content, plain


class Gunzip(igzip.IGzipFile):  # type: ignore[misc]
    """A gzip stream that decompresses directly into the caller's buffer; its base class makes one more copy."""

    def readinto(self, buffer: Any) -> int:  # noqa: D102 (documented in io.BufferedIOBase)
        return int(self._buffer.readinto(buffer))


class _Closing(io.RawIOBase):
    """A readable stream of the bytes `before`, then of `inner`; closing it closes `file`."""

    def __init__(self, inner: Any, file: io.IOBase, before: bytes = b"") -> None:
        self._inner = inner
        self._file = file
        self._before = memoryview(before)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._before:
            count = min(len(buffer), len(self._before))
            buffer[:count], self._before = self._before[:count], self._before[count:]
            return count
        return int(self._inner.readinto(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def report_damage(path: Location) -> Iterator[None]:
    """Convert errors of damaged compression, truncated files and failing disks to errors that name the file."""
    try:
        yield
    except (EOFError, igzip.BadGzipFile, igzip.isal_zlib.error) as error:
        if tail := count_tail(scan_files(path)[-1]):
            raise ScanError(
                f"{tail:,} bytes after the end of the gzip data are not gzip. Copy the file again, or keep what comes "
                "before them: gzip -dc FILE > NEW.nii",
                where=path,
            ) from error
        raise ScanError(f"ends early or is damaged ({error}). Copy the file again.", where=path) from error
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}.", where=path) from error


def count_tail(path: Location) -> int:
    """Return how many bytes follow the end of a gzip file's data without being gzip; 0 if the data end otherwise.

    igzip reports such bytes as an early end. This decompresses the file again, so it is only for files that failed.
    """
    with suppress(OSError, ScanError, zlib.error):
        file, compressed = _open_file(path)
        with file:
            if not compressed:
                return 0
            data = file.read(HASH_BLOCK)
            while data.startswith(GZIP_MAGIC):
                data = _skip_member(file, data).lstrip(b"\0")
                while len(data) < len(GZIP_MAGIC) and (more := file.read(HASH_BLOCK)):
                    data = (data + more).lstrip(b"\0")  # zeros pad a tape's last block
            return len(data) + sum(len(more) for more in iter(lambda: file.read(HASH_BLOCK), b""))
    return 0


def _skip_member(file: io.RawIOBase, data: bytes) -> bytes:
    """Decompress the gzip member at the beginning of `data`, reading on in the file, and return what follows it."""
    inflate = zlib.decompressobj(GZIP_WINDOW)
    while not inflate.eof and data:
        inflate.decompress(data, HASH_BLOCK)
        data = inflate.unconsumed_tail or (b"" if inflate.eof else file.read(HASH_BLOCK))
    return inflate.unused_data


def view_bytes(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return memoryview(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]


def read_exactly(stream: io.RawIOBase, out: memoryview, path: Location) -> None:
    """Fill `out` from the stream.

    Raises
    ------
    ScanError
        The stream ends early, or its compression is damaged.
    """
    filled = 0
    with report_damage(path):
        while filled < len(out):
            count = stream.readinto(out[filled:])
            if not count:
                raise EOFError(f"{len(out) - filled:,} bytes of voxels are missing")
            filled += count


def read_to_end(stream: io.RawIOBase, path: Location) -> None:
    """Read and discard the rest, so that a gzip stream verifies its checksum."""
    with report_damage(path):
        while stream.read(HASH_BLOCK):
            pass


def skip_bytes(stream: io.RawIOBase, count: int, path: Location) -> None:
    """Read and discard `count` bytes."""
    read_exactly(stream, memoryview(bytearray(count)), path)


def read_up_to(stream: io.RawIOBase, count: int, path: Location) -> bytes:
    """Read up to `count` bytes."""
    data = b""
    with report_damage(path):
        while len(data) < count and (block := stream.read(count - len(data))):
            data += block
    return data
