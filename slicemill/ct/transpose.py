"""Transposes a volume whose file runs along another axis than z, through a temporary file instead of memory.

In a sagittal or coronal file no slice is complete before the last byte. Its planes are transposed a batch at a time and
written to a temporary file in which each slice is contiguous; then the slices are read from it in order.

1. A batch of planes ``[k, j, i]`` is transposed so that the patient's z comes first.
2. For each z, its part of the batch is written after those of earlier batches; slice z starts at ``z * slice_bytes``.
3. A slab of slices is one read.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slicemill.common.files import name_file
from slicemill.ct.formats.nifti.stream import view_bytes


class AxisTranspose:
    """A transposed volume in an unnamed temporary file, which the system removes when it is closed."""

    def __init__(self, folder: Path | None, shape: tuple[int, int, int], axis: int, dtype: npt.DTypeLike) -> None:
        """Create the file for an array of `shape` [k, j, i], whose `axis` (1 or 2) is the patient's z."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._axis = axis
        self._other = 3 - axis
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self.slice_bytes = shape[0] * shape[self._other] * self._dtype.itemsize

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, k: int, planes: npt.NDArray[Any]) -> None:
        """Write the planes any[k, j, i] from index `k` on."""
        transposed = np.ascontiguousarray(planes.transpose(self._axis, 0, self._other))
        start = k * self._shape[self._other] * self._dtype.itemsize
        for z, part in enumerate(transposed):
            write_all(self._file.fileno(), view_bytes(part), z * self.slice_bytes + start, self._folder)

    def slabs(self, depth: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield z and any[z, k, other] in steps of `depth` along the file's axis of z."""
        count = self._shape[self._axis]
        buffer = np.empty((min(depth, count), self._shape[0], self._shape[self._other]), dtype=self._dtype)
        for z in range(0, count, depth):
            slab = buffer[: min(depth, count - z)]
            _read_all(self._file.fileno(), view_bytes(slab), z * self.slice_bytes)
            yield z, slab


def write_all(descriptor: int, data: memoryview, offset: int, folder: Path | None) -> None:
    """Write every byte of `data` at `offset` of a temporary file in `folder`, which errors name."""
    with name_file(folder or Path(tempfile.gettempdir())):
        while data:
            count = os.pwrite(descriptor, data, offset)
            data, offset = data[count:], offset + count


def _read_all(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill `out` with the bytes at `offset`."""
    while out:
        count = os.preadv(descriptor, [out], offset)
        if not count:
            raise OSError(f"a temporary file ended early, {len(out)} bytes are missing")
        out, offset = out[count:], offset + count
