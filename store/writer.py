"""Writes a case, slice by slice, into shards that it alone owns, and shows the case only when it is whole.

1. `CaseWriter` makes a folder under ``.partial``, out of every reader's sight (for an object store: a temporary one here).
2. Slabs arrive from one end of the scan to the other; each slice is encoded, appended to its shard, and its place remembered.
3. `finish` appends the indexes, writes the array documents, then the case's own group document.
4. One rename moves the folder into ``scans.zarr``; in an object store the group document is uploaded last. A case is
   there whole or not at all.

Slices lie in the shard in the order of z or against it, never mixed, so that a window of neighbors is one range of bytes.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
import numpy.typing as npt

from slicemill.common.errors import StoreError
from slicemill.common.files import Location, parse_location, to_json, write_json
from slicemill.common.locks import CLAIMS, try_claim
from slicemill.common.remote import RemotePath
from slicemill.store.case import CaseInfo
from slicemill.store.layout import (
    ABSENT,
    ATTRIBUTE,
    CRC_BYTES,
    DOCUMENT,
    GROUP,
    PARTIAL,
    SHARD,
    ArrayName,
    ProfileName,
    array_document,
    check_case_id,
    codec_of,
    group_document,
)

SLABS_IN_FLIGHT = 2
"""Slabs whose slices may be encoded at the same time, so that no thread waits at the end of one."""
Encoding = list[tuple[int, "Future[bytes]"]]
"""Slices of a slab with what will be their bytes, in the order of the shard."""


def with_checksum(data: bytes) -> bytes:
    """Append the crc32c, 4 bytes little endian."""
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


class ShardWriter:
    """One shard being written: encoded slices, then the index."""

    def __init__(self, path: Path, slices: int) -> None:
        path.parent.mkdir(parents=True)
        self._file = path.open("xb")
        self._index = np.full((slices, 2), ABSENT, dtype="<u8")
        self._offset = 0
        self._checksums = np.zeros(slices, dtype="<u4")

    def append(self, z: int, data: bytes) -> None:
        """Append the encoded slice at `z` and its checksum."""
        self._checksums[z] = google_crc32c.value(data)
        self._file.write(data)
        self._file.write(self._checksums[z].tobytes())
        self._index[z] = self._offset, len(data) + CRC_BYTES
        self._offset += len(data) + CRC_BYTES

    def fingerprint(self) -> str:
        """Return what is equal for equal slices: a SHA-256 of their checksums in order of z."""
        return hashlib.sha256(self._checksums.tobytes()).hexdigest()

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

    def __init__(
        self,
        store: str | Location,
        case_id: str,
        shape: tuple[int, int, int],
        *,
        has_mask: bool,
        profile: ProfileName = "compact",
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        """Begin a case of `shape` [z, y, x]; with a pool, the slices of a slab are encoded side by side."""
        root = parse_location(store)
        self._final = root / GROUP / check_case_id(case_id)
        self.folder = partial_folder(root, case_id)
        """Where the case lies until it is whole; what must be put aside on the way may lie there too."""
        self._stack = contextlib.ExitStack()
        if isinstance(root, RemotePath):
            self._stack.enter_context(try_claim(temporary_root(), self.folder.name))
        self._shape = shape
        self._profile = profile
        self._pool = pool
        names: tuple[ArrayName, ...] = ("image", "label") if has_mask else ("image",)
        self._shards = {name: ShardWriter(self.folder / name / SHARD, shape[0]) for name in names}
        self._pending: dict[ArrayName, deque[Encoding]] = {name: deque() for name in names}
        self._encode = {name: codec_of(profile, name, shape[1] * shape[2]).encode for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for waiting in self._pending.values():
            for _, data in (encoding for encodings in waiting for encoding in encodings):
                data.cancel()
        for shard in self._shards.values():
            shard.abandon()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._stack.close()

    def write(self, name: ArrayName, z: int, slab: npt.NDArray[Any], *, downwards: bool = False) -> None:
        """Write the slices of `slab`: any[z, y, x] from index `z` on; `downwards` where the next slab lies below this one.

        With a pool the slab must stay as it is until SLABS_IN_FLIGHT more were written, or the case is finished.
        """
        order = range(len(slab))[::-1] if downwards else range(len(slab))
        if self._pool is None:
            for offset in order:
                self._shards[name].append(z + offset, self._encode[name](slab[offset]))
            return
        pending = self._pending[name]
        pending.append([(z + offset, self._pool.submit(self._encode[name], slab[offset])) for offset in order])
        while len(pending) > SLABS_IN_FLIGHT:
            self._append(name, pending.popleft())

    def _append(self, name: ArrayName, encodings: "Encoding") -> None:
        for z, data in encodings:
            self._shards[name].append(z, data.result())

    def finish(self, info: CaseInfo, still_ours: Callable[[], bool] = lambda: True) -> CaseInfo:
        """Complete the case and show it, in the place of an older one of the same id; return what is known of it now.

        Raises
        ------
        OSError
            It is no longer ours to show: another run took the case over.
        """
        names: tuple[ArrayName, ...] = ("image", "label")
        for name in names:
            if name in self._shards:
                while self._pending[name]:
                    self._append(name, self._pending[name].popleft())
                self._shards[name].finish()
                write_json(self.folder / name / DOCUMENT, array_document(name, self._shape, self._profile))
        info = replace(info, fingerprint=self._shards["image"].fingerprint())
        (self.folder / DOCUMENT).write_text(to_json(group_document({ATTRIBUTE: info.as_json()})), encoding="utf-8")
        if isinstance(self._final, RemotePath):
            upload_folder(self.folder, self._final, still_ours)
        else:
            replace_folder(self.folder, self._final)
        return info


def partial_folder(root: Location, case_id: str) -> Path:
    """Make and return a folder of this machine for a case that is not whole yet."""
    local = temporary_root() if isinstance(root, RemotePath) else root
    folder = local / PARTIAL / f"{case_id}.{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    return folder


def temporary_root() -> Path:
    """Return where cases lie on their way to an object store."""
    return Path(tempfile.gettempdir()) / f"slicemill-{os.getuid()}"


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


def upload_folder(new: Path, final: RemotePath, still_ours: Callable[[], bool]) -> None:
    """Upload a case: first its older group document goes, so that nobody reads half of each, then arrays, then the new one."""
    check_claim(final, still_ours)
    (final / DOCUMENT).unlink(missing_ok=True)
    parts = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    for stale, _ in list(final.files()):
        if stale.relative_to(final).as_posix() not in parts:
            stale.unlink(missing_ok=True)
    for part in [*(part for part in parts if part != DOCUMENT), DOCUMENT]:
        check_claim(final, still_ours)
        (final / part).upload(new / part)


def check_claim(final: RemotePath, still_ours: Callable[[], bool]) -> None:
    """Raise an OSError when another run took the case over because this one was held up for too long."""
    if not still_ours():
        raise OSError(
            errno.ESTALE, "another run took this case over while this one was held up; it is left to that", str(final)
        )


def prepare_store(store: str | Location) -> Location:
    """Make the folder and the Zarr group of a store, if they are not there yet, and return its place."""
    root = parse_location(store)
    if isinstance(root, Path) and root.exists() and not root.is_dir():
        raise StoreError(f"{root}: a store is a folder; this is a file. Choose another name.")
    try:
        document = root / GROUP / DOCUMENT
        if not document.is_file():
            write_json(document, group_document({}))
    except OSError as error:
        raise StoreError(f"{root}: cannot be written: {error.strerror}.") from error
    return root


def remove_partial(root: Location) -> None:
    """Clear up after killed runs: put back a case that was just being replaced, remove those that are not whole.

    What a run that is alive is writing is claimed, and left alone.
    """
    if isinstance(root, RemotePath):
        local = temporary_root()
        for folder in (local / PARTIAL).glob("*"):
            with try_claim(local, folder.name) as ours:
                if ours:
                    shutil.rmtree(folder, ignore_errors=True)
                    (local / CLAIMS / folder.name).unlink(missing_ok=True)
        return
    for folder in (root / PARTIAL).glob("*"):
        case_id = folder.name.removesuffix(".old").rpartition(".")[0]
        with try_claim(root, case_id or folder.name) as ours:
            if not ours or not folder.exists():
                continue
            final = root / GROUP / case_id
            if folder.name.endswith(".old") and not final.exists():
                folder.rename(final)
            else:
                shutil.rmtree(folder, ignore_errors=True)
