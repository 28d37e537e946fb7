"""Headers of MetaImage (``.mha``, ``.mhd``): lines ``Key = value``, of which ElementDataFile is the last.

The rules are those of MetaIO, as ITK reads it, except that nothing outside of the header's folder is read:

1. A row of TransformMatrix is the direction of one axis. The world is LPS; AnatomicalOrientation is ignored.
2. Voxels are bytes, plain or one zlib stream. Text, several numbers a voxel and more than three axes are refused.
3. A key that MetaIO writes and ITK does not apply (ElementToIntensityFunction) is refused if it would change a voxel.
"""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.text_header import (
    expand_pattern,
    locate_data_file,
    parse_integers,
    parse_numbers,
    read_start,
    shorten,
)
from slicemill.ct.formats.volume import FROM_END, VolumeHeader, VoxelFiles
from slicemill.ct.geometry import RAS_TO_LPS, Grid
from slicemill.ct.grid_checks import grid_warnings

MAX_HEADER_BYTES = 1 << 16
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""ElementType -> type of numpy. MET_LONG has 4 bytes in files on every machine."""
SYNONYMS = {
    "position": "offset",
    "origin": "offset",
    "rotation": "transformmatrix",
    "orientation": "transformmatrix",
    "elementbyteordermsb": "binarydatabyteordermsb",
}
LINE = re.compile(r"\s*(\w+)\s*[=:]\s*(.*?)\s*")
LAST_KEY = "elementdatafile"
KEYS = frozenset(
    [
        "objecttype",
        "ndims",
        "dimsize",
        "binarydata",
        "binarydatabyteordermsb",
        "compresseddata",
        "transformmatrix",
        "offset",
        "elementspacing",
        "elementsize",
        "elementtype",
        "elementnumberofchannels",
        "elementtointensityfunctionslope",
        "elementtointensityfunctionoffset",
        "headersize",
        "distanceunits",
        "elementdatafile",
    ]
)
"""Keys that are read. Others may be anything: ITK writes the metadata of the image before, such as tags of DICOM."""
LOCAL, LIST = "LOCAL", "LIST"


def read_metaimage(path: Location) -> VolumeHeader:
    """Read and check the header of a MetaImage file.

    Raises
    ------
    ScanError
        The file is not MetaImage, cannot be a CT, or names files that are not beside it.
    """
    start, fields, size = _read_fields(path)
    _check_kind(fields, path)
    rank = _read_rank(fields, path)
    warnings = [*_warn(fields, rank)]
    shape = parse_integers(_require(fields, "dimsize", path), rank, "DimSize", path)
    if min(shape) < 1:
        raise ScanError(f"every extent of DimSize must be at least 1; they are {shape}.", where=path)
    try:
        grid = Grid(shape=(*shape, 1)[:3], affine=_read_affine(fields, rank, path))  # type: ignore[arg-type]
    except GeometryError as error:
        raise GeometryError(error.reason, where=path) from error
    return VolumeHeader(
        format="MetaImage",
        grid=grid,
        dtype=_read_type(fields, path),
        voxels=_locate_voxels(fields, start, size, path),
        warnings=(*warnings, *grid_warnings(grid)),
    )


def list_data_files(path: Location) -> tuple[Location, ...]:
    """Return the files with voxels that a header names, other than its own; they need not exist.

    Raises
    ------
    ScanError
        The header cannot be read, or names a file that is not beside it.
    """
    return _name_files(_read_fields(path)[1], path)


def _read_fields(path: Location) -> tuple[bytes, dict[str, str], int]:
    """Return the start of a file, its fields by lower-case key, and the size of the header, bytes.

    A list of files follows the last field; it is the field ``list``.
    """
    start = read_start(path, MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    at = 0
    while LAST_KEY not in fields:
        end = start.find(b"\n", at)
        line = start[at : end if end >= 0 else len(start)].decode(errors="replace").rstrip("\r")
        at = end + 1 if end >= 0 else len(start)
        match = LINE.fullmatch(line)
        key = "" if match is None else match[1].lower()
        key = SYNONYMS.get(key, key)
        if match is not None and key in KEYS and fields.setdefault(key, match[2]) != match[2]:
            raise ScanError(
                f"{match[1]} is stated twice, as {shorten(fields[key])!r} and {shorten(match[2])!r}. "
                "Correct the header.",
                where=path,
            )
        if end < 0:
            break
    if LAST_KEY not in fields:
        raise ScanError(
            f"is not a MetaImage file: there is no ElementDataFile in its first {MAX_HEADER_BYTES:,} bytes.",
            where=path,
        )
    if fields[LAST_KEY].split()[:1] == [LIST]:
        if len(start) == MAX_HEADER_BYTES:
            raise ScanError(f"its header has more than {MAX_HEADER_BYTES:,} bytes.", where=path)
        fields["list"] = start[at:].decode(errors="replace")
    return start, fields, at


def _require(fields: Mapping[str, str], key: str, path: Location) -> str:
    if key not in fields:
        raise ScanError(f"is not a MetaImage scan: its header has no {key}.", where=path)
    return fields[key]


def _is_true(fields: Mapping[str, str], key: str, path: Location, default: str = "False") -> bool:
    text = fields.get(key, default)
    if text[:1].lower() not in ("t", "f", "1", "0"):
        raise ScanError(f"{key} must be True or False; it is {shorten(text)!r}. Correct the header.", where=path)
    return text[:1].lower() in ("t", "1")


def _check_kind(fields: Mapping[str, str], path: Location) -> None:
    """Refuse what is no scan, and values that would be read wrongly."""
    kind = fields.get("objecttype", "Image")
    if kind.lower() != "image":
        raise ScanError(f"ObjectType must be Image; it is {shorten(kind)!r}.", where=path)
    if not _is_true(fields, "binarydata", path, "True"):
        raise ScanError("its voxels are text (BinaryData = False); save them as bytes.", where=path)
    channels = parse_integers(fields.get("elementnumberofchannels", "1"), 1, "ElementNumberOfChannels", path)[0]
    if channels != 1:
        raise ScanError(
            f"a CT has one number a voxel; ElementNumberOfChannels is {channels}. A color picture is not a CT.",
            where=path,
        )
    slope = parse_numbers(
        fields.get("elementtointensityfunctionslope", "1"), 1, "ElementToIntensityFunctionSlope", path
    )
    shift = parse_numbers(
        fields.get("elementtointensityfunctionoffset", "0"), 1, "ElementToIntensityFunctionOffset", path
    )
    if (slope, shift) != ([1.0], [0.0]):
        raise ScanError(
            f"its header scales the voxels (ElementToIntensityFunctionSlope {slope[0]:g}, Offset {shift[0]:g}), which "
            "other programs do not apply. Save the scan in HU, without these fields.",
            where=path,
        )


def _read_rank(fields: Mapping[str, str], path: Location) -> int:
    rank = parse_integers(_require(fields, "ndims", path), 1, "NDims", path)[0]
    if rank not in (2, 3):
        raise ScanError(f"a CT has 3 axes, or 2 for one slice; NDims is {rank}. Save one volume.", where=path)
    return rank


def _read_type(fields: Mapping[str, str], path: Location) -> np.dtype[np.generic]:
    name = _require(fields, "elementtype", path)
    if name.upper() not in TYPES:
        raise ScanError(f"unknown ElementType {shorten(name)!r}; convert it to MET_SHORT.", where=path)
    order = ">" if _is_true(fields, "binarydatabyteordermsb", path) else "<"
    return np.dtype(order + TYPES[name.upper()])


def _read_affine(fields: Mapping[str, str], rank: int, path: Location) -> npt.NDArray[np.float64]:
    """Return the affine, voxel (i, j, k, 1) to RAS mm."""
    ones, zeros = " ".join("1" * rank), " ".join("0" * rank)
    spacing = parse_numbers(fields.get("elementspacing", fields.get("elementsize", ones)), rank, "ElementSpacing", path)
    offset = parse_numbers(fields.get("offset", zeros), rank, "Offset", path)
    identity = " ".join(str(int(number)) for number in np.eye(rank).ravel())
    matrix = parse_numbers(fields.get("transformmatrix", identity), rank * rank, "TransformMatrix", path)
    affine = np.eye(4)
    affine[:rank, :rank] = np.array(matrix).reshape(rank, rank).T * np.array(spacing)
    affine[:rank, 3] = offset
    return np.asarray(RAS_TO_LPS @ affine, dtype=np.float64)


def _warn(fields: Mapping[str, str], rank: int) -> list[str]:
    """Return warnings about fields that are missing or unusual."""
    warnings = []
    if not {"elementspacing", "elementsize"} & fields.keys():
        warnings.append("the header has no ElementSpacing; 1 mm was taken")
    if "transformmatrix" not in fields:
        warnings.append("the header has no TransformMatrix; its axes were taken as those of LPS")
    if "offset" not in fields:
        warnings.append("the header has no Offset; the first voxel was put at 0, 0, 0")
    if rank == 2:
        warnings.append("the header has 2 axes; the slice was taken as 1 mm thick")
    unit = fields.get("distanceunits", "mm").lower()
    if unit not in ("mm", "?", ""):
        warnings.append(f"the header gives lengths in {shorten(unit)}; its numbers were taken as mm")
    return warnings


def _name_files(fields: Mapping[str, str], path: Location) -> tuple[Location, ...]:
    """Return the files that ElementDataFile names; none if the voxels follow the header."""
    text = fields[LAST_KEY]
    if text.upper() == LOCAL:
        return ()
    if "list" in fields:
        names = [line.strip() for line in fields["list"].splitlines() if line.strip()]
    else:
        names = expand_pattern(text, "ElementDataFile", path) if "%" in text else [text]
    if not names:
        raise ScanError("ElementDataFile is an empty LIST. Correct the header.", where=path)
    return tuple(locate_data_file(name, "ElementDataFile", path) for name in names)


def _locate_voxels(fields: Mapping[str, str], start: bytes, size: int, path: Location) -> VoxelFiles:
    """Return where the voxels are; `size` is that of the header, bytes."""
    is_zlib = _is_true(fields, "compresseddata", path)
    skip = parse_integers(fields.get("headersize", "0"), 1, "HeaderSize", path)[0]
    files = _name_files(fields, path)
    if skip < FROM_END or (skip == FROM_END and is_zlib) or (skip > 0 and not files):
        raise ScanError(
            f"HeaderSize is {skip}, which has no meaning for {'compressed' if is_zlib else 'these'} voxels. "
            "Correct the header.",
            where=path,
        )
    if len(files) > 1 and is_zlib:
        raise ScanError("compressed voxels in several files are not read; save them as one .mha.", where=path)
    if not files:
        skip = skip if skip == FROM_END else size
    return VoxelFiles(
        files=files or (path,),
        header=_whole(start, path) if files else b"",
        encoding="zlib" if is_zlib else "raw",
        skip=skip,
    )


def _whole(start: bytes, path: Location) -> bytes:
    """Return the bytes of a header's file, which holds nothing else."""
    if len(start) == MAX_HEADER_BYTES:
        raise ScanError(f"its header has more than {MAX_HEADER_BYTES:,} bytes.", where=path)
    return start
