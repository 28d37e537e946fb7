"""Who is working on what: a case is claimed before it is written, so that no two runs write it at the same time.

1. On a disk a claim is a lock on a small file (flock). The system drops it when its holder dies, however it dies, on
   this machine and, over NFS, on others: there is nothing to clear up and nothing to guess.
2. In an object store a claim is an object that is written only where none is, and written again every `BEAT_SECONDS`.
   When it has not been for `STALE_SECONDS`, by the object store's own clock, its holder is dead, and the first to
   swap it for its own takes the claim over.
"""

import contextlib
import errno
import fcntl
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from store.errors import StoreError
from store.files import Place, to_json
from store.layout import CLAIMS
from store.remote import Remote

BEAT_SECONDS = 15.0
STALE_SECONDS = 90.0
"""Six beats: a holder that is alive does not miss them all."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def claimed(root: Place, name: str) -> Iterator[bool]:
    """Yield whether the claim of `name` could be had; while the block runs nobody else has it.

    Raises
    ------
    StoreError
        The file system knows no locks.
    """
    place = root / CLAIMS / name
    with _leased(place) if isinstance(place, Remote) else _locked(place) as ours:
        yield ours


@contextlib.contextmanager
def claimed_in_turn(root: Place, name: str, *, every: float = 0.2) -> Iterator[None]:
    """Wait until the claim of `name` can be had, and hold it while the block runs."""
    while True:
        with claimed(root, name) as ours:
            if ours:
                yield
                return
        time.sleep(every)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    descriptor = _lock(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """Return an open file that holds the lock, or None when someone else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our opening and our locking it.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                raise StoreError(
                    f"{path.parent}: the file system has no locks (flock); mount it with them, or keep the store elsewhere."
                ) from error
            raise
        os.close(descriptor)


@contextlib.contextmanager
def _leased(place: Remote) -> Iterator[bool]:
    lease = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex}"
    if not (place.create(_written(lease)) or _took_over(place, lease)):
        yield False
        return
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(place, lease, done), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        done.set()
        beat.join()
        if _holder(place) == lease:
            place.unlink(missing_ok=True)


def _written(lease: str) -> bytes:
    return to_json({"holder": lease, "beat": uuid.uuid4().hex}).encode()


def _holder(place: Remote) -> str | None:
    import json

    try:
        return str(json.loads(place.read_bytes())["holder"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _took_over(place: Remote, lease: str) -> bool:
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
    return place.replace_if(_written(lease), seen.e_tag)


def _beat(place: Remote, lease: str, done: threading.Event) -> None:
    """Write the claim again and again, until it is given back or someone else has it."""
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a beat may be missed; the next one comes
            seen = place.stat()
            if _holder(place) != lease or not place.replace_if(_written(lease), seen.e_tag):
                return
