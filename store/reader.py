"""Opens a store and reads slices out of it.

A slice of our own layout costs one read and one decompression into the caller's buffer: the shard's index is read
once and kept. Any other valid Zarr v3 array at the same place is read through zarr-python.
"""

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from store.case import CaseInfo, case_from_json
from store.errors import StoreError
from store.files import local_path
from store.layout import (
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
    array_document,
)
from store.naming import natural_key

BLOSC_HEADER_BYTES = 16
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_SLICE_BYTES = 1 << 31


def without_checksum(data: bytes, what: str) -> memoryview:
    """Return `data` without its trailing crc32c.

    Raises
    ------
    StoreError
        The checksum does not fit: the bytes were damaged.
    """
    content = memoryview(data)[:-CRC_BYTES]
    if len(data) < CRC_BYTES or google_crc32c.value(bytes(content)) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise StoreError(
            f"{what}: the checksum does not fit, the bytes are damaged. Ingest the case again with --overwrite."
        )
    return content


def zstd_content_size(data: memoryview) -> int | None:
    """Return how many bytes a zstd frame says it decodes to (RFC 8878, section 3.1.1.1); None when it does not say."""
    if len(data) < 6 or data[:4] != ZSTD_MAGIC:
        return None
    descriptor = data[4]
    single, flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(single), 2, 4, 8)[flag]
    return int.from_bytes(data[start : start + width], "little") + (256 if flag == 1 else 0) if width else None


class SliceArray:
    """The slices of one array, any[z, y, x], read one at a time; safe to use from several threads."""

    def __init__(self, folder: Path, name: ArrayName) -> None:
        self._folder = folder
        self._name = name
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
        self.is_own_layout = same_layout(document, array_document(name, self.shape))
        """Whether the fast reader applies; zarr-python reads everything else."""

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
        if not 0 <= z < len(self):
            raise IndexError(f"slice {z} of {len(self)}")
        if out is None:
            out = np.empty(self.shape[1:], dtype=self.dtype)
        if not self.is_own_layout:
            out[...] = self._zarr[z]
            return out
        offset, length = (int(value) for value in self._index[z])
        what = f"{self._folder / SHARD}, slice {z}"
        if offset == length == ABSENT:
            out[...] = self._fill_value
            return out
        self._decode(without_checksum(self._pread(offset, length), what), out, what)
        return out

    def __getitem__(self, key: int | slice) -> npt.NDArray[Any]:
        if isinstance(key, slice):
            chosen = range(len(self))[key]
            if self.is_own_layout:
                _ = self._index  # a shape that the shard cannot hold is refused before memory is taken for it
            volume = np.empty((len(chosen), *self.shape[1:]), dtype=self.dtype)
            for out, z in zip(volume, chosen, strict=True):
                self.read(z, out)
            return volume
        return self.read(key if key >= 0 else key + len(self))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self.read(z) for z in range(len(self)))

    @cached_property
    def _index(self) -> npt.NDArray[np.uint64]:
        size = len(self) * INDEX_ENTRY_BYTES + CRC_BYTES
        shard = self._folder / SHARD
        end = self._size()
        if end < size:
            raise StoreError(f"{shard}: {end} bytes cannot hold the index of {len(self)} slices; it is truncated.")
        index = np.frombuffer(without_checksum(self._pread(end - size, size), f"{shard}, index"), dtype="<u8").reshape(
            -1, 2
        )
        present = index[(index != ABSENT).any(axis=1)]
        if (present.astype(object).sum(axis=1) > end - size).any():
            raise StoreError(f"{shard}: its index points outside the file.")
        return index

    @cached_property
    def _zarr(self) -> Any:
        import zarr

        return zarr.open_array(str(self._folder), mode="r")

    def _size(self) -> int:
        try:
            return (self._folder / SHARD).stat().st_size
        except OSError as error:
            raise StoreError(f"{self._folder / SHARD}: cannot be read: {error.strerror}.") from error

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            descriptor = os.open(self._folder / SHARD, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{self._folder / SHARD}: cannot be read: {error.strerror}.") from error
        try:
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise StoreError(f"{self._folder / SHARD}: ends early; {len(data)} of {length} bytes at {offset}.")
        return data

    def _decode(self, data: memoryview, out: npt.NDArray[Any], what: str) -> None:
        try:
            if self._name == IMAGE:
                decoded, stored = int.from_bytes(data[4:8], "little"), int.from_bytes(data[12:16], "little")
                if len(data) < BLOSC_HEADER_BYTES or stored != len(data) or decoded != out.nbytes:
                    raise StoreError(f"{what}: is not a blosc chunk of {out.nbytes} bytes.")
                blosc.decompress(data, out)
            else:
                if zstd_content_size(data) != out.nbytes:
                    raise StoreError(f"{what}: is not a zstd chunk of {out.nbytes} bytes.")
                zstd.decompress(data, out)
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"{what}: cannot be decoded ({error}).") from error


def same_layout(document: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Return whether an array document describes exactly the bytes that our own one does."""
    keys = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
    return all(document.get(key) == ours[key] for key in keys)


def read_document(folder: Path) -> dict[str, Any]:
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

    def __init__(self, folder: Path) -> None:
        self.image = SliceArray(folder / IMAGE, "image")
        """int16[z, y, x], HU."""
        attributes = read_document(folder).get("attributes")
        try:
            attribute = attributes.get(ATTRIBUTE, {}) if isinstance(attributes, dict) else {}
            self.info: CaseInfo = case_from_json(attribute, self.image.shape)
        except StoreError as error:
            raise StoreError(f"{folder}: {error}") from error
        self.label = SliceArray(folder / LABEL, "label") if self.info.mask else None
        """uint8[z, y, x], values of the case's labels; None without a mask."""
        if self.label is not None and self.label.shape != self.image.shape:
            raise StoreError(f"{folder}: image {self.image.shape} and label {self.label.shape} must have one shape.")


class Store:
    """A slice store: case ids, and cases by id.

    >>> store = open_store("lits")                  # doctest: +SKIP
    >>> store["volume-17"].image[40]                # doctest: +SKIP
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cases: dict[str, Case] = {}

    @cached_property
    def case_ids(self) -> list[str]:
        """Return the ids of the whole cases, sorted naturally (volume-2 before volume-10)."""
        return sorted(case_ids_in(self.root), key=natural_key)

    def __len__(self) -> int:
        return len(self.case_ids)

    def __iter__(self) -> Iterator[Case]:
        return (self[case_id] for case_id in self.case_ids)

    def __getitem__(self, case_id: str) -> Case:
        if case_id not in self._cases:
            folder = self.root / GROUP / case_id
            if case_id not in self.case_ids:
                raise StoreError(
                    f"{self.root}: there is no case {case_id!r}; `slicemill store info {self.root}` lists them."
                )
            self._cases[case_id] = Case(folder)
        return self._cases[case_id]


def case_ids_in(root: Path) -> list[str]:
    """Return the ids of the whole cases of a store, in no order."""
    return [folder.name for folder in (root / GROUP).iterdir() if (folder / DOCUMENT).is_file()]


def open_store(url: str | Path) -> Store:
    """Open a slice store for reading.

    Raises
    ------
    StoreError
        There is none at `url`.
    """
    root = local_path(url)
    if not (root / GROUP / DOCUMENT).is_file():
        raise StoreError(
            f"{root}: is not a slice store (it has no {GROUP}/{DOCUMENT}); make one with `slicemill ingest`."
        )
    return Store(root)


def is_store(path: Path) -> bool:
    """Return whether a slice store lies at `path`."""
    return (path / GROUP / DOCUMENT).is_file()
