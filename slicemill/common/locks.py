"""Claims: a case is claimed before it is written, so that no two runs write it at the same time.

1. On a disk, a claim is a lock on a small file (flock). The system releases it when its process ends for any reason,
   also over NFS. The file is never removed. Otherwise a process that waits for the removed file and one that creates
   it again would both get the claim. The holder writes its name into the file and renews the file's time every
   `BEAT_SECONDS`. The system keeps the lock of a stopped process, so those that wait give up after `STALE_SECONDS`
   without a renewal, and name the holder.
2. In an object store, a claim is a lease: an object that is created only if it does not exist, and is renewed every
   `BEAT_SECONDS`. A lease that is older than `STALE_SECONDS` by the object store's own clock has lost its holder, and
   the first run that replaces it takes the claim over. A holder that was only delayed calls `Claim.held` before it
   publishes a result.
"""

import contextlib
import errno
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import InputError, StoreError
from slicemill.common.files import Location, parse_json_object, read_start, to_json
from slicemill.common.remote import RemotePath
from slicemill.common.signals import is_stopping, start_helper
from slicemill.common.terminal import print_message

CLAIMS = ".claims"
"""Folder of the claims of cases that are being written."""
BEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
"""Longer than a renewal whose three requests are each retried for a minute (`slicemill.common.remote.RETRIES`)."""
QUIET_SECONDS, REPORT_SECONDS = 2.0, 60.0
"""How long a wait is silent, and how often it is reported after that."""
HOLDER_BYTES = 256
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
    """Wait for the claim of `name`, trying again after `every` seconds, and hold it while the block runs.

    A wait of more than QUIET_SECONDS is reported on standard error. Ctrl-C and SIGTERM end it, in any thread.

    Raises
    ------
    StoreError
        The holder did not renew its claim for STALE_SECONDS: it was stopped, or its computer froze.
    KeyboardInterrupt
        The command is ending.
    """
    wait = ClaimWait(root, name)
    while True:
        with try_claim(root, name) as claim:
            if claim:
                yield
                return
        wait.check()
        time.sleep(every)
        if is_stopping():
            raise KeyboardInterrupt


class ClaimWait:
    """A wait for a claim of `name` that another process holds."""

    def __init__(self, root: Location, name: str) -> None:
        self._place = root / CLAIMS / name
        self._start = self._renewed = time.monotonic()
        self._next_report = self._start + QUIET_SECONDS
        self._beat: object = None

    def check(self, *, report: bool = True) -> bool:
        """Check the holder if the wait is long, report the wait unless `report` is false, and return whether it did.

        Raises
        ------
        StoreError
            The holder of a lock on a disk is stopped. A stale lease is taken over.
        """
        now = time.monotonic()
        if now < self._next_report:
            return False
        self._next_report = now + REPORT_SECONDS
        beat = _read_beat(self._place)
        if beat != self._beat:
            self._beat, self._renewed = beat, now
        silent = now - self._renewed
        holder = _describe_holder(self._place)
        if silent > STALE_SECONDS and not isinstance(self._place, RemotePath):
            raise StoreError(
                f"is locked by {holder}, which has not answered for {silent:.0f} s; it is stopped, or "
                "its computer froze. Continue or end that process, and run the same command again.",
                where=self._place,
            )
        if report:
            print_message(
                f"waiting for {holder}, which holds {self._place}, for {now - self._start:.0f} s; Ctrl-C ends the wait"
            )
        return report


def _read_beat(place: Location) -> object:
    """Return a mark that changes when the holder renews its claim."""
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return None


def _describe_holder(place: Location) -> str:
    """Return the process that holds a claim, as it named itself."""
    holder = ""
    with contextlib.suppress(OSError):
        if isinstance(place, RemotePath):
            holder = _read_holder(place) or ""
        else:
            holder = read_start(place, HOLDER_BYTES).decode(errors="replace").strip()
    return holder or "another process"


@contextlib.contextmanager
def _locked_file(path: Path) -> Iterator[Claim | None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor, path):
            yield None
            return
        with _renewed(descriptor):
            yield Claim(path)
    finally:
        os.close(descriptor)  # releases the lock: no other descriptor of this process shares it


@contextlib.contextmanager
def _renewed(descriptor: int) -> Iterator[None]:
    """Name this process in a locked file, and renew the file's time while the block runs; empty it at the end."""
    name = f"process {os.getpid()} on {platform.node()}\n".encode()[:HOLDER_BYTES]
    done = threading.Event()

    def renew() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    with contextlib.suppress(OSError):  # on a full disk the holder has no name, but the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, name, 0)
    renewal = start_helper(renew)
    try:
        yield
    finally:
        done.set()
        renewal.join()
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)


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
    renewal = start_helper(lambda: _renew(place, lease, done))
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
        return str(parse_json_object(place.read_bytes(), place)["holder"])
    except (FileNotFoundError, InputError, KeyError):
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
