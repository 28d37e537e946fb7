"""Scan queue: passes scans from reader threads to network threads within a memory limit, without deadlocks.

1. A reader that has read a scan's header requests its memory (`reserve_memory`) and waits until that much is free.
2. The loaded scan is appended to the queue (`add`). `take` cuts the queue into batches across scans.
3. A full batch is returned at once. A batch that is not full waits while a reader is busy. When all readers have ended,
   or wait for memory that only finished scans can release, what is left is divided among the lanes of a processor, so
   that none of them idles.
4. A scan whose slices are chosen by the labels of others (`NetworkScan.search`) is added again and again, until it is
   `finish`ed. The queue does not end before.
5. The memory is released (`release`) when the scan's mask is written or the scan has failed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slicemill.common.errors import ReadError
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.batches import Batcher, NetworkBatch, NetworkScan

AHEAD = 256
"""Waiting slices at which readers pause: on a CPU, more would only fill the memory."""
AHEAD_BATCHES = 32
"""The same limit in batches, for devices with large batches; the larger limit counts."""
SMALLEST_SHARE = 8
"""Part of a full batch, an eighth, below which what is left is not divided further. Not tuned."""
LINGER_SECONDS = 0.05
"""How long a batch that is not full waits when no reader is busy, but something may still come: readers are briefly not
busy between scans, and a scan may ask for more slices once those in the network are labeled."""


class Stopped(Exception):  # noqa: N818 (not an error: the run is ending)
    """The run is ending; no more work is accepted."""


class ScanQueue:
    """Scans that wait for the network, and the memory of scans in progress."""

    def __init__(self, capacity: Capacity, memory_bytes: int, *, sharers: int = 1) -> None:
        """Take `sharers`: the number of batches among which the last slices are divided."""
        self._batcher = Batcher(capacity)
        self._labels = capacity.labels
        self._sharers = sharers
        self._ahead = max(AHEAD, AHEAD_BATCHES * capacity.labels)
        self._memory_bytes = memory_bytes
        self._reserved_bytes = 0
        self._readers = 0
        self._busy = 0
        self._stopped = False
        self._undecided: set[NetworkScan] = set()
        """Scans that may ask for more slices."""
        self._changed = threading.Condition()

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Count a reader while the block runs; the queue ends when it is empty and no reader is left."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count this reader as busy while the block runs: it may add a scan."""
        self._count_busy(1)
        try:
            yield
        finally:
            self._count_busy(-1)

    def _count_busy(self, change: int) -> None:
        with self._changed:
            self._busy += change
            self._changed.notify_all()

    def reserve_memory(self, amount_bytes: int) -> None:
        """Reserve memory for a scan, waiting until it is free; call it within `busy`.

        Raises
        ------
        ReadError
            The scan needs more than all scans may take; a run with another limit may segment it.
        Stopped
            The run is ending.
        """
        if amount_bytes > self._memory_bytes:
            raise ReadError(
                f"needs about {amount_bytes / 2**30:.2f} GiB of memory, more than the "
                f"{self._memory_bytes / 2**30:.2f} GiB that scans may take; raise --max-memory."
            )
        with self._changed:
            self._busy -= 1  # a reader that waits here cannot add to a batch
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._has_room(amount_bytes))
            self._busy += 1
            if self._stopped:
                raise Stopped
            self._reserved_bytes += amount_bytes

    def _has_room(self, amount_bytes: int) -> bool:
        return self._reserved_bytes + amount_bytes <= self._memory_bytes and self._batcher.waiting < self._ahead

    def release(self, amount_bytes: int) -> None:
        """Release a scan's memory."""
        with self._changed:
            self._reserved_bytes -= amount_bytes
            self._changed.notify_all()

    def add(self, scan: NetworkScan) -> None:
        """Append a loaded scan to the queue, or the further slices that it asks for."""
        with self._changed:
            if scan.search is not None:
                self._undecided.add(scan)
            self._batcher.add(scan)
            self._changed.notify_all()

    def finish(self, scan: NetworkScan) -> None:
        """Note that a scan asks for no more slices."""
        with self._changed:
            self._undecided.discard(scan)
            self._changed.notify_all()

    def drop(self, scan: NetworkScan) -> None:
        """Remove a scan from the queue."""
        self.finish(scan)
        with self._changed:
            self._batcher.drop(scan)

    def take(self) -> NetworkBatch | None:
        """Wait for the next batch until it is full or nothing can fill it; return None at the end of the queue."""
        with self._changed:
            while not self._stopped:
                if self._batcher.is_full():
                    return self._next(is_last=not self._busy)
                if self._batcher.waiting and not self._busy:
                    if self._may_grow():
                        self._changed.wait_for(self._may_fill, timeout=LINGER_SECONDS)
                    if self._batcher.waiting and not self._may_fill():
                        return self._next(is_last=True)
                elif not self._batcher.waiting and not self._readers and not self._undecided:
                    return None
                else:
                    self._changed.wait()
            return None

    def _next(self, *, is_last: bool) -> NetworkBatch:
        """Return the next batch; `is_last` divides what waits among the sharers."""
        share = max(-(-self._batcher.waiting // self._sharers), self._labels // SMALLEST_SHARE)
        batch = self._batcher.next(share if is_last else None)
        self._changed.notify_all()
        return batch

    def _may_grow(self) -> bool:
        """Return whether a reader, or a scan none of whose slices waits, may add slices."""
        return self._readers > 0 or not all(map(self._batcher.holds, self._undecided))

    def _may_fill(self) -> bool:
        return self._stopped or self._batcher.is_full() or bool(self._busy) or not self._batcher.waiting

    @property
    def reserved_bytes(self) -> int:
        """Return the memory that is reserved for scans in progress."""
        return self._reserved_bytes

    def stop(self) -> None:
        """End the run: waiting threads continue, and no more batches are returned."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
