"""NIfTI-1 and NIfTI-2, single files and .hdr/.img pairs: header, voxel bytes as a stream, and volumes written on the grid of a header.

nibabel reads the header's fields; the voxels are streamed here, because a scan must be readable a slab at a time,
hashed on the way, and must not cost memory that its file cannot fill. Whether a file is gzip is told by its first
bytes, not by its name. A pair is named by its .hdr and is one stream too: the header file, then the image file.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from slicemill.common.errors import GeometryError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.nifti.names import files_of, is_header_name
from slicemill.ct.formats.nifti.stream import MAX_DATA_OFFSET, _header_file, _is_gzip, _read_up_to, open_voxels
from slicemill.ct.geometry import SAME_GRID_MM, Grid
from slicemill.ct.grid_checks import about_grid

MAX_DEFLATE_RATIO = 1032
"""Deflate cannot expand a byte to more (zlib's technical notes), so a header that claims more lies."""
HEADER_BYTES = {348: "NIfTI-1", 540: "NIfTI-2"}
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
MAX_EXTENSION_BYTES = 1 << 20
"""Header extensions stand in a JSON document; what is longer (a whole DICOM study, say) is left out with a warning."""
ODD_UNITS = {1: "meters", 3: "micrometers"}
"""Codes of xyzt_units that are not millimeters (2) or unknown (0)."""


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


def read_header(path: Location) -> NiftiHeader:
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


def read_extensions(path: Location, header: NiftiHeader) -> bytes:
    """Return the bytes of a file's header extensions with the four bytes that announce them; empty where there are none."""
    if not header.extension_bytes:
        return b""
    stream, _ = open_voxels(path, hashed=False)
    with stream:
        return _read_up_to(stream, len(header.raw) + 4 + header.extension_bytes, path)[len(header.raw) :]


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


def _first_bytes(path: Location) -> bytes:
    """Return the first bytes of a single file, as many as the longest header and its mark of extensions have."""
    stream, _ = open_voxels(path, hashed=False)
    with stream:
        return _read_up_to(stream, max(HEADER_BYTES) + 4, path)


def _parse(start: bytes, path: Location) -> tuple[bytes, Any]:
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


def _check_kind(header: Any, path: Location, *, is_pair: bool) -> None:
    """Refuse a file whose name says single file and whose header says pair, or the reverse."""
    says_pair = bytes(header["magic"].item())[:2] == b"ni"
    if says_pair and not is_pair:
        raise ScanError(
            f"{path}: is the header of a .hdr/.img pair; name it .hdr and put its .img beside it, or convert the pair to one .nii file."
        )
    if is_pair and not says_pair:
        raise ScanError(f"{path}: its header says that the voxels follow in the same file; rename it to .nii.")


def _shape(header: Any, path: Location) -> tuple[int, int, int]:
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


def _dtype(header: Any, path: Location) -> np.dtype[Any]:
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


def _scaling(header: Any, path: Location) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means none, as the standard says."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise ScanError(f"{path}: scl_slope is {slope:g}, but scl_inter is {inter:g}; correct the header.")
    return slope, inter


def _affine(header: Any, path: Location) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
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


def _about_names(path: Location) -> list[str]:
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


def _offset(header: Any, path: Location) -> int:
    """Return where the header says that the voxels start in their file."""
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not 0 <= offset <= MAX_DATA_OFFSET or offset != int(offset):
        raise ScanError(f"{path}: the voxels cannot start at byte {offset:g}; the header is damaged.")
    return int(offset)


def _check_size(path: Location, header: NiftiHeader, claimed: int) -> None:
    """Refuse a file that cannot hold the bytes that its header claims, before memory is taken for them."""
    size, is_gzip = path.stat().st_size, _is_gzip(path)
    most = size * MAX_DEFLATE_RATIO + 1024 if is_gzip else size
    if claimed > most:
        raise ScanError(
            f"{path}: the header claims {claimed:,} bytes ({'x'.join(map(str, header.grid.shape))} of {header.dtype}), "
            f"but the file has {size:,}{' compressed' if is_gzip else ''}. It is truncated or its header lies; copy it again."
        )
