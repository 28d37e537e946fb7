"""Opens a store and reads slices out of it.

A slice of our own layout costs one read (of a file, or one request) and one decompression into the caller's buffer: the
shard's index is read once and kept, and neighboring slices come in one read. Any other valid Zarr v3 array at the same
place is read through zarr-python.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from slicemill.common.errors import StoreError
from slicemill.common.files import Location, parse_location
from slicemill.common.remote import RemotePath
from slicemill.ct.naming import natural_key
from slicemill.store.cache import SliceCache
from slicemill.store.case import CaseInfo, case_from_json
from slicemill.store.layout import (
    ABSENT,
    ATTRIBUTE,
    CRC_BYTES,
    DOCUMENT,
    GROUP,
    IMAGE,
    INDEX_ENTRY_BYTES,
    LABEL,
    SHARD,
    ArrayName,
    profile_of,
)

BLOSC_HEADER_BYTES = 16
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_SLICE_BYTES = 1 << 31
CRC_RESIDUE = 0x48674BC7
"""crc32c of any bytes followed by their crc32c, little endian (RFC 3720, B.4 gives the polynomial)."""
OPEN_FILES = 128
"""Shards kept open; a system allows a process 1,024 open files or more."""
MAX_RANGE_BYTES = 32 << 20
_READERS = itertools.count()
GAP_BYTES = 1 << 20
"""Slices whose bytes lie no farther apart than this come in one read: about what a request costs in time."""


def without_checksum(data: bytes) -> memoryview:
    """Return `data` without its trailing crc32c.

    The checksum of bytes followed by their own checksum is a constant, so that nothing needs to be copied to check it.

    Raises
    ------
    ValueError
        The checksum does not fit: the bytes were damaged.
    """
    if len(data) < CRC_BYTES or google_crc32c.value(data) != CRC_RESIDUE:
        raise ValueError("the checksum does not fit, the bytes are damaged. Ingest the case again with --overwrite.")
    return memoryview(data)[:-CRC_BYTES]


def zstd_content_size(data: memoryview) -> int | None:
    """Return how many bytes a zstd frame says it decodes to (RFC 8878, section 3.1.1.1); None when it does not say."""
    if len(data) < 6 or data[:4] != ZSTD_MAGIC:
        return None
    descriptor = data[4]
    single, flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(single), 2, 4, 8)[flag]
    return int.from_bytes(data[start : start + width], "little") + (256 if flag == 1 else 0) if width else None


class _OpenFile:
    """A file that is open for reading until nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _open_for(path: Path, _reader: int) -> _OpenFile:
    return _OpenFile(path)


_open_file = lru_cache(maxsize=OPEN_FILES)(_open_for)
"""Return the open shard of one reader; those used last stay open."""


class SliceArray:
    """The slices of one array, any[z, y, x], read one at a time; safe to use from several threads."""

    def __init__(self, folder: Location, name: ArrayName, cache: SliceCache | None = None) -> None:
        self._cache = cache if isinstance(folder, RemotePath) else None
        self._shard = folder / SHARD
        self._folder = folder
        self._name = name
        self._reader = next(_READERS)
        document = read_document(folder)
        try:
            nz, ny, nx = (int(extent) for extent in document["shape"])
            self.dtype = np.dtype(document["data_type"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{folder}: is not a Zarr v3 array of three axes z, y, x ({error}).") from error
        self.shape = (nz, ny, nx)
        """z, y, x."""
        if min(self.shape) < 1 or ny * nx * self.dtype.itemsize > MAX_SLICE_BYTES:
            raise StoreError(f"{folder}: shape {self.shape} is none that a scan can have.")
        self._fill_value = document.get("fill_value", 0)
        self.profile = profile_of(document, name, self.shape)
        """Whose bytes these are; None for another valid layout, which zarr-python reads."""
        self._is_zstd = self.profile == "compact" and name == LABEL

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, z: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return the slice at `z`: any[y, x], in `out` where given (C-contiguous, of the array's type).

        Raises
        ------
        IndexError
            There is no such slice.
        StoreError
            Bytes are missing or damaged.
        """
        if out is None:
            out = np.empty(self.shape[1:], dtype=self.dtype)
        if self.profile is None:
            out[...] = self._through_zarr(self._checked(z))
            return out
        self._decode(z, self.encoded(z), out)
        return out

    def encoded(self, z: int) -> bytes:
        """Return the bytes of the slice at `z` as they stand in the shard, with their checksum; none for one that is all fill value."""
        offset, length = self._index[0][self._checked(z)]
        if length == ABSENT:
            return b""
        if self._cache is not None:
            return self._cache.get(str(self._shard), z, lambda: self._read(offset, length))
        return self._read(offset, length)

    def read_many(self, wanted: Sequence[int], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return several slices: any[n, y, x]; from an object store, neighbors come in one request.

        Raises
        ------
        IndexError
            There is no such slice.
        StoreError
            Bytes are missing or damaged.
        """
        if self.profile is not None:
            _ = self._places  # a shape that the shard cannot hold is refused before memory is taken for it
        if out is None:
            out = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        if self.profile is None or not isinstance(self._shard, RemotePath):
            for row, z in zip(out, wanted, strict=True):
                self.read(z, row)
            return out
        for start, end, rows in self._ranges(wanted):
            data = self._read(start, end - start) if end > start else b""
            for row in rows:
                offset, length = self._places[wanted[row]]
                part = b"" if length == ABSENT else data[offset - start : offset - start + length]
                self._decode(wanted[row], part, out[row])
        return out

    def __getitem__(self, key: int | slice) -> npt.NDArray[Any]:
        if isinstance(key, slice):
            return self.read_many(range(len(self))[key])
        return self.read(key if key >= 0 else key + len(self))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self.read(z) for z in range(len(self)))

    def check_bytes(self) -> None:
        """Raise a StoreError unless slices and index fill the shard without a gap or an overlap, so that every byte is checked."""
        if self.profile is None:
            return
        present = sorted(place for place in self._places if place[1] != ABSENT)
        end = 0
        for offset, length in present:
            if offset != end:
                raise StoreError(f"{self._shard}: bytes {end} to {offset} belong to no slice, or to two.")
            end = offset + length
        if end != self._content_bytes:
            raise StoreError(f"{self._shard}: bytes {end} to {self._content_bytes} belong to no slice.")

    def _checked(self, z: int) -> int:
        if not 0 <= z < len(self):
            raise IndexError(f"slice {z} of {len(self)}")
        return z

    def _ranges(self, wanted: Sequence[int]) -> Iterable[tuple[int, int, list[int]]]:
        """Return ranges of bytes with the rows of `wanted` that lie in them; near ones are joined up to MAX_RANGE_BYTES."""
        ranges: list[tuple[int, int, list[int]]] = []
        places = [self._places[self._checked(z)] for z in wanted]
        for row in sorted(range(len(wanted)), key=lambda row: places[row]):
            offset, length = places[row]
            start, end, rows = ranges[-1] if ranges else (0, 0, [])
            if length == ABSENT:
                ranges.append((0, 0, [row]))
            elif end > start and offset <= end + GAP_BYTES and offset + length - start <= MAX_RANGE_BYTES:
                ranges[-1] = (start, max(end, offset + length), [*rows, row])
            else:
                ranges.append((offset, offset + length, [row]))
        return ranges

    @cached_property
    def _index(self) -> tuple[list[tuple[int, int]], int]:
        """Return offset and length of each slice, and how many bytes lie before the index."""
        size = len(self) * INDEX_ENTRY_BYTES + CRC_BYTES
        data, end = self._read_end(size)
        if end < size:
            raise StoreError(
                f"{self._shard}: {end} bytes cannot hold the index of {len(self)} slices; it is truncated."
            )
        try:
            index = np.frombuffer(without_checksum(data), dtype="<u8").reshape(-1, 2)
        except ValueError as error:
            raise StoreError(f"{self._shard}, index: {error}") from error
        places = [(int(offset), int(length)) for offset, length in index.tolist()]
        for offset, length in places:
            if (offset == ABSENT) != (length == ABSENT) or (length != ABSENT and offset + length > end - size):
                raise StoreError(f"{self._shard}: its index points outside the file.")
        return places, end - size

    @property
    def _places(self) -> list[tuple[int, int]]:
        return self._index[0]

    @property
    def _content_bytes(self) -> int:
        return self._index[1]

    def _through_zarr(self, z: int) -> npt.NDArray[Any]:
        """Return a slice of another layout; whatever zarr-python raises says that it cannot be read."""
        if isinstance(self._folder, RemotePath):
            raise StoreError(f"{self._folder}: is not in slicemill's layout; copy it to a local disk to read it.")
        try:
            voxels: npt.NDArray[Any] = self._zarr[z]
        except Exception as error:
            raise StoreError(f"{self._folder}: cannot be read, not by zarr-python either ({error}).") from error
        return voxels

    @cached_property
    def _zarr(self) -> Any:
        import zarr

        return zarr.open_array(str(self._folder), mode="r")

    def _read(self, offset: int, length: int) -> bytes:
        try:
            if isinstance(self._shard, RemotePath):
                data = self._shard.read_range(offset, length)
            else:
                file = _open_file(self._shard, self._reader)  # held until it was read: another thread may push it out
                data = os.pread(file.descriptor, length, offset)
        except OSError as error:
            raise StoreError(f"{self._shard}: cannot be read: {error.strerror}.") from error
        if len(data) != length:
            raise StoreError(f"{self._shard}: ends early; {len(data)} of {length} bytes at {offset}.")
        return data

    def _read_end(self, length: int) -> tuple[bytes, int]:
        try:
            if isinstance(self._shard, RemotePath):
                return self._shard.read_end(length)
            file = _open_file(self._shard, self._reader)
            size = os.fstat(file.descriptor).st_size
            return (os.pread(file.descriptor, length, size - length) if length <= size else b""), size
        except OSError as error:
            raise StoreError(f"{self._shard}: cannot be read: {error.strerror}.") from error

    def _decode(self, z: int, data: bytes, out: npt.NDArray[Any]) -> None:
        """Decode the bytes of the slice at `z` into `out`; no bytes are a slice that is all fill value."""
        if not data:
            out[...] = self._fill_value
            return
        try:
            encoded = without_checksum(data)
            if self._is_zstd:
                if zstd_content_size(encoded) != out.nbytes:
                    raise ValueError(f"is not a zstd chunk of {out.nbytes} bytes.")
                zstd.decompress(encoded, out)
            else:
                decoded, stored = int.from_bytes(encoded[4:8], "little"), int.from_bytes(encoded[12:16], "little")
                if len(encoded) < BLOSC_HEADER_BYTES or stored != len(encoded) or decoded != out.nbytes:
                    raise ValueError(f"is not a blosc chunk of {out.nbytes} bytes.")
                blosc.decompress(encoded, out)
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"{self._shard}, slice {z}: {error}") from error


def read_document(folder: Location) -> dict[str, Any]:
    """Return a node's ``zarr.json``."""
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{folder / DOCUMENT}: cannot be read ({error}).") from error
    if not isinstance(document, dict):
        raise StoreError(f"{folder / DOCUMENT}: must hold a JSON object.")
    return document


class Case:
    """One case of a store: what is known of it, and its slices."""

    def __init__(self, folder: Location, cache: SliceCache | None = None) -> None:
        self.image = SliceArray(folder / IMAGE, "image", cache)
        """int16[z, y, x], HU."""
        attributes = read_document(folder).get("attributes")
        try:
            attribute = attributes.get(ATTRIBUTE, {}) if isinstance(attributes, dict) else {}
            self.info: CaseInfo = case_from_json(attribute, self.image.shape)
        except StoreError as error:
            raise StoreError(f"{folder}: {error}") from error
        if self.info.case_id != folder.name:
            raise StoreError(
                f"{folder}: its attributes are those of a case {self.info.case_id!r}; ingest it again with --overwrite."
            )
        self.label = SliceArray(folder / LABEL, "label", cache) if self.info.mask else None
        """uint8[z, y, x], values of the case's labels; None without a mask."""
        if self.label is not None and self.label.shape != self.image.shape:
            raise StoreError(f"{folder}: image {self.image.shape} and label {self.label.shape} must have one shape.")


class Store:
    """A slice store: case ids, and cases by id.

    >>> store = open_store("lits")                  # doctest: +SKIP
    >>> store["volume-17"].image[40]                # doctest: +SKIP
    """

    def __init__(self, root: Location, cache: SliceCache | None = None) -> None:
        self.root = root
        self._cache = cache
        self._cases: dict[str, Case] = {}

    @cached_property
    def case_ids(self) -> list[str]:
        """Return the ids of the whole cases, sorted naturally (volume-2 before volume-10)."""
        return sorted(case_ids_in(self.root), key=natural_key)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.case_ids)

    def __len__(self) -> int:
        return len(self.case_ids)

    def __iter__(self) -> Iterator[Case]:
        return (self[case_id] for case_id in self.case_ids)

    def __getitem__(self, case_id: str) -> Case:
        if case_id not in self._cases:
            if case_id not in self._known:
                raise StoreError(
                    f"{self.root}: there is no case {case_id!r}; `slicemill store info {self.root}` lists them."
                )
            self._cases[case_id] = case_in(self.root, case_id, self._cache)
        return self._cases[case_id]


def case_ids_in(root: Location) -> Iterator[str]:
    """Yield the ids of the whole cases of a store, in no order."""
    group = root / GROUP
    if isinstance(group, RemotePath):
        for place, _ in group.files():
            parts = place.relative_to(group).parts
            if len(parts) == 2 and parts[1] == DOCUMENT:
                yield parts[0]
        return
    for folder in group.iterdir():
        if (folder / DOCUMENT).is_file():
            yield folder.name


def case_in(root: Location, case_id: str, cache: SliceCache | None = None) -> Case:
    """Open one case of a store whose id is known to be there, without a look at the others."""
    return Case(root / GROUP / case_id, cache)


def open_store(url: str | Location, cache: SliceCache | None = None) -> Store:
    """Open a slice store for reading; slices that are read one by one from an object store go through the cache.

    Raises
    ------
    StoreError
        There is none at `url`.
    """
    root = parse_location(url)
    if not is_store(root):
        raise StoreError(
            f"{root}: is not a slice store (it has no {GROUP}/{DOCUMENT}); make one with `slicemill ingest`."
        )
    return Store(root, cache)


def is_store(path: Location) -> bool:
    """Return whether a slice store lies at `path`."""
    return (path / GROUP / DOCUMENT).is_file()
