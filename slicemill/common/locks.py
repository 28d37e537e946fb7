"""Who is working on what: a case is claimed before it is written, so that no two runs write it at the same time.

1. On a disk a claim is a lock on a small file (flock). The system drops it when its holder dies, however it dies, on
   this machine and, over NFS, on others: there is nothing to guess. The empty file stays, since a lock on a file that
   someone removed would keep nobody out.
2. In an object store a claim is an object that is written only where none is, and written again every `BEAT_SECONDS`.
   When it has not been for `STALE_SECONDS`, by the object store's own clock, its holder is dead, and the first to
   swap it for its own takes the claim over. A holder that was only held up asks `held` before it shows anything.
"""

import contextlib
import errno
import fcntl
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
"""Longer than a beat whose three requests are all tried for a minute (`slicemill.common.remote.RETRIES`)."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was had."""

    place: Location
    lease: str = ""
    """What stands in the object of a claim in an object store; empty for a lock."""

    def held(self) -> bool:
        """Return whether it is still ours: a lock always is, a lease can be taken over while its holder is held up."""
        return not isinstance(self.place, RemotePath) or _holder(self.place) == self.lease


@contextlib.contextmanager
def try_claim(root: Location, name: str) -> Iterator[Claim | None]:
    """Yield the claim of `name`, which nobody else has while the block runs; None when someone else has it.

    Raises
    ------
    StoreError
        The file system knows no locks.
    """
    place = root / CLAIMS / name
    with _leased(place) if isinstance(place, RemotePath) else _locked(place) as claim:
        yield claim


@contextlib.contextmanager
def wait_for_claim(root: Location, name: str, *, every: float = 0.2) -> Iterator[None]:
    """Wait until the claim of `name` can be had, and hold it while the block runs."""
    while True:
        with try_claim(root, name) as ours:
            if ours:
                yield
                return
        time.sleep(every)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Claim | None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield Claim(path) if _lock(descriptor, path) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise StoreError(
                f"{path.parent}: the file system has no locks (flock); mount it with them, or keep the store elsewhere."
            ) from error
        raise
    return True


@contextlib.contextmanager
def _leased(place: RemotePath) -> Iterator[Claim | None]:
    lease = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex}"
    if not (place.create(_written(lease)) or _took_over(place, lease)):
        yield None
        return
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(place, lease, done), daemon=True)
    beat.start()
    try:
        yield Claim(place, lease)
    finally:
        done.set()
        beat.join()
        if _holder(place) == lease:
            place.unlink(missing_ok=True)


def _written(lease: str) -> bytes:
    return to_json({"holder": lease, "beat": uuid.uuid4().hex}).encode()


def _holder(place: RemotePath) -> str | None:
    try:
        return str(json.loads(place.read_bytes())["holder"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _took_over(place: RemotePath, lease: str) -> bool:
    """Return whether the claim that is there was dead and is ours now."""
    try:
        seen = place.stat()
    except FileNotFoundError:
        return place.create(_written(lease))
    probe = place.with_name(f".clock.{lease}")
    probe.write_bytes(b"")
    now = probe.stat()
    probe.unlink(missing_ok=True)
    if (now.st_mtime_ns - seen.st_mtime_ns) / 1e9 < STALE_SECONDS:
        return False
    return place.replace_if(_written(lease), seen)


def _beat(place: RemotePath, lease: str, done: threading.Event) -> None:
    """Write the claim again and again, until it is given back or someone else has it."""
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a beat may be missed; the next one comes
            seen = place.stat()
            if _holder(place) != lease or not place.replace_if(_written(lease), seen):
                return
