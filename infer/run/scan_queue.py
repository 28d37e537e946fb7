"""The line of scans between the threads that read and those that run the network: bounded by memory, never in a deadlock.

1. A reader that has a scan's header asks for its memory (`admit`) and waits until that is free.
2. The scan, read, goes to the end of the line (`add`); `take` cuts the line into batches across scans.
3. A full batch is handed out at once. One that is not full waits for as long as a reader is at work; when all of them are
   done, or wait for memory that only finished scans can give back, it is handed out as it is.
4. The memory is given back (`release`) when the scan's mask was written, or the scan failed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slicemill.common.errors import ReadError
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.batches import Batch, Filler, Scan

AHEAD = 256
"""Slices that wait before readers rest: on a CPU, more would only fill the memory."""
AHEAD_BATCHES = 32
"""The same in batches, where these are large."""
LINGER_SECONDS = 0.05
"""How long a batch that is not full waits when no reader is at work: between two scans, readers are not for a moment."""


class Stopped(Exception):  # noqa: N818 (no error: the run is ending)
    """The run is ending; nothing more is wanted."""


class ScanQueue:
    """Scans that wait for the network, and the memory that they and those behind them hold."""

    def __init__(self, capacity: Capacity, memory_bytes: int) -> None:
        self._filler = Filler(capacity)
        self._ahead = max(AHEAD, AHEAD_BATCHES * capacity.labels)
        self._memory = memory_bytes
        self._held = 0
        self._readers = 0
        self._working = 0
        self._stopped = False
        self._changed = threading.Condition()

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Be a reader while the block runs; the line ends when all scans are taken and no reader is left."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Say that a scan may come from this reader while the block runs."""
        self._set_working(1)
        try:
            yield
        finally:
            self._set_working(-1)

    def _set_working(self, change: int) -> None:
        with self._changed:
            self._working += change
            self._changed.notify_all()

    def admit(self, amount: int) -> None:
        """Take memory for a scan, or wait until it is free; called `at_work`.

        Raises
        ------
        ReadError
            It is more than all that may be taken; another run may have more.
        Stopped
            The run is ending.
        """
        if amount > self._memory:
            raise ReadError(
                f"needs about {amount / 2**30:.2f} GiB of memory, more than the {self._memory / 2**30:.2f} GiB that scans may take; "
                "give more with --max-memory."
            )
        with self._changed:
            self._working -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._has_room(amount))
            self._working += 1
            if self._stopped:
                raise Stopped
            self._held += amount

    def _has_room(self, amount: int) -> bool:
        return self._held + amount <= self._memory and self._filler.waiting < self._ahead

    def release(self, amount: int) -> None:
        """Give a scan's memory back."""
        with self._changed:
            self._held -= amount
            self._changed.notify_all()

    def add(self, scan: Scan) -> None:
        """Put a scan that was read at the end of the line."""
        with self._changed:
            self._filler.add(scan)
            self._changed.notify_all()

    def drop(self, scan: Scan) -> None:
        """Take a scan out of the line."""
        with self._changed:
            self._filler.drop(scan)

    def take(self) -> Batch | None:
        """Return the next batch, as soon as it is full or nothing can fill it; None when the line has ended."""
        with self._changed:
            while not self._stopped:
                if self._filler.is_full():
                    return self._next()
                if self._filler.waiting and not self._working:
                    self._changed.wait_for(self._may_fill, timeout=LINGER_SECONDS)
                    if self._filler.waiting and not self._may_fill():
                        return self._next()
                elif not self._filler.waiting and not self._readers:
                    return None
                else:
                    self._changed.wait()
            return None

    def _next(self) -> Batch:
        batch = self._filler.next()
        self._changed.notify_all()
        return batch

    def _may_fill(self) -> bool:
        return self._stopped or self._filler.is_full() or bool(self._working) or not self._filler.waiting

    @property
    def held(self) -> int:
        """Return how many bytes are taken."""
        return self._held

    def stop(self) -> None:
        """End the run: whoever waits is let go, nothing more is handed out."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
