"""A volume in an unnamed temporary file, written in slabs of slices and read in sections of three planes.

The system removes the file when it is closed, and also when the process is killed. Sections are read through a
read-only map, whose pages are given back after each one, so that memory does not grow with the volume. The file is
written with `os.pwrite`: a full disk is then an error, and not the end of the process.
"""

import mmap
import os
import tempfile
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.ct.formats.nifti.stream import view_bytes
from slicemill.ct.transpose import write_all
from slicemill.web.sections import Plane, cut_section

BLOCK = 16
"""Slices whose pages are in memory at a time."""


class VoxelFile:
    """A volume on disk; safe to use from several threads."""

    def __init__(self, shape: tuple[int, int, int], dtype: npt.DTypeLike) -> None:
        """Create a file for a volume of `shape` [z, y, x]."""
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._slice_bytes = shape[1] * shape[2] * self.dtype.itemsize
        with tempfile.TemporaryFile() as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)  # by the last reader, in whatever thread that is
        os.ftruncate(self._descriptor, shape[0] * self._slice_bytes)
        self._map = mmap.mmap(self._descriptor, shape[0] * self._slice_bytes, prot=mmap.PROT_READ)
        self._voxels = np.frombuffer(self._map, dtype=self.dtype).reshape(shape)
        self._is_written = np.zeros(shape[0], dtype=bool)
        self._lock = threading.Lock()

    @property
    def slices_written(self) -> int:
        """Return the number of slices that were written."""
        return int(self._is_written.sum())

    def list_written(self) -> list[int]:
        """Return the indices of the slices that were written."""
        return np.flatnonzero(self._is_written).tolist()

    @property
    def is_complete(self) -> bool:
        """Return whether every slice was written."""
        return bool(self._is_written.all())

    @property
    def first_written(self) -> int | None:
        """Return the index of the first slice that was written; None if there is none."""
        return int(self._is_written.argmax()) if self._is_written.any() else None

    def write(self, z: int, voxels: npt.NDArray[Any]) -> None:
        """Write any[z, y, x] from slice `z` on.

        Raises
        ------
        OSError
            The disk is full.
        """
        data = np.ascontiguousarray(voxels, dtype=self.dtype)
        write_all(self._descriptor, view_bytes(data), z * self._slice_bytes, None)
        self._is_written[z : z + len(data)] = True

    def has(self, plane: Plane, index: int) -> bool:
        """Return whether a section can be read: its slice was written, or, in the other planes, every slice."""
        return bool(self._is_written[index]) if plane == "axial" else self.is_complete

    def read(self, plane: Plane, index: int) -> bytes:
        """Return the voxels of a section in the order of `cut_section`, little endian."""
        if plane == "axial":
            return os.pread(self._descriptor, self._slice_bytes, index * self._slice_bytes)
        section = np.empty(cut_section(self._voxels, plane, index).shape, dtype=self.dtype)
        with self._lock:
            for z in range(0, self.shape[0], BLOCK):
                part = cut_section(self._voxels[z : z + BLOCK], plane, index)
                stop = self.shape[0] - z  # superior is on top
                section[stop - len(part) : stop] = part
                self._map.madvise(mmap.MADV_DONTNEED)
        return section.tobytes()

    def read_slices(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the slices `start` to `stop`, any[z, y, x]."""
        data = os.pread(self._descriptor, (stop - start) * self._slice_bytes, start * self._slice_bytes)
        return np.frombuffer(data, dtype=self.dtype).reshape(-1, *self.shape[1:])
