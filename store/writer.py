"""Writes a case, slice by slice, into shards that it alone owns, and shows the case only when it is whole.

1. `CaseWriter` makes a folder under ``.partial``, out of every reader's sight.
2. Slices arrive in any order; each is encoded, appended to its shard, and its place remembered.
3. `finish` appends the indexes, writes the array documents, then the case's own group document.
4. One rename moves the folder into ``scans.zarr``: a case is there whole or not at all.
"""

import contextlib
import os
import platform
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from store.case import CaseInfo
from store.errors import StoreError
from store.files import local_path, to_json, write_json
from store.layout import (
    ABSENT,
    ATTRIBUTE,
    CRC_BYTES,
    DOCUMENT,
    GROUP,
    IMAGE,
    LABEL,
    PARTIAL,
    SHARD,
    ArrayName,
    array_document,
    check_case_id,
    group_document,
)

blosc.use_threads = False
"""A worker process per core does the sharing out; blosc's global pool would only add switches."""


def encode_image(voxels: npt.NDArray[np.int16]) -> bytes:
    """Encode one slice int16[y, x] as the image array's inner codecs do."""
    return bytes(blosc.compress(voxels, b"zstd", 1, blosc.BITSHUFFLE, voxels.nbytes, typesize=2))


def encode_label(voxels: npt.NDArray[np.uint8]) -> bytes:
    """Encode one slice uint8[y, x] as the label array's inner codecs do."""
    return bytes(zstd.compress(voxels, 1))


def with_checksum(data: bytes) -> bytes:
    """Append the crc32c, 4 bytes little endian."""
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


class ShardWriter:
    """One shard being written: encoded slices, then the index."""

    def __init__(self, path: Path, slices: int, encode: Callable[[npt.NDArray[Any]], bytes]) -> None:
        path.parent.mkdir(parents=True)
        self._file = path.open("xb")
        self._encode = encode
        self._index = np.full((slices, 2), ABSENT, dtype="<u8")
        self._offset = 0

    def write(self, z: int, voxels: npt.NDArray[Any]) -> None:
        """Append the slice `voxels`: any[y, x], C-contiguous, as the one at `z`."""
        data = with_checksum(self._encode(voxels))
        self._file.write(data)
        self._index[z] = self._offset, len(data)
        self._offset += len(data)

    def finish(self) -> None:
        """Append the index and close."""
        missing = np.flatnonzero(self._index[:, 0] == ABSENT)
        if len(missing):
            raise StoreError(f"{len(missing)} slices were never written, the first at z={missing[0]}.")
        self._file.write(with_checksum(self._index.tobytes()))
        self._file.close()

    def abandon(self) -> None:
        """Close without an index; on a full disk what was buffered cannot be written any more, and need not be."""
        with contextlib.suppress(OSError):
            self._file.close()


class CaseWriter:
    """One case being written; leaves nothing behind unless `finish` was reached."""

    def __init__(self, store: str | Path, case_id: str, shape: tuple[int, int, int], *, has_mask: bool) -> None:
        root = local_path(store)
        self._final = root / GROUP / check_case_id(case_id)
        self._folder = root / PARTIAL / f"{case_id}.{this_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._folder.mkdir(parents=True)
        self._shape = shape
        self._shards = {IMAGE: ShardWriter(self._folder / IMAGE / SHARD, shape[0], encode_image)}
        if has_mask:
            self._shards[LABEL] = ShardWriter(self._folder / LABEL / SHARD, shape[0], encode_label)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._shards.values():
            shard.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, name: ArrayName, z: int, slab: npt.NDArray[Any]) -> None:
        """Write the slices of `slab`: any[z, y, x] from index `z` on."""
        for offset, voxels in enumerate(slab):
            self._shards[name].write(z + offset, voxels)

    def finish(self, info: CaseInfo) -> None:
        """Complete the case and show it, in the place of an older one of the same id."""
        names: tuple[ArrayName, ...] = ("image", "label")
        for name in names:
            if name in self._shards:
                self._shards[name].finish()
                write_json(self._folder / name / DOCUMENT, array_document(name, self._shape))
        (self._folder / DOCUMENT).write_text(to_json(group_document({ATTRIBUTE: info.as_json()})), encoding="utf-8")
        replace_folder(self._folder, self._final)


def replace_folder(new: Path, final: Path) -> None:
    """Move the folder `new` to `final`; an older one is moved aside first and then removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = new.with_name(new.name + ".old")
        final.rename(old)
        new.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(final)


def prepare_store(store: str | Path) -> Path:
    """Make the folder and the Zarr group of a store, if they are not there yet, and return the folder."""
    root = local_path(store)
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root}: a store is a folder; this is a file. Choose another name.")
    try:
        document = root / GROUP / DOCUMENT
        if not document.exists():
            write_json(document, group_document({}))
    except OSError as error:
        raise StoreError(f"{root}: cannot be written: {error.strerror}.") from error
    return root


def this_host() -> str:
    """Return this machine's name without dots."""
    return platform.node().replace(".", "_") or "localhost"


def remove_partial(store: str | Path) -> None:
    """Clear up after killed runs of this machine: put back a case that was just being replaced, remove partial ones."""
    import psutil

    root = local_path(store)
    for folder in (root / PARTIAL).glob("*"):
        parts = folder.name.removesuffix(".old").rsplit(".", 3)
        if len(parts) != 4 or parts[1] != this_host() or not parts[2].isdecimal() or psutil.pid_exists(int(parts[2])):
            continue
        final = root / GROUP / parts[0]
        if folder.name.endswith(".old") and not final.exists():
            folder.rename(final)
        else:
            shutil.rmtree(folder, ignore_errors=True)
