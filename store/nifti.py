"""NIfTI-1 and NIfTI-2, single files and .hdr/.img pairs: header, voxel bytes as a stream, and volumes written on the grid of a header.

nibabel reads the header's fields; the voxels are streamed here, because a scan must be readable a slab at a time,
hashed on the way, and must not cost memory that its file cannot fill. Whether a file is gzip is told by its first
bytes, not by its name. A pair is named by its .hdr and is one stream too: the header file, then the image file.
"""

import io
import math
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.spatialimages import HeaderDataError

from store.errors import GeometryError, ReadError, ScanError
from store.files import HASH_BLOCK, HashingStream, Place, written_whole
from store.geometry import SAME_GRID_MM, Grid, contiguous
from store.oddities import about_grid
from store.remote import Remote

GZIP_MAGIC = b"\x1f\x8b"
MAX_DEFLATE_RATIO = 1032
"""Deflate cannot expand a byte to more (zlib's technical notes), so a header that claims more lies."""
MAX_DATA_OFFSET = 1 << 24
HEADER_BYTES = {348: "NIfTI-1", 540: "NIfTI-2"}
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
HEADER_SUFFIXES = (".hdr.gz", ".hdr")
SUFFIXES = (".nii.gz", ".nii", *HEADER_SUFFIXES)
MAX_EXTENSION_BYTES = 1 << 20
"""Header extensions stand in a JSON document; what is longer (a whole DICOM study, say) is left out with a warning."""
ODD_UNITS = {1: "meters", 3: "micrometers"}
"""Codes of xyzt_units that are not millimeters (2) or unknown (0)."""
EXTENDER = b"\1\0\0\0"
"""The four bytes behind a header that extensions follow."""
GZIP_LEVEL = 1
"""isal's level 1 is 30x faster than zlib 6 on masks at 1.4x the size (design notes, RUNTIME section 5; `slicemill bench constants`)."""


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """What a NIfTI header says, checked against the file that holds the voxels."""

    grid: Grid
    dtype: np.dtype[Any]
    slope: float
    inter: float
    data_offset: int
    """Where the voxels start in the stream of `open_voxels`."""
    raw: bytes
    """The header's own 348 or 540 bytes."""
    extension_bytes: int
    """Bytes of header extensions, which follow the header and the four bytes that announce them."""
    warnings: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Return how many bytes of voxels there must be."""
        return int(np.prod(self.grid.shape, dtype=object)) * self.dtype.itemsize


def is_nifti_name(name: str) -> bool:
    """Return whether a file name ends like a NIfTI file and is no macOS resource fork or hidden file.

    A pair is named by its header; its image file is no name of its own.

    >>> is_nifti_name("a.nii.gz"), is_nifti_name("a.hdr"), is_nifti_name("a.img"), is_nifti_name("._a.nii")
    (True, True, False, False)
    """
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_header_name(name: str) -> bool:
    """Return whether a file name is that of a pair's header file."""
    return name.lower().endswith(HEADER_SUFFIXES)


def stem_of(name: str) -> str:
    """Return a file name without its NIfTI suffix.

    >>> stem_of("volume-17.nii.gz"), stem_of("volume-17.hdr")
    ('volume-17', 'volume-17')
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def files_of(path: Place) -> tuple[Place, ...]:
    """Return the files that a scan consists of: itself, or header and image file of a pair.

    The image file of ``x.hdr`` is ``x.img``, else ``x.img.gz``; that of ``x.hdr.gz`` is ``x.img.gz``, else ``x.img``.
    When neither is there, the first is named.

    >>> [file.name for file in files_of(Path("volume-17.nii"))], [file.name for file in files_of(Path("x.HDR"))]
    (['volume-17.nii'], ['x.HDR', 'x.IMG'])
    """
    if not is_header_name(path.name):
        return (path,)
    stem = stem_of(path.name)
    ending = path.name[len(stem) :]
    bare = ".IMG" if ending[1:4].isupper() else ".img"
    suffix, other = (bare + ending[4:], bare) if len(ending) > 4 else (bare, f"{bare}.gz")
    candidates = [path.with_name(stem + ending) for ending in (suffix, other)]
    return path, next((file for file in candidates if file.exists()), candidates[0])


def read_header(path: Place) -> NiftiHeader:
    """Read and check a file's header; no voxel is read.

    Raises
    ------
    ScanError
        Not a NIfTI file, of a kind that cannot be a CT, or shorter than its header claims.
    """
    is_pair = is_header_name(path.name)
    start = _header_file(path)[1] if is_pair else _first_bytes(path)
    raw, header = _parse(start, path)
    _check_kind(header, path, is_pair=is_pair)
    shape = _shape(header, path)
    dtype = _dtype(header, path)
    slope, inter = _scaling(header, path)
    affine, warnings = _affine(header, path)
    try:
        grid = Grid(shape=shape, affine=affine)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error
    before, first = (len(start), 0) if is_pair else (0, len(raw) + 4)
    offset = max(_offset(header, path), first)
    checked = NiftiHeader(
        grid=grid,
        dtype=dtype,
        slope=slope,
        inter=inter,
        data_offset=before + offset,
        raw=raw,
        extension_bytes=_extension_bytes(start, len(raw), before or offset),
        warnings=(*warnings, *_about_fields(header), *about_grid(grid), *_about_names(path)),
    )
    _check_size(files_of(path)[-1], checked, offset + checked.data_bytes)
    return checked


def read_extensions(path: Place, header: NiftiHeader) -> bytes:
    """Return the bytes of a file's header extensions with the four bytes that announce them; empty where there are none."""
    if not header.extension_bytes:
        return b""
    stream, _ = open_voxels(path, hashed=False)
    with stream:
        return _read_up_to(stream, len(header.raw) + 4 + header.extension_bytes, path)[len(header.raw) :]


def open_voxels(path: Place, *, hashed: bool = True) -> tuple[io.RawIOBase, HashingStream]:
    """Open a file for reading from its first header byte, decompressing when it is gzip; of a pair, both files in turn.

    Returns the stream to read from and, below it, the stream that counts and hashes the file's own bytes.
    """
    content, plain = _header_file(path) if is_header_name(path.name) else (b"", b"")
    file, is_gzip = _open_file(files_of(path)[-1])
    hashing = HashingStream(file, start=content, hashed=hashed)
    inner = Gunzip(fileobj=hashing, mode="rb") if is_gzip else hashing
    return _Closing(inner, file, plain), hashing


def _open_file(path: Place) -> tuple[io.RawIOBase, bool]:
    """Return an open file and whether it is gzip.

    Raises
    ------
    ScanError
        It cannot be opened, or is no file: a pipe would be waited for without end.
    """
    try:
        if isinstance(path, Remote):
            stream = path.open_stream()
            return stream, bytes(stream.peek()[:2]) == GZIP_MAGIC
        if not stat.S_ISREG(path.stat().st_mode):
            raise ScanError(f"{path}: a scan is a file; this is a folder, a pipe or a device. Name the file itself.")
        file = path.open("rb", buffering=0)
        magic = file.read(2)
        file.seek(0)
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}.") from error
    return file, magic == GZIP_MAGIC


def _is_gzip(path: Place) -> bool:
    """Return whether a file's first bytes are gzip's."""
    if isinstance(path, Remote):
        return path.read_range(0, len(GZIP_MAGIC)) == GZIP_MAGIC
    file, is_gzip = _open_file(path)
    file.close()
    return is_gzip


def _header_file(path: Place) -> tuple[bytes, bytes]:
    """Return a pair's header file as it is, and decompressed when it is gzip.

    Raises
    ------
    ScanError
        It cannot be read, or is too long to be a header.
    """
    file, is_gzip = _open_file(path)
    with file:
        content = plain = _read_up_to(file, MAX_DATA_OFFSET + 1, path)
    if is_gzip:
        plain = _read_up_to(igzip.IGzipFile(fileobj=io.BytesIO(content), mode="rb"), MAX_DATA_OFFSET + 1, path)
    if max(len(content), len(plain)) > MAX_DATA_OFFSET:
        raise ScanError(
            f"{path}: the header of a .hdr/.img pair has at most {MAX_DATA_OFFSET:,} bytes; this file has more. It is damaged or no header."
        )
    return content, plain


class Gunzip(igzip.IGzipFile):  # type: ignore[misc]
    """A gzip stream that decompresses straight into the buffer that it is given; its base class copies once more."""

    def readinto(self, buffer: Any) -> int:  # noqa: D102 (io.BufferedIOBase says it)
        return int(self._buffer.readinto(buffer))


class _Closing(io.RawIOBase):
    """A readable stream over the bytes `before` and then over `inner`, that closes the file below it."""

    def __init__(self, inner: Any, file: io.IOBase, before: bytes = b"") -> None:
        self._inner = inner
        self._file = file
        self._before = memoryview(before)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._before:
            count = min(len(buffer), len(self._before))
            buffer[:count], self._before = self._before[:count], self._before[count:]
            return count
        return int(self._inner.readinto(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def damage_named(path: Place) -> Iterator[None]:
    """Turn what damaged compression, a short file or a failing disk raise into an error that names the file."""
    try:
        yield
    except (EOFError, igzip.BadGzipFile, igzip.isal_zlib.error) as error:
        raise ScanError(f"{path}: ends early or is damaged ({error}). Copy the file again.") from error
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror or error}.") from error


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return memoryview(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]


def read_exactly(stream: io.RawIOBase, out: memoryview, path: Place) -> None:
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


def read_to_end(stream: io.RawIOBase, path: Place) -> None:
    """Read what is left and forget it; a gzip stream checks its checksum at its end."""
    with damage_named(path):
        while stream.read(HASH_BLOCK):
            pass


def skip(stream: io.RawIOBase, count: int, path: Place) -> None:
    """Read `count` bytes and forget them."""
    read_exactly(stream, memoryview(bytearray(count)), path)


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
    with written_whole(path) as aside, aside.open("wb") as file, _compressed(file, path) as stream:
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


def blank_text(header: bytes) -> bytes:
    """Return header bytes with every free-text field blanked and no extension: they may name or describe a person."""
    fields = _parse(header, Path("header"))[1]
    for name in TEXT_FIELDS:
        if name in fields:
            fields[name] = b""
    return bytes(fields.binaryblock)


def grid_of_header(header: bytes) -> Grid:
    """Return the grid that stored header bytes describe."""
    fields = _parse(header, Path("header"))[1]
    return Grid(shape=_shape(fields, Path("header")), affine=_affine(fields, Path("header"))[0])


def _read_up_to(stream: io.RawIOBase, count: int, path: Place) -> bytes:
    """Return up to `count` bytes from the start of the stream."""
    data = b""
    with damage_named(path):
        while len(data) < count and (block := stream.read(count - len(data))):
            data += block
    return data


def _first_bytes(path: Place) -> bytes:
    """Return the first bytes of a single file, as many as the longest header and its mark of extensions have."""
    stream, _ = open_voxels(path, hashed=False)
    with stream:
        return _read_up_to(stream, max(HEADER_BYTES) + 4, path)


def _parse(start: bytes, path: Place) -> tuple[bytes, Any]:
    """Return the header's bytes and nibabel's view of their fields."""
    if len(start) < 348:
        raise ScanError(f"{path}: is not a NIfTI file: {len(start)} bytes, but its header alone has 348.")
    for order in "<>":
        size = struct.unpack(f"{order}i", start[:4])[0]
        if size in HEADER_BYTES and len(start) >= size:
            magic = start[344:348] if size == 348 else start[4:8]
            if magic[:2] not in (b"n+", b"ni"):
                raise ScanError(
                    f"{path}: is not a NIfTI file (magic {magic!r}); Analyze 7.5 files hold no orientation: convert it."
                )
            kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
            return start[:size], kind(start[:size], endianness=order, check=False)
    raise ScanError(
        f"{path}: is not a NIfTI file: it starts with {start[:4].hex()} instead of the header's size, 348 or 540."
    )


def _check_kind(header: Any, path: Place, *, is_pair: bool) -> None:
    """Refuse a file whose name says single file and whose header says pair, or the reverse."""
    says_pair = bytes(header["magic"].item())[:2] == b"ni"
    if says_pair and not is_pair:
        raise ScanError(
            f"{path}: is the header of a .hdr/.img pair; name it .hdr and put its .img beside it, or convert the pair to one .nii file."
        )
    if is_pair and not says_pair:
        raise ScanError(f"{path}: its header says that the voxels follow in the same file; rename it to .nii.")


def _shape(header: Any, path: Place) -> tuple[int, int, int]:
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


def _dtype(header: Any, path: Place) -> np.dtype[Any]:
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


def _scaling(header: Any, path: Place) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means none, as the standard says."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise ScanError(f"{path}: scl_slope is {slope:g}, but scl_inter is {inter:g}; correct the header.")
    return slope, inter


def _affine(header: Any, path: Place) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Return voxel i j k -> RAS mm by the standard's order (sform, qform, spacing alone), and what is odd about it."""
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"{path}: the header's orientation cannot be read ({error}); correct its qform or sform."
        ) from error
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        return affine, _about_qform(header, _shape(header, path), affine)
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return affine, ("the header has no orientation; spacing alone is used and the patient's sides are unknown",)
    return affine, ()


def _about_qform(header: Any, shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Return a warning when the qform says something else than the sform."""
    try:
        with np.errstate(all="ignore"):
            qform = np.asarray(header.get_qform(), dtype=np.float64)
            if (np.abs(qform - affine)[:3] @ [*shape, 1]).sum() <= SAME_GRID_MM:  # no corner can be farther apart
                return ()
            apart = Grid(shape=shape, affine=affine).distance_mm(Grid(shape=shape, affine=qform))
    except (ValueError, HeaderDataError, np.linalg.LinAlgError):
        return ("the qform cannot be read; the sform is used",)
    return (f"sform and qform differ by up to {apart:.3g} mm; the sform is used",) if apart > SAME_GRID_MM else ()


def _about_fields(header: Any) -> list[str]:
    """Return warnings about fields that say something else than a plain CT's."""
    warnings = []
    rank = int(header["dim"][0])
    if rank > 3:
        warnings.append(f"{rank} dimensions hold one volume; the further ones were dropped")
    if header["scl_slope"] == 0 and np.isfinite(header["scl_inter"]) and header["scl_inter"] != 0:
        warnings.append(
            f"scl_slope is 0, so scl_inter {float(header['scl_inter']):g} is not applied (the standard's rule)"
        )
    if unit := ODD_UNITS.get(int(header["xyzt_units"]) & 7):
        warnings.append(f"the header gives lengths in {unit}; its numbers were taken as mm")
    return warnings


def _about_names(path: Place) -> list[str]:
    """Return a warning for each file whose name says gzip and whose bytes do not, or the reverse."""
    warnings = []
    for file in files_of(path):
        is_gzip = _is_gzip(file)
        if is_gzip != file.name.lower().endswith(".gz"):
            warnings.append(
                f"the name {file.name} says {'plain' if is_gzip else 'gzip'}, its bytes the opposite; the bytes were believed"
            )
    return warnings


def _extension_bytes(start: bytes, size: int, end: int) -> int:
    """Return how many bytes of extensions lie between the header of `size` bytes and `end`; the byte after the header announces them."""
    announced = len(start) > size and start[size] != 0
    return max(0, end - size - 4) if announced else 0


def _offset(header: Any, path: Place) -> int:
    """Return where the header says that the voxels start in their file."""
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not 0 <= offset <= MAX_DATA_OFFSET or offset != int(offset):
        raise ScanError(f"{path}: the voxels cannot start at byte {offset:g}; the header is damaged.")
    return int(offset)


def _check_size(path: Place, header: NiftiHeader, claimed: int) -> None:
    """Refuse a file that cannot hold the bytes that its header claims, before memory is taken for them."""
    size, is_gzip = path.stat().st_size, _is_gzip(path)
    most = size * MAX_DEFLATE_RATIO + 1024 if is_gzip else size
    if claimed > most:
        raise ScanError(
            f"{path}: the header claims {claimed:,} bytes ({'x'.join(map(str, header.grid.shape))} of {header.dtype}), "
            f"but the file has {size:,}{' compressed' if is_gzip else ''}. It is truncated or its header lies; copy it again."
        )
