"""Volumes that are read while they are looked at.

A thread reads the file or the stored case into a `VoxelFile`. Axial slices can be shown as soon as they are there. A
stored case can be read in any order, so its slices are there at once.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, ReadError
from slicemill.common.failures import explain_failure
from slicemill.common.signals import start_helper
from slicemill.ct.scan import Slab
from slicemill.web.sections import AXES, Plane
from slicemill.web.voxel_file import VoxelFile

ReadSlice = Callable[[int], npt.NDArray[Any]]


class NotReadYetError(Exception):
    """A section whose voxels were not read yet."""


@dataclass(frozen=True, kw_only=True)
class VolumeSource:
    """Where a volume comes from."""

    name: str
    """Name of its file or case, for messages."""
    shape: tuple[int, int, int]
    """[z, y, x]."""
    dtype: npt.DTypeLike
    slabs: Callable[[list[str]], Iterator[Slab]]
    """Yields every slice, and appends warnings to the list; reads and checks the whole file."""
    read_slice: ReadSlice | None = None
    """Reads one slice, if slices can be read in any order."""
    has_preliminary: bool = False
    """Whether slices may come twice: they can be shown before the volume is complete, and are marked as preliminary."""


class Volume:
    """A volume that a thread reads; safe to use from several threads."""

    def __init__(self, source: VolumeSource, *, counts_values: bool = False) -> None:
        self.source = source
        self.shape = source.shape
        self.warnings: tuple[str, ...] = ()
        """Warnings about the file; complete when the volume is."""
        self.failure: str | None = None
        """Why the volume cannot be read."""
        self.counts = np.zeros((self.shape[0], 256), dtype=np.int64) if counts_values else None
        """int64[z, value]: voxels of each value in each slice, once the volume is complete."""
        self._is_read = False
        self._is_stopped = threading.Event()
        self._voxels = VoxelFile(source.shape, source.dtype)
        start_helper(self._read_all)

    @property
    def is_complete(self) -> bool:
        """Return whether the whole file was read and checked without an error."""
        return self._is_read

    @property
    def slices_read(self) -> int:
        """Return the number of slices that were read."""
        return self._voxels.slices_written

    @property
    def preliminary(self) -> tuple[int, ...]:
        """Return the axial slices that can be shown before the volume is complete."""
        is_wanted = self.source.has_preliminary and not self._is_read and self.failure is None
        return tuple(self._voxels.list_written()) if is_wanted else ()

    @property
    def first_slice(self) -> int | None:
        """Return the index of a slice that can be shown; None if there is none yet."""
        if self.source.read_slice is not None:
            return self.shape[0] // 2
        return self._voxels.first_written

    def stop(self) -> None:
        """Let the thread end before the next slab; sections that were read stay readable."""
        self._is_stopped.set()

    def read_section(self, plane: Plane, index: int) -> bytes:
        """Return the voxels of a section, little endian, in the order of `slicemill.web.sections.cut_section`.

        Raises
        ------
        IndexError
            There is no such section.
        NotReadYetError
            The section was not read yet.
        ReadError
            The volume cannot be read.
        """
        if not 0 <= index < self.shape[AXES[plane]]:
            raise IndexError(f"section {index} of {self.shape[AXES[plane]]}")
        if self.failure is not None:
            raise ReadError(self.failure)
        if not self._voxels.has(plane, index):
            if plane != "axial" or self.source.read_slice is None:
                raise NotReadYetError
            try:
                data = self.source.read_slice(index)
            except (InputError, OSError) as error:
                self.failure = explain_failure(error, self.source.name).reason
                raise ReadError(self.failure) from error
            self._voxels.write(index, data[np.newaxis])
        return self._voxels.read(plane, index)

    def iter_slabs(self, depth: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield z and any[z, y, x] of the complete volume."""
        for z in range(0, self.shape[0], depth):
            yield z, self._voxels.read_slices(z, min(z + depth, self.shape[0]))

    def read_slices(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return any[z, y, x] of slices of the complete volume."""
        return self._voxels.read_slices(start, stop)

    def _read_all(self) -> None:
        warnings: list[str] = []
        try:
            for slab in self.source.slabs(warnings):
                if self._is_stopped.is_set():
                    return
                if self.counts is not None:
                    for offset, values in enumerate(slab.voxels):
                        self.counts[slab.z + offset] = np.bincount(values.ravel(), minlength=256)
                self._voxels.write(slab.z, slab.voxels)
            self.warnings = tuple(warnings)
            self._is_read = True
        except Exception as error:  # noqa: BLE001 (any error is shown beside the volume, and the next case works)
            self.failure = explain_failure(error, self.source.name).reason
