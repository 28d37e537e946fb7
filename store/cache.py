"""A cache of encoded slices from an object store: one local file of limited size.

Slices are never evicted. Training reads all slices about equally often, so the hit rate is the share of the store that
fits, whichever slices are cached. The reader checks the checksums of cached slices too.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


class SliceCache:
    """A cache for one process. Its file is unlinked, so the system deletes it when the process ends."""

    def __init__(self, folder: Path | None, limit_bytes: int) -> None:
        """Create an empty cache of at most `limit_bytes` in `folder`, by default the folder for temporary files."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            self._descriptor = os.dup(file.fileno())
        self._limit = limit_bytes
        self._entries: dict[tuple[str, int], tuple[int, int]] = {}
        """Shard and z to offset and length in the file."""
        self._end = 0
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def get(self, shard: str, z: int, fetch: Callable[[], bytes]) -> bytes:
        """Return the bytes of a slice from the cache, or else from `fetch`, and cache them if they fit."""
        entry = self._entries.get((shard, z))
        if entry is not None:
            self.hits += 1
            offset, length = entry
            return os.pread(self._descriptor, length, offset)
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
            self._limit = 0  # the disk is full: keep the cached slices, and cache no more
            return data
        self._entries[shard, z] = (offset, len(data))
        return data
