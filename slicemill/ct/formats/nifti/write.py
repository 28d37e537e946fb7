"""Writes NIfTI volumes whole"""

import io
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip

from slicemill.common.errors import ScanError
from slicemill.common.files import atomic_write
from slicemill.ct.formats.nifti.header import _parse, _shape
from slicemill.ct.formats.nifti.stream import (
    bytes_of,
)
from slicemill.ct.geometry import contiguous

EXTENDER = b"\1\0\0\0"
"""The four bytes behind a header that extensions follow."""
GZIP_LEVEL = 1
"""isal's level 1 is 30x faster than zlib 6 on masks at 1.4x the size (design notes, RUNTIME section 5; `slicemill bench constants`)."""


def write_volume(
    path: Path, header: bytes, dtype: npt.DTypeLike, voxels: Iterable[npt.NDArray[Any]], *, slope: float = 1.0
) -> None:
    """Write voxels on the grid of the file whose `header` is given, whole or not at all; gzip when the name says so.

    Parameters
    ----------
    header
        The bytes of a file from its first to its last header byte, with its extensions where it has any: everything is
        kept bit for bit but the voxels' type, scaling and place (and the display range, where the voxels are labels).
    dtype
        int16 for HU, uint8 for label values and probabilities.
    voxels
        Slices any[j, i] or slabs any[k, j, i] in the file's own axis order (`Grid.to_file`); a volume any[k, j, i] is
        its own slices. Only one is held at a time.
    slope
        What a reader multiplies the stored numbers by.

    Raises
    ------
    ScanError
        The header is damaged, or the voxels are not as many as it says.
    """
    fields = _parse(header, path)[1]
    kind = np.dtype(dtype).newbyteorder(fields.endianness)
    fields.set_data_dtype(np.dtype(dtype))
    fields["magic"] = fields.single_magic  # of a pair, too, one file is made
    fields["scl_slope"], fields["scl_inter"] = slope, 0
    if kind.itemsize == 1:
        fields["cal_max"] = fields["cal_min"] = 0
    extensions = _with_extender(header[len(fields.binaryblock) :])
    fields["vox_offset"] = len(fields.binaryblock) + len(extensions)
    expected, written = math.prod(_shape(fields, path)), 0
    with atomic_write(path) as aside, aside.open("wb") as file, _compressed(file, path) as stream:
        stream.write(fields.binaryblock + extensions)
        for part in voxels:
            written += part.size
            stream.write(bytes_of(contiguous(part.astype(kind, copy=False))))
        if written != expected:
            raise ScanError(
                f"{path}: the header to copy is damaged; it says {expected:,} voxels, there are {written:,}."
            )


def _with_extender(extensions: bytes) -> bytes:
    """Return extensions behind the four bytes that announce them; each is a multiple of 16 bytes, so the rest tells if these stand there."""
    if not extensions:
        return bytes(4)
    return EXTENDER + extensions if len(extensions) % 16 == 0 else extensions


def _compressed(file: io.BufferedWriter, path: Path) -> AbstractContextManager[Any]:
    """Return a stream that writes into `file`, through gzip when the name of `path` says so; without name or time."""
    if not path.name.lower().endswith(".gz"):
        return nullcontext(file)
    stream: AbstractContextManager[Any] = igzip.IGzipFile(
        filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0
    )
    return stream
