"""NIfTI-1 and NIfTI-2 single files: header, voxel bytes as a stream, and masks on the same grid.

nibabel reads the header's fields; the voxels are streamed here, because a scan must be readable a slab at a time,
hashed on the way, and must not cost memory that its file cannot fill. Whether a file is gzip is told by its first
bytes, not by its name.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.spatialimages import HeaderDataError

from store.errors import GeometryError, ScanError
from store.files import HASH_BLOCK, HashingStream, written_whole
from store.geometry import Grid

GZIP_MAGIC = b"\x1f\x8b"
MAX_DEFLATE_RATIO = 1032
"""Deflate cannot expand a byte to more (zlib's technical notes), so a header that claims more lies."""
MAX_DATA_OFFSET = 1 << 24
HEADER_BYTES = {348: "NIfTI-1", 540: "NIfTI-2"}
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
SUFFIXES = (".nii.gz", ".nii")
MASK_GZIP_LEVEL = 1
"""isal's level 1 is 30x faster than zlib 6 on masks at 1.4x the size (design notes, RUNTIME section 5)."""


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """What the header of a single-file NIfTI says, checked against the file that it stands in."""

    grid: Grid
    dtype: np.dtype[Any]
    slope: float
    inter: float
    data_offset: int
    raw: bytes
    """The header's own 348 or 540 bytes."""
    warnings: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Return how many bytes of voxels there must be."""
        return int(np.prod(self.grid.shape, dtype=object)) * self.dtype.itemsize


def is_nifti_name(name: str) -> bool:
    """Return whether a file name ends like a NIfTI file and is no macOS resource fork or hidden file."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def stem_of(name: str) -> str:
    """Return a file name without its NIfTI suffix.

    >>> stem_of("volume-17.nii.gz")
    'volume-17'
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_header(path: Path) -> NiftiHeader:
    """Read and check a file's header; no voxel is read.

    Raises
    ------
    ScanError
        Not a NIfTI file, of a kind that cannot be a CT, or shorter than its header claims.
    """
    stream, _ = open_voxels(path)
    with stream:
        start = _read_up_to(stream, 544, path)
    raw, header = _parse(start, path)
    shape = _shape(header, path)
    dtype = _dtype(header, path)
    slope, inter = _scaling(header)
    affine, warnings = _affine(header, path)
    try:
        grid = Grid(shape=shape, affine=affine)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error
    checked = NiftiHeader(
        grid=grid,
        dtype=dtype,
        slope=slope,
        inter=inter,
        data_offset=_offset(header, len(raw), path),
        raw=raw,
        warnings=warnings,
    )
    _check_size(path, checked)
    return checked


def open_voxels(path: Path) -> tuple[io.RawIOBase, HashingStream]:
    """Open a file for reading from its first header byte, decompressing when it is gzip.

    Returns the stream to read from and, below it, the stream that hashes the file's own bytes.
    """
    try:
        file = path.open("rb", buffering=0)
        magic = file.read(2)
        file.seek(0)
    except OSError as error:
        raise ScanError(f"{path}: cannot be read: {error.strerror}.") from error
    hashing = HashingStream(file)
    inner = igzip.IGzipFile(fileobj=hashing, mode="rb") if magic == GZIP_MAGIC else hashing
    return _Closing(inner, file), hashing


class _Closing(io.RawIOBase):
    """A readable stream over `inner` that closes the file below it."""

    def __init__(self, inner: Any, file: io.FileIO) -> None:
        self._inner = inner
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._inner.readinto(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what damaged compression, a short file or a failing disk raise into a ScanError that names the file."""
    try:
        yield
    except (EOFError, igzip.BadGzipFile, igzip.isal_zlib.error) as error:
        raise ScanError(f"{path}: ends early or is damaged ({error}). Copy the file again.") from error
    except OSError as error:
        raise ScanError(f"{path}: cannot be read: {error.strerror or error}.") from error


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return memoryview(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]


def read_exactly(stream: io.RawIOBase, out: memoryview, path: Path) -> None:
    """Fill `out` from the stream.

    Raises
    ------
    ScanError
        The stream ends early or its compression is damaged.
    """
    filled = 0
    with damage_named(path):
        while filled < len(out):
            count = stream.readinto(out[filled:])
            if not count:
                raise EOFError(f"{len(out) - filled:,} bytes of voxels are missing")
            filled += count


def read_to_end(stream: io.RawIOBase, path: Path) -> None:
    """Read what is left and forget it; a gzip stream checks its checksum at its end."""
    with damage_named(path):
        while stream.read(HASH_BLOCK):
            pass


def skip(stream: io.RawIOBase, count: int, path: Path) -> None:
    """Read `count` bytes and forget them."""
    read_exactly(stream, memoryview(bytearray(count)), path)


def write_mask(path: Path, header: bytes, mask: npt.NDArray[np.uint8]) -> None:
    """Write a mask on the grid of the scan whose `header` is given, whole or not at all; gzip when the name says so.

    Parameters
    ----------
    header
        The scan's own header bytes: every geometry field is kept bit for bit; type and scaling become those of uint8,
        free-text fields are blanked.
    mask
        uint8[k, j, i], the file's own axis order (`Grid.to_file`).
    """
    size = len(header)
    document = bytearray(blank_text(header))
    order = "<" if struct.unpack("<i", document[:4])[0] == size else ">"
    fields = _parse(bytes(document), path)[1]
    fields["datatype"], fields["bitpix"] = 2, 8
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    fields["cal_max"] = fields["cal_min"] = 0
    fields["vox_offset"] = size + 4
    document = bytearray(fields.binaryblock)
    if struct.unpack(f"{order}i", document[:4])[0] != size:
        raise ScanError(f"{path}: the header to copy is damaged.")
    content = bytes_of(np.ascontiguousarray(mask))
    with written_whole(path) as aside, aside.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with igzip.IGzipFile(
                filename="", mode="wb", compresslevel=MASK_GZIP_LEVEL, fileobj=file, mtime=0
            ) as stream:
                stream.write(bytes(document) + bytes(4))
                stream.write(content)
        else:
            file.write(bytes(document) + bytes(4))
            file.write(content)


def blank_text(header: bytes) -> bytes:
    """Return header bytes with every free-text field blanked: they may name or describe a person."""
    fields = _parse(header, Path("header"))[1]
    for name in TEXT_FIELDS:
        if name in fields:
            fields[name] = b""
    return bytes(fields.binaryblock)


def grid_of_header(header: bytes) -> Grid:
    """Return the grid that stored header bytes describe."""
    fields = _parse(header, Path("header"))[1]
    return Grid(shape=_shape(fields, Path("header")), affine=_affine(fields, Path("header"))[0])


def _read_up_to(stream: io.RawIOBase, count: int, path: Path) -> bytes:
    """Return up to `count` bytes from the start of the stream."""
    data = b""
    with damage_named(path):
        while len(data) < count and (block := stream.read(count - len(data))):
            data += block
    return data


def _parse(start: bytes, path: Path) -> tuple[bytes, Any]:
    """Return the header's bytes and nibabel's view of their fields."""
    if len(start) < 348:
        raise ScanError(f"{path}: is not a NIfTI file: {len(start)} bytes, but its header alone has 348.")
    for order in "<>":
        size = struct.unpack(f"{order}i", start[:4])[0]
        if size in HEADER_BYTES and len(start) >= size:
            magic = start[344:348] if size == 348 else start[4:8]
            if magic[:2] == b"ni":
                raise ScanError(f"{path}: is the header of a .hdr/.img pair; convert the pair to one .nii file.")
            if magic[:2] != b"n+":
                raise ScanError(
                    f"{path}: is not a NIfTI file (magic {magic!r}); Analyze 7.5 files hold no orientation: convert it."
                )
            kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
            return start[:size], kind(start[:size], endianness=order, check=False)
    raise ScanError(
        f"{path}: is not a NIfTI file: it starts with {start[:4].hex()} instead of the header's size, 348 or 540."
    )


def _shape(header: Any, path: Path) -> tuple[int, int, int]:
    """Return the three extents; trailing extents of one volume are dropped, a 2-D picture has one slice."""
    rank = int(header["dim"][0])
    if not 2 <= rank <= 7:
        raise ScanError(f"{path}: a scan has 2 to 7 dimensions; the header says {rank}.")
    extents = [int(extent) for extent in header["dim"][1 : rank + 1]]
    if min(extents) < 1:
        raise ScanError(f"{path}: every extent must be at least 1; the header says {extents}.")
    if any(extent > 1 for extent in extents[3:]):
        raise ScanError(
            f"{path}: holds several volumes, extents {extents}; a CT is one volume: split it first (nibabel.funcs.four_to_three)."
        )
    i, j, k = (*extents, 1)[:3]
    return i, j, k


def _dtype(header: Any, path: Path) -> np.dtype[Any]:
    """Return the voxels' type; only plain integers and floats can be HU or labels."""
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ScanError(f"{path}: unknown voxel type {int(header['datatype'])}; convert it to int16.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ScanError(
            f"{path}: voxels must be integers or floats; they are {dtype}. A color or complex picture is no CT."
        )
    checked: np.dtype[Any] = np.dtype(dtype)
    return checked


def _scaling(header: Any) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means none, as the standard says."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def _affine(header: Any, path: Path) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Return voxel i j k -> RAS mm by the standard's order (sform, qform, spacing alone), and what is odd about it."""
    warnings: list[str] = []
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            if header["sform_code"] > 0 and header["qform_code"] > 0:
                apart = float(np.abs(header.get_sform() - header.get_qform()).max())
                if apart > 1e-2:
                    warnings.append(f"sform and qform differ by up to {apart:.3g} mm; the sform is used")
    except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"{path}: the header's orientation cannot be read ({error}); correct its qform or sform."
        ) from error
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        warnings.append("the header has no orientation; spacing alone is used and the patient's sides are unknown")
    return affine, tuple(warnings)


def _offset(header: Any, header_size: int, path: Path) -> int:
    """Return where the voxels start."""
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not 0 <= offset <= MAX_DATA_OFFSET or offset != int(offset):
        raise ScanError(f"{path}: the voxels cannot start at byte {offset:g}; the header is damaged.")
    return max(int(offset), header_size + 4)


def _check_size(path: Path, header: NiftiHeader) -> None:
    """Refuse a file that cannot hold the voxels that it claims, before memory is taken for them."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        is_gzip = os.pread(stream.fileno(), 2, 0) == GZIP_MAGIC
    claimed = header.data_offset + header.data_bytes
    most = size * MAX_DEFLATE_RATIO + 1024 if is_gzip else size
    if claimed > most:
        raise ScanError(
            f"{path}: the header claims {claimed:,} bytes ({'x'.join(map(str, header.grid.shape))} of {header.dtype}), "
            f"but the file has {size:,}{' compressed' if is_gzip else ''}. It is truncated or its header lies; copy it again."
        )
