"""Buffer pool: reuse the memory of scans, because the system zeroes fresh pages, which costs time for every voxel.

1. An array of a `BufferPool` is a view of a buffer. Views of the array keep the buffer in use; it is free again when
   the last of them is collected.
2. A free buffer is reused for an array that fills at least 1/SLACK of it. When none fits, all free buffers are released
   first, so that buffers never take much more than the scans in progress.

`slicemill bench infer`, row `host`, measures a run with it.
"""

import math
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

SLACK = 1.25
"""Largest size of a buffer, as a multiple of the array in it."""
LEAST_BYTES = 2**20
"""Smaller arrays are allocated by numpy."""


class BufferPool:
    """Allocates arrays in reused memory; safe to use from several threads."""

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an uninitialized array, like `numpy.empty`."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size < LEAST_BYTES:
            return np.empty(shape, kind)
        buffer = self._reuse(size)
        if buffer is None:
            buffer = np.empty(size, np.uint8)
        lease = _Lease(buffer[:size].view(kind).reshape(shape))
        # append needs no lock: the collector may call it while this thread holds the lock in `_reuse`
        weakref.finalize(lease, self._free.append, buffer).atexit = False
        return np.asarray(lease)

    def _reuse(self, size: int) -> npt.NDArray[np.uint8] | None:
        """Return the smallest free buffer that fits; if none fits, release all and return None."""
        with self._lock:
            fitting = [buffer.nbytes for buffer in self._free if size <= buffer.nbytes <= size * SLACK]
            if not fitting:
                self._free.clear()
                return None
            sizes = [buffer.nbytes for buffer in self._free]
            return self._free.pop(sizes.index(min(fitting)))


class _Lease:
    """Owner of an array in a buffer: numpy keeps it alive as long as the array or a view of it is alive."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.__array_interface__ = array.__array_interface__
