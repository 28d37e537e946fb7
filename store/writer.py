"""Writes a case slice by slice into shards, and publishes it when it is complete.

1. `CaseWriter` makes a folder in ``.partial``, which readers ignore. For an object store the folder is local.
2. Slabs arrive from one end of the scan to the other. Each slice is encoded and appended to its shard, and its offset
   and length are noted.
3. `finish` appends the indexes, writes the array documents, and last the case's group document.
4. One rename moves the folder into ``scans.zarr``. In an object store the group document is uploaded last. Either way
   readers see the complete case or nothing.

Slices are stored in ascending or in descending order of z, so neighboring slices form one byte range.
"""

import contextlib
import errno
import hashlib
import itertools
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
from slicemill.common.files import Location, parse_location, to_json, write_bytes, write_json
from slicemill.common.locks import CLAIMS, try_claim
from slicemill.common.remote import RemotePath
from slicemill.store.candidates import write_candidates
from slicemill.store.case import CaseInfo
from slicemill.store.codecs import CRC_BYTES, make_codec, with_checksum
from slicemill.store.layout import (
    ABSENT,
    ARRAY_PATHS,
    ATTRIBUTE,
    DOCUMENT,
    FORMAT,
    GROUP,
    PARTIAL,
    SHARD,
    ArrayName,
    ProfileName,
    check_case_id,
)
from slicemill.store.ome_zarr import describe_image, list_label_groups
from slicemill.store.zarr_documents import make_array_document, make_group_document

SLABS_IN_FLIGHT = 2
"""Slabs that may be encoded at the same time, so that no thread is idle at the end of a slab."""
EncodingSlab = list[tuple[int, "Future[bytes]"]]
"""The slices of a slab, in the order of the shard: z, and the future of the encoded bytes."""


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
        """Return the SHA-256 of the slices' checksums in order of z. Equal slices have equal fingerprints."""
        return hashlib.sha256(self._checksums.tobytes()).hexdigest()

    def finish(self) -> None:
        """Append the index and close the file.

        Raises
        ------
        StoreError
            A slice was never written.
        """
        missing = np.flatnonzero(self._index[:, 0] == ABSENT)
        if len(missing):
            raise StoreError(f"{len(missing)} slices were never written, the first at z={missing[0]}.")
        self._file.write(with_checksum(self._index.tobytes()))
        self._file.close()

    def abandon(self) -> None:
        """Close the file without an index. Errors of a full disk are ignored, because the shard is discarded."""
        with contextlib.suppress(OSError):
            self._file.close()


class CaseWriter:
    """One case being written. Its files are removed unless `finish` completes."""

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
        """Start a case of `shape` [z, y, x]. With a pool, the slices of a slab are encoded in parallel."""
        root = parse_location(store)
        self._final = root / GROUP / check_case_id(case_id)
        self.folder = make_partial_folder(root, case_id)
        """Local folder of the incomplete case; the conversion may put temporary files there."""
        self._stack = contextlib.ExitStack()
        if isinstance(root, RemotePath):
            self._stack.enter_context(try_claim(local_root(), self.folder.name))
        self._shape = shape
        self._profile = profile
        self._pool = pool
        names: tuple[ArrayName, ...] = ("image", "label") if has_mask else ("image",)
        self._paths = {name: self.folder / ARRAY_PATHS[FORMAT][name] for name in names}
        self._shards = {name: ShardWriter(self._paths[name] / SHARD, shape[0]) for name in names}
        self._pending: dict[ArrayName, deque[EncodingSlab]] = {name: deque() for name in names}
        self._encode = {name: make_codec(profile, name, shape[1] * shape[2]).encode for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slabs in self._pending.values():
            for _, data in itertools.chain.from_iterable(slabs):
                data.cancel()
        for shard in self._shards.values():
            shard.abandon()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._stack.close()

    def write(self, name: ArrayName, z: int, slab: npt.NDArray[Any], *, downwards: bool = False) -> None:
        """Write the slices of `slab`, any[z, y, x], from index `z` on; `downwards` if the next slab has lower z.

        With a pool, do not modify the slab until SLABS_IN_FLIGHT more were written or the case is finished.
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

    def _append(self, name: ArrayName, slab: EncodingSlab) -> None:
        for z, data in slab:
            self._shards[name].append(z, data.result())

    def finish(
        self,
        info: CaseInfo,
        holds_claim: Callable[[], bool] = lambda: True,
        candidates: npt.NDArray[np.float64] | None = None,
    ) -> CaseInfo:
        """Complete the case, publish it, and replace an older one of the same id; return `info` with the fingerprint.

        `candidates` are its candidates, float64[n, 7] (`slicemill.store.candidates`), if it has a table of them.

        Raises
        ------
        StoreError
            A slice was never written.
        OSError
            `holds_claim` returned False: another run has taken over the case.
        """
        for name, shard in self._shards.items():
            while self._pending[name]:
                self._append(name, self._pending[name].popleft())
            shard.finish()
            write_json(self._paths[name] / DOCUMENT, make_array_document(name, self._shape, self._profile))
        info = replace(info, fingerprint=self._shards["image"].fingerprint())
        if candidates is not None:
            write_candidates(self.folder, candidates)
        write_group_documents(self.folder, info)
        if isinstance(self._final, RemotePath):
            upload_folder(self.folder, self._final, holds_claim)
        else:
            replace_folder(self.folder, self._final)
        return info


def write_group_documents(folder: Location, info: CaseInfo) -> None:
    """Write the group documents of a case: those of its segmentation, and last the case's own."""
    for name, attributes in list_label_groups(info).items():
        write_bytes(folder / name / DOCUMENT, to_json(make_group_document(attributes)).encode())
    attributes = {**describe_image(info), ATTRIBUTE: info.as_json()}
    write_bytes(folder / DOCUMENT, to_json(make_group_document(attributes)).encode())


def make_partial_folder(root: Location, case_id: str) -> Path:
    """Create a local folder for a case that is being written, and return its path."""
    local = local_root() if isinstance(root, RemotePath) else root
    folder = local / PARTIAL / f"{case_id}.{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    return folder


def local_root() -> Path:
    """Return the local folder of cases that are written to an object store."""
    return Path(tempfile.gettempdir()) / f"slicemill-{os.getuid()}"


def replace_folder(new: Path, final: Path) -> None:
    """Move the folder `new` to `final`. An older folder is renamed first, and removed last."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = new.with_name(new.name + ".old")
        final.rename(old)
        new.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(final)


def upload_folder(new: Path, final: RemotePath, holds_claim: Callable[[], bool]) -> None:
    """Upload a case: delete the older group document, upload the arrays, then the new group document.

    Readers ignore a case without a group document, so they never see a mixture of both.
    """
    check_claim(final, holds_claim)
    (final / DOCUMENT).unlink(missing_ok=True)
    names = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    for stale, _ in list(final.files()):
        if stale.relative_to(final).as_posix() not in names:
            stale.unlink(missing_ok=True)
    for name in [*(name for name in names if name != DOCUMENT), DOCUMENT]:
        check_claim(final, holds_claim)
        (final / name).upload(new / name)


def check_claim(final: RemotePath, holds_claim: Callable[[], bool]) -> None:
    """Check that this run still holds the case's claim.

    Raises
    ------
    OSError
        This run was unresponsive, and another run has taken over the case.
    """
    if not holds_claim():
        raise OSError(errno.ESTALE, "this run was unresponsive; another run has taken over the case", str(final))


def prepare_store(store: str | Location) -> Location:
    """Create the folder and the Zarr group of a store if they are missing, and return its location.

    Raises
    ------
    StoreError
        The path is a file, or cannot be written.
    """
    root = parse_location(store)
    if isinstance(root, Path) and root.exists() and not root.is_dir():
        raise StoreError("is a file, but a store is a folder. Choose another name.", where=root)
    try:
        document = root / GROUP / DOCUMENT
        if not document.is_file():
            write_json(document, make_group_document({}))
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror}.", where=root) from error
    return root


def remove_partial(root: Location) -> None:
    """Clean up after killed runs: restore a case that was being replaced, and remove incomplete ones.

    Cases that a running process is writing are claimed, and are not touched.
    """
    if isinstance(root, RemotePath):
        local = local_root()
        for folder in (local / PARTIAL).glob("*"):
            with try_claim(local, folder.name) as claimed:
                if claimed:
                    shutil.rmtree(folder, ignore_errors=True)
                    (local / CLAIMS / folder.name).unlink(missing_ok=True)
        return
    for folder in (root / PARTIAL).glob("*"):
        case_id = folder.name.removesuffix(".old").rpartition(".")[0]
        with try_claim(root, case_id or folder.name) as claimed:
            if not claimed or not folder.exists():
                continue
            final = root / GROUP / case_id
            if folder.name.endswith(".old") and not final.exists():
                folder.rename(final)
            else:
                shutil.rmtree(folder, ignore_errors=True)
