"""Writes NIfTI volumes on the grid of an existing header, atomically."""

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
from slicemill.ct.formats.nifti.header import parse_header, read_shape
from slicemill.ct.formats.nifti.stream import view_bytes
from slicemill.ct.geometry import make_contiguous

EXTENDER = b"\1\0\0\0"
"""The four bytes that announce header extensions."""
GZIP_LEVEL = 1
"""On masks isal's level 1 is 30 times as fast as zlib's 6, at 1.4 times the size (`slicemill bench constants`)."""


def write_volume(
    path: Path, header: bytes, dtype: npt.DTypeLike, voxels: Iterable[npt.NDArray[Any]], *, slope: float = 1.0
) -> None:
    """Write voxels with the header of another file; gzip if the name ends with ``.gz``.

    Parameters
    ----------
    header
        Header bytes of that file, with its extensions if it has any. They are kept bit for bit except the voxels' type,
        scaling and offset, the display range of 8-bit voxels, and a qfac of 0, which means 1.
    dtype
        int16 for HU, uint8 for label values and probabilities.
    voxels
        Slices any[j, i] or slabs any[k, j, i] in the file's axis order (`Grid.to_file`). A volume any[k, j, i] iterates
        over its slices. One item is in memory at a time.
    slope
        Factor by which a reader multiplies the stored numbers.

    Raises
    ------
    ScanError
        The header is damaged, or the number of voxels differs from it.
    """
    fields = parse_header(header, path)[1]
    kind = np.dtype(dtype).newbyteorder(fields.endianness)
    fields.set_data_dtype(np.dtype(dtype))
    fields["magic"] = fields.single_magic  # a header of a pair becomes a single file
    fields["scl_slope"], fields["scl_inter"] = slope, 0
    if fields["pixdim"][0] == 0:
        fields["pixdim"][0] = 1  # nibabel refuses 0
    if kind.itemsize == 1:
        fields["cal_max"] = fields["cal_min"] = 0
    extensions = _with_extender(header[len(fields.binaryblock) :])
    fields["vox_offset"] = len(fields.binaryblock) + len(extensions)
    expected, written = math.prod(read_shape(fields, path)), 0
    with atomic_write(path) as aside, aside.open("wb") as file, _compressed(file, path) as stream:
        stream.write(fields.binaryblock + extensions)
        for part in voxels:
            written += part.size
            stream.write(view_bytes(make_contiguous(part.astype(kind, copy=False))))
        if written != expected:
            raise ScanError(
                f"the header to copy is damaged: it has {expected:,} voxels, the volume has {written:,}.", where=path
            )


def _with_extender(extensions: bytes) -> bytes:
    """Return extensions after the four bytes that announce them, which `extensions` may start with.

    The size of each extension is a multiple of 16, so the remainder shows whether the four bytes are there.
    """
    if not extensions:
        return bytes(4)
    return EXTENDER + extensions if len(extensions) % 16 == 0 else extensions


def _compressed(file: io.BufferedWriter, path: Path) -> AbstractContextManager[Any]:
    """Return a stream into `file`, through gzip (without name or time) if `path` ends with ``.gz``."""
    if not path.name.lower().endswith(".gz"):
        return nullcontext(file)
    stream: AbstractContextManager[Any] = igzip.IGzipFile(
        filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0
    )
    return stream
