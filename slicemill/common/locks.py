"""Claims: a case is claimed before it is written, so that no two runs write it at the same time.

1. On a disk, a claim is a lock on a small file (flock). The system releases it when its process ends for any reason,
   also over NFS. The empty file is never removed. Otherwise a process that waits for the removed file and one that
   creates it again would both get the claim.
2. In an object store, a claim is a lease: an object that is created only if it does not exist, and is renewed every
   `BEAT_SECONDS`. A lease that is older than `STALE_SECONDS` by the object store's own clock has lost its holder, and
   the first run that replaces it takes the claim over. A holder that was only delayed calls `Claim.held` before it
   publishes a result.
"""

import contextlib
import errno
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import StoreError
from slicemill.common.files import Location, to_json
from slicemill.common.remote import RemotePath

CLAIMS = ".claims"
"""Folder of the claims of cases that are being written."""
BEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
"""Longer than a renewal whose three requests are each retried for a minute (`slicemill.common.remote.RETRIES`)."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that this process holds."""

    place: Location
    """The lock file, or the object of the lease."""
    lease: str = ""
    """Identifier of the holder that the object names; empty for a lock on a disk."""

    def held(self) -> bool:
        """Return whether this process still holds the claim. A lock is never lost; a late lease can be taken over."""
        return not isinstance(self.place, RemotePath) or _read_holder(self.place) == self.lease


@contextlib.contextmanager
def try_claim(root: Location, name: str) -> Iterator[Claim | None]:
    """Yield the claim of `name`, exclusive while the block runs; None when another process holds it.

    Raises
    ------
    StoreError
        The file system has no locks.
    """
    place = root / CLAIMS / name
    with _lease(place) if isinstance(place, RemotePath) else _locked_file(place) as claim:
        yield claim


@contextlib.contextmanager
def wait_for_claim(root: Location, name: str, *, every: float = 0.2) -> Iterator[None]:
    """Wait for the claim of `name`, trying again after `every` seconds, and hold it while the block runs."""
    while True:
        with try_claim(root, name) as claim:
            if claim:
                yield
                return
        time.sleep(every)


@contextlib.contextmanager
def _locked_file(path: Path) -> Iterator[Claim | None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield Claim(path) if _lock(descriptor, path) else None
    finally:
        os.close(descriptor)  # releases the lock: no other descriptor of this process shares it


def _lock(descriptor: int, path: Path) -> bool:
    """Lock an open file and return whether nobody else, in this process or another, holds the lock.

    This is the primitive below `filelock.FileLock`. The class itself can be entered twice by its holder, and replaces
    a missing flock by a marker file that a killed process leaves behind; neither may happen to a claim.
    """
    from filelock import lock_descriptor  # 40 ms

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise StoreError(
                "the file system has no locks (flock). Mount it with locks, or move the store.", where=path.parent
            ) from error
        raise


@contextlib.contextmanager
def _lease(place: RemotePath) -> Iterator[Claim | None]:
    lease = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex}"
    if not (place.create(_lease_document(lease)) or _take_over(place, lease)):
        yield None
        return
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(place, lease, done), daemon=True)
    renewal.start()
    try:
        yield Claim(place, lease)
    finally:
        done.set()
        renewal.join()
        if _read_holder(place) == lease:
            place.unlink(missing_ok=True)


def _lease_document(lease: str) -> bytes:
    return to_json({"holder": lease, "beat": uuid.uuid4().hex}).encode()


def _read_holder(place: RemotePath) -> str | None:
    try:
        return str(json.loads(place.read_bytes())["holder"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _take_over(place: RemotePath, lease: str) -> bool:
    """Replace a stale lease and return whether that succeeded."""
    try:
        seen = place.stat()
    except FileNotFoundError:
        return place.create(_lease_document(lease))
    # a new object has the present time of the object store's clock
    probe = place.with_name(f".clock.{lease}")
    probe.write_bytes(b"")
    now = probe.stat()
    probe.unlink(missing_ok=True)
    if (now.st_mtime_ns - seen.st_mtime_ns) / 1e9 < STALE_SECONDS:
        return False
    return place.replace_if(_lease_document(lease), seen)


def _renew(place: RemotePath, lease: str, done: threading.Event) -> None:
    """Renew a lease until it is released or another process takes it over."""
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a renewal may fail; the next one follows
            seen = place.stat()
            if _read_holder(place) != lease or not place.replace_if(_lease_document(lease), seen):
                return
