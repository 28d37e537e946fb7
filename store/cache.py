"""Encoded slices of an object store, kept in one local file up to a limit.

What came first stays: training asks for every slice about equally often, so whichever are kept, the share of slices that
need no request is the share of the store that fits. Slices are checked by their checksum after this, like any others.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


class SliceCache:
    """A cache for one process; its file has no name and is gone with it."""

    def __init__(self, folder: Path | None, limit_bytes: int) -> None:
        """Begin an empty cache in a folder (by default that for temporary files) of at most `limit_bytes`."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            self._descriptor = os.dup(file.fileno())
        self._limit = limit_bytes
        self._places: dict[tuple[str, int], tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def get(self, shard: str, z: int, fetch: Callable[[], bytes]) -> bytes:
        """Return the bytes of a slice: from the cache, else fetched, and kept while there is room."""
        place = self._places.get((shard, z))
        if place is not None:
            self.hits += 1
            return os.pread(self._descriptor, place[1], place[0])
        data = fetch()
        self.misses += 1
        with self._lock:
            offset, self._end = self._end, self._end + len(data)
            if self._end > self._limit:
                self._end = offset
                return data
        try:
            os.pwrite(self._descriptor, data, offset)
        except OSError:
            self._limit = 0  # the disk is full: what is kept stays, nothing more is
            return data
        self._places[shard, z] = (offset, len(data))
        return data
