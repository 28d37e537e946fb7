"""Headers of NIfTI-1 and NIfTI-2, single files and .hdr/.img pairs: read and checked against the file.

nibabel decodes the fields. The header is checked here before a voxel is read:

1. The first bytes must be a header of 348 or 540 bytes, of either byte order, with NIfTI's magic.
2. Shape, voxel type, scaling and affine must fit one CT volume.
3. The file must be large enough for the voxels in the header. So a damaged header cannot make a reader allocate
   too much memory. A gzip file can hold at most MAX_DEFLATE_RATIO times its size.

Unusual but readable fields become warnings.
"""

import re
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
from slicemill.ct.formats.nifti.names import is_header_name, is_nifti_name, scan_files
from slicemill.ct.formats.nifti.stream import MAX_DATA_OFFSET, is_gzip, open_voxels, read_header_file, read_up_to
from slicemill.ct.geometry import SAME_GRID_MM, Grid
from slicemill.ct.grid_checks import grid_warnings

MAX_DEFLATE_RATIO = 1032
"""Most bytes that deflate can produce from one (zlib, technical details)."""
HEADER_BYTES = {348: "NIfTI-1", 540: "NIfTI-2"}
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
SIGNATURE = "slicemill "
SIGNED = re.compile(SIGNATURE.encode() + rb"([0-9a-f]{64})")
"""The description of a file that `infer` wrote: the hash of its model."""
MAX_EXTENSION_BYTES = 1 << 20
"""Longest extensions that are stored with a case, in a JSON document; longer ones are left out with a warning."""
ODD_UNITS = {1: ("meters", 1000.0), 3: ("micrometers", 0.001)}
"""Codes of xyzt_units other than millimeters (2) and unknown (0), each with its length in mm."""
PLAUSIBLE_MM = (0.001, 100.0)
"""Sides of a voxel, mm, after a conversion to mm: from micro-CT to the slices of a planning scan and some room."""


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A NIfTI header that was checked against its file."""

    grid: Grid
    dtype: np.dtype[Any]
    slope: float
    """HU or label value = stored number * slope + inter."""
    inter: float
    data_offset: int
    """Offset of the voxels in the stream of `open_voxels`, bytes."""
    raw: bytes
    """The 348 or 540 bytes of the header, without extensions."""
    extension_bytes: int
    """Size of the header extensions, which follow the header and the four bytes that announce them."""
    warnings: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Return the size of all voxels, bytes."""
        return int(np.prod(self.grid.shape, dtype=object)) * self.dtype.itemsize


def read_header(path: Location) -> NiftiHeader:
    """Read and check the header of a file.

    Raises
    ------
    ScanError
        The file is not NIfTI, cannot be a CT, or is shorter than its header claims.
    """
    is_pair = is_header_name(path.name)
    start = read_header_file(path)[1] if is_pair else _first_bytes(path)
    raw, header = parse_header(start, path)
    _check_kind(header, path, is_pair=is_pair)
    dtype = _dtype(header, path)
    shape = read_shape(header, path)
    slope, inter = _scaling(header, path)
    affine, warnings = _affine(header, path)
    try:
        grid = Grid(shape=shape, affine=affine, oriented=_is_oriented(header))
    except GeometryError as error:
        raise GeometryError(error.reason, where=path) from error
    # The stream of a pair is the header file (`before` bytes) and then the image file, in which vox_offset counts. In a
    # single file the voxels come after the header and the four bytes after it, even if vox_offset is smaller.
    before, least = (len(start), 0) if is_pair else (0, len(raw) + 4)
    offset = max(_offset(header, path), least)
    checked = NiftiHeader(
        grid=grid,
        dtype=dtype,
        slope=slope,
        inter=inter,
        data_offset=before + offset,
        raw=raw,
        extension_bytes=_extension_bytes(start, len(raw), before or offset),
        warnings=(*warnings, *_warn_fields(header), *grid_warnings(grid), *_warn_names(path)),
    )
    _check_size(scan_files(path)[-1], checked, offset + checked.data_bytes)
    return checked


def read_extensions(path: Location, header: NiftiHeader) -> bytes:
    """Return a file's header extensions with the four bytes that announce them; empty if there are none."""
    if not header.extension_bytes:
        return b""
    stream, _ = open_voxels(path, hashed=False)
    with stream:
        return read_up_to(stream, len(header.raw) + 4 + header.extension_bytes, path)[len(header.raw) :]


def blank_text(header: bytes) -> bytes:
    """Return header bytes with blank text fields and no extensions, which may name or describe a person."""
    fields = parse_header(header, Path("header"))[1]
    for name in TEXT_FIELDS:
        if name in fields:
            fields[name] = b""
    return bytes(fields.binaryblock)


def sign_header(header: bytes, model_sha256: str) -> bytes:
    """Return header bytes whose description names the model of the voxels; `read_signature` reads it."""
    fields = parse_header(header, Path("header"))[1]
    fields["descrip"] = f"{SIGNATURE}{model_sha256}".encode()
    return bytes(fields.binaryblock) + header[len(fields.binaryblock) :]


def read_signature(path: Path) -> str:
    """Return the hash of the model that made a file, or an empty text if the file is not NIfTI or names no model.

    Raises
    ------
    ScanError
        The header is damaged.
    """
    if not is_nifti_name(path.name):
        return ""
    fields = parse_header(read_header(path).raw, path)[1]
    match = SIGNED.fullmatch(bytes(fields["descrip"]).rstrip(b"\0"))
    return match[1].decode() if match else ""


def parse_grid(header: bytes) -> Grid:
    """Return the grid of stored header bytes."""
    fields = parse_header(header, Path("header"))[1]
    shape, affine = read_shape(fields, Path("header")), _affine(fields, Path("header"))[0]
    return Grid(shape=shape, affine=affine, oriented=_is_oriented(fields))


def stored_warnings(header: bytes) -> tuple[str, ...]:
    """Return the warnings about the fields and the grid of stored header bytes, as `read_header` gives them."""
    path = Path("header")
    fields = parse_header(header, path)[1]
    return (*_affine(fields, path)[1], *_warn_fields(fields), *grid_warnings(parse_grid(header)))


def _first_bytes(path: Location) -> bytes:
    """Return the first bytes of a single file: the longest header, and the four bytes after it."""
    stream, _ = open_voxels(path, hashed=False)
    with stream:
        return read_up_to(stream, max(HEADER_BYTES) + 4, path)


def parse_header(start: bytes, path: Location) -> tuple[bytes, Any]:
    """Return the header's bytes without extensions, and their fields as nibabel's header object."""
    if len(start) < 348:
        raise ScanError(f"is not a NIfTI file: it has {len(start)} bytes, and a NIfTI header has 348.", where=path)
    # The first field is the size of the header; it shows both the version and the byte order.
    for order in "<>":
        size = struct.unpack(f"{order}i", start[:4])[0]
        if size in HEADER_BYTES and len(start) >= size:
            magic = start[344:348] if size == 348 else start[4:8]
            if magic[:2] not in (b"n+", b"ni"):
                raise ScanError(
                    f"is not a NIfTI file (magic {magic!r}); Analyze 7.5 files hold no orientation: convert it.",
                    where=path,
                )
            kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
            return start[:size], kind(start[:size], endianness=order, check=False)
    raise ScanError(
        f"is not a NIfTI file: it starts with {start[:4].hex()} instead of the header's size, 348 or 540.", where=path
    )


def _check_kind(header: Any, path: Location, *, is_pair: bool) -> None:
    """Refuse a header of a pair in a single file, or the reverse."""
    marked_as_pair = bytes(header["magic"].item())[:2] == b"ni"
    if marked_as_pair and not is_pair:
        raise ScanError(
            "is the header of a .hdr/.img pair. Name it .hdr and put its .img in the same folder, "
            "or convert the pair to one .nii file.",
            where=path,
        )
    if is_pair and not marked_as_pair:
        raise ScanError("its header is that of a single file; rename it to .nii.", where=path)


def read_shape(header: Any, path: Location) -> tuple[int, int, int]:
    """Return the three extents. Further extents of 1 are dropped; a 2-D image has one slice."""
    rank = int(header["dim"][0])
    if not 2 <= rank <= 7:
        raise ScanError(f"a scan must have 2 to 7 dimensions; the header has {rank}.", where=path)
    extents = [int(extent) for extent in header["dim"][1 : rank + 1]]
    if min(extents) < 1:
        raise ScanError(f"every extent must be at least 1; the header has {extents}.", where=path)
    if any(extent > 1 for extent in extents[3:]):
        raise ScanError(_explain_axes(header, extents), where=path)
    i, j, k = (*extents, 1)[:3]
    return i, j, k


def _explain_axes(header: Any, extents: list[int]) -> str:
    """Return why more than three axes are refused, and the way out."""
    longer = [extent for extent in extents if extent > 1]
    if extents[0] == 1 and len(longer) <= 3:
        return (
            f"its extents {extents} begin with an axis of 1: a channel axis, as arrays of networks have it. A CT has "
            "three axes; save the array without that axis (array[0]), with the scan's affine."
        )
    *others, last = extents[3:]
    if last in (3, 4) and max(others, default=1) == 1 and header.get_data_dtype().itemsize == 1:
        return (
            f"its last axis has {last} values of 8 bits, extents {extents}: the channels of a color picture, "
            "which is not a CT. Take the scan itself."
        )
    return (
        f"holds several volumes, extents {extents}; a CT is one volume. If the last axis counts channels, save the "
        "one with HU; if it counts time points, split them (nibabel.funcs.four_to_three)."
    )


def _dtype(header: Any, path: Location) -> np.dtype[Any]:
    """Return the type of the voxels; integers and floats of up to 8 bytes can be HU or labels."""
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ScanError(f"unknown voxel type {int(header['datatype'])}; convert it to int16.", where=path) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ScanError(
            f"voxels must be integers or floats; they are {dtype}. A color or complex picture is not a CT.", where=path
        )
    checked: np.dtype[Any] = np.dtype(dtype)
    return checked


def _scaling(header: Any, path: Location) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means no scaling (NIfTI-1 standard, scl_slope)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise ScanError(f"scl_slope is {slope:g}, but scl_inter is {inter:g}; correct the header.", where=path)
    return slope, inter


def _affine(header: Any, path: Location) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Return the affine, voxel i j k to RAS mm, by the standard's order (sform, qform, spacing), and warnings."""
    header = _in_millimeters(header, path)
    if header["pixdim"][0] == 0:  # nifti1_io.c and the standard take 0 for 1; nibabel refuses it
        header = header.copy()
        header["pixdim"][0] = 1
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"the header's orientation cannot be read ({error}); correct its qform or sform.", where=path
        ) from error
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        return affine, _warn_qform(header, read_shape(header, path), affine)
    if not _is_oriented(header):
        return affine, ("the header has no orientation; spacing alone is used and the patient's sides are unknown",)
    return affine, ()


def _in_millimeters(header: Any, path: Location) -> Any:
    """Return a header whose lengths are in mm; the same one unless its unit is another.

    Raises
    ------
    GeometryError
        No CT has voxels of the size that its numbers and its unit give.
    """
    name, length_mm = ODD_UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    if length_mm == 1.0:
        return header
    header = header.copy()
    for field in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[field] = header[field] * length_mm
    header["pixdim"][1:4] *= length_mm
    linear = np.array([header[field][:3] for field in ("srow_x", "srow_y", "srow_z")], dtype=np.float64)
    with np.errstate(all="ignore"):
        sides = np.linalg.norm(linear, axis=0) if header["sform_code"] > 0 else np.abs(header["pixdim"][1:4])
    if not (sides.min() >= PLAUSIBLE_MM[0] and sides.max() <= PLAUSIBLE_MM[1]):
        shown = " x ".join(f"{side:.3g}" for side in sides)
        raise GeometryError(
            f"the header gives lengths in {name}, so a voxel measures {shown} mm, which no CT has. Correct its "
            "xyzt_units (2 is mm) or its lengths.",
            where=path,
        )
    return header


def _is_oriented(header: Any) -> bool:
    """Return whether a header has a sform or a qform."""
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _warn_qform(header: Any, shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Return a warning if the qform differs from the sform."""
    try:
        with np.errstate(all="ignore"):
            qform = np.asarray(header.get_qform(), dtype=np.float64)
            # An upper bound of the distance between corners, quick to compute: the usual case ends here.
            if (np.abs(qform - affine)[:3] @ [*shape, 1]).sum() <= SAME_GRID_MM:
                return ()
            apart = Grid(shape=shape, affine=affine).distance_mm(Grid(shape=shape, affine=qform))
    except (ValueError, HeaderDataError, np.linalg.LinAlgError):
        return ("the qform cannot be read; the sform is used",)
    return (f"sform and qform differ by up to {apart:.3g} mm; the sform is used",) if apart > SAME_GRID_MM else ()


def _warn_fields(header: Any) -> list[str]:
    """Return warnings about fields that are unusual for a CT."""
    warnings = []
    rank = int(header["dim"][0])
    if rank > 3:
        warnings.append(f"{rank} dimensions hold one volume; the further ones were dropped")
    if header["scl_slope"] == 0 and np.isfinite(header["scl_inter"]) and header["scl_inter"] != 0:
        warnings.append(
            f"scl_slope is 0, so scl_inter {float(header['scl_inter']):g} is not applied (the standard's rule)"
        )
    if unit := ODD_UNITS.get(int(header["xyzt_units"]) & 7):
        warnings.append(f"the header gives lengths in {unit[0]}; they were converted to mm")
    return warnings


def _warn_names(path: Location) -> list[str]:
    """Return a warning for each file whose suffix .gz and first bytes contradict each other."""
    warnings = []
    for file in scan_files(path):
        compressed = is_gzip(file)
        if compressed != file.name.lower().endswith(".gz"):
            expected, found = ("plain", "gzip") if compressed else ("gzip", "plain")
            warnings.append(f"the name {file.name} says {expected}, its bytes are {found}; it was read as {found}")
    return warnings


def _extension_bytes(start: bytes, size: int, end: int) -> int:
    """Return the size of the extensions between the header of `size` bytes and `end`."""
    # the byte after the header announces extensions; they follow the four bytes that it starts
    announced = len(start) > size and start[size] != 0
    return max(0, end - size - 4) if announced else 0


def _offset(header: Any, path: Location) -> int:
    """Return the offset of the voxels in their file, bytes."""
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not 0 <= offset <= MAX_DATA_OFFSET or offset != int(offset):
        raise ScanError(f"the voxels cannot start at byte {offset:g}; the header is damaged.", where=path)
    return int(offset)


def _check_size(path: Location, header: NiftiHeader, claimed: int) -> None:
    """Refuse a file that cannot hold the bytes that its header claims."""
    size, compressed = path.stat().st_size, is_gzip(path)
    most = size * MAX_DEFLATE_RATIO + 1024 if compressed else size
    if claimed > most:
        raise ScanError(
            f"the header claims {claimed:,} bytes ({'x'.join(map(str, header.grid.shape))} of {header.dtype}), "
            f"but the file has {size:,}{' compressed' if compressed else ''}. "
            "It is truncated or its header is damaged; copy it again.",
            where=path,
        )
