"""Memory of scans, used again by the scans that follow: fresh pages are zeroed by the system, which costs time for every voxel.

1. An array of a `BufferPool` lies in a block; its views keep that block, and the block is free again when the last of them has gone.
2. A free block is used again for what fills it but for a fifth. When none fits, all that are free are given back first, so that
   blocks never take much more than the scans that are held.

`slicemill bench infer`, row `host`, measures a run with it.
"""

import math
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

SLACK = 1.25
"""A block may be so many times as large as what lies in it."""
LEAST_BYTES = 2**20
"""What is smaller comes from Python's own memory."""


class BufferPool:
    """Arrays in memory that is used again; safe to use from several threads."""

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array as `numpy.empty` does, with whatever stood there before."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size < LEAST_BYTES:
            return np.empty(shape, kind)
        block = self._taken(size)
        if block is None:
            block = np.empty(size, np.uint8)
        lent = _Lent(block[:size].view(kind).reshape(shape))
        # a list's append needs no lock, which the collector could not wait for in the middle of `_taken`
        weakref.finalize(lent, self._free.append, block).atexit = False
        return np.asarray(lent)

    def _taken(self, size: int) -> npt.NDArray[np.uint8] | None:
        with self._lock:
            fitting = [block.nbytes for block in self._free if size <= block.nbytes <= size * SLACK]
            if not fitting:
                self._free.clear()
                return None
            sizes = [block.nbytes for block in self._free]
            return self._free.pop(sizes.index(min(fitting)))


class _Lent:
    """What stands between an array and its block: numpy keeps it alive as long as the array or a view of it lives."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.__array_interface__ = array.__array_interface__
