"""Reads one shard from a local file or an object store: the index once, then byte ranges."""

import itertools
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from slicemill.common.errors import StoreError
from slicemill.common.failures import raise_system_limit
from slicemill.common.files import Location, open_regular
from slicemill.common.remote import RemotePath
from slicemill.store.codecs import CRC_BYTES, without_checksum
from slicemill.store.layout import ABSENT, INDEX_ENTRY_BYTES
from slicemill.store.version import CaseVersion

OPEN_FILES = 128
"""Shards kept open, or a quarter of the open files that the process may have, if that is less."""
MAX_RANGE_BYTES = 32 << 20
GAP_BYTES = 1 << 20
"""In an object store, slices closer than this are fetched in one read. Reading the gap takes about as long as one more
request."""
_READER_NUMBERS = itertools.count()

Entry = tuple[int, int]
"""Offset and length of a slice's bytes; ABSENT for a slice of fill values only."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A byte range that is fetched in one read."""

    start: int
    end: int
    rows: list[int] = field(default_factory=list)
    """Indices of the requested entries in this range."""


class _OpenFile:
    """A file opened for reading. It is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _open_for(path: Path, _reader: int, version: CaseVersion) -> _OpenFile:
    try:
        return _OpenFile(path)
    finally:
        version.check()  # a file of the next version may have been opened, or this one's file is gone


def _count_open_files() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if most == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, most // 4))


_open_file = lru_cache(maxsize=_count_open_files())(_open_for)
"""Return a reader's open file. The most recently used files stay open."""


class ShardReader:
    """One shard of a store; safe to use from several threads."""

    def __init__(self, path: Location, slices: int, version: CaseVersion) -> None:
        self.path = path
        self._version = version
        self._e_tag: str | None = None  # of the object whose index was read
        self._slices = slices
        self._content_bytes = 0  # bytes before the index; set when `entries` is read
        self._number = next(
            _READER_NUMBERS
        )  # a new reader opens the file again, because the case may have been replaced

    @property
    def is_remote(self) -> bool:
        """Return whether each read is a request to an object store."""
        return isinstance(self.path, RemotePath)

    @cached_property
    def entries(self) -> list[Entry]:
        """Return offset and length of each slice, in order of z.

        Raises
        ------
        StoreError
            The shard is too short for an index of this many slices, or the index is damaged.
        """
        size = self._slices * INDEX_ENTRY_BYTES + CRC_BYTES
        data, end = self._read_end(size)
        if end < size:
            raise StoreError(
                f"{end} bytes cannot hold the index of {self._slices} slices; it is truncated.", where=self.path
            )
        try:
            index = np.frombuffer(without_checksum(data), dtype="<u8").reshape(-1, 2)
        except ValueError as error:
            raise StoreError(str(error), where=f"{self.path}, index") from error
        entries = [(int(offset), int(length)) for offset, length in index.tolist()]
        for offset, length in entries:
            if (offset == ABSENT) != (length == ABSENT) or (length != ABSENT and offset + length > end - size):
                raise StoreError("its index points outside the file.", where=self.path)
        self._content_bytes = end - size
        return entries

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset` on.

        Raises
        ------
        StoreError
            The shard cannot be read, or ends before the last byte.
        """
        try:
            if isinstance(self.path, RemotePath):
                data = self.path.read_range(offset, length, e_tag=self._e_tag)
                if data is None:
                    raise self._version.replaced()
            else:
                # this reference keeps the file open: another thread may remove it from the cache
                file = _open_file(self.path, self._number, self._version)
                data = os.pread(file.descriptor, length, offset)
        except OSError as error:
            raise_system_limit(error)
            raise StoreError(f"cannot be read: {error.strerror}.", where=self.path) from error
        if len(data) != length:
            raise StoreError(f"is truncated; {len(data)} of {length} bytes at offset {offset}.", where=self.path)
        return data

    def _read_end(self, length: int) -> tuple[bytes, int]:
        """Return the last `length` bytes (none if the shard is shorter) and the shard's size."""
        try:
            if isinstance(self.path, RemotePath):
                data, status = self.path.read_end(length)
                self._version.check()
                self._e_tag = status.e_tag
                return data, status.st_size
            file = _open_file(self.path, self._number, self._version)
            size = os.fstat(file.descriptor).st_size
            return (os.pread(file.descriptor, length, size - length) if length <= size else b""), size
        except OSError as error:
            raise_system_limit(error)
            raise StoreError(f"cannot be read: {error.strerror}.", where=self.path) from error

    def check_bytes(self) -> None:
        """Check that slices and index fill the shard without gap or overlap, so that a checksum covers every byte.

        Raises
        ------
        StoreError
            There is a gap or an overlap.
        """
        end = 0
        for offset, length in sorted(entry for entry in self.entries if entry[1] != ABSENT):
            if offset != end:
                raise StoreError(f"bytes {end} to {offset} belong to no slice or to two slices.", where=self.path)
            end = offset + length
        if end != self._content_bytes:
            raise StoreError(f"bytes {end} to {self._content_bytes} belong to no slice.", where=self.path)


def plan_ranges(entries: Sequence[Entry]) -> list[ByteRange]:
    """Merge the byte ranges of nearby slices, up to MAX_RANGE_BYTES each.

    >>> [(one.start, one.end, one.rows) for one in plan_ranges([(50, 10), (0, 20), (9 << 20, 5)])]
    [(0, 60, [1, 0]), (9437184, 9437189, [2])]
    """
    ranges: list[ByteRange] = []
    for row in sorted(range(len(entries)), key=lambda row: entries[row]):
        offset, length = entries[row]
        if length == ABSENT:  # nothing is read for it
            ranges.append(ByteRange(0, 0, [row]))
            continue
        last = ranges[-1] if ranges else ByteRange(0, 0)
        end = offset + length
        if last.end > last.start and offset <= last.end + GAP_BYTES and end - last.start <= MAX_RANGE_BYTES:
            ranges[-1] = ByteRange(last.start, max(last.end, end), [*last.rows, row])
        else:
            ranges.append(ByteRange(offset, end, [row]))
    return ranges
