"""Headers of NRRD (``.nrrd``, ``.nhdr``), and of 3D Slicer's segmentations (``.seg.nrrd``).

The rules are those of the format's definition (teem.sourceforge.net/nrrd/format.html), except that nothing outside of
the header's folder is read:

1. The world is that of the field ``space``: LPS, RAS or LAS. Directions in another space are refused.
2. Voxels are raw or gzip. Three axes are spatial, or two for one slice. A fourth is refused, unless it has one value,
   or its values are the layers of segments (`slicemill.ct.formats.nrrd.segments`).
"""

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.names import is_nrrd_name
from slicemill.ct.formats.nrrd.fields import MAX_HEADER_BYTES, NrrdText, parse_quoted, parse_vectors, read_text
from slicemill.ct.formats.nrrd.segments import Segment, check_names, read_segments, values_of_layers
from slicemill.ct.formats.text_header import (
    NUMBER,
    expand_pattern,
    locate_data_file,
    parse_integers,
    shorten,
)
from slicemill.ct.formats.volume import FROM_END, Encoding, VolumeHeader, VoxelFiles
from slicemill.ct.geometry import RAS_TO_LPS, Grid
from slicemill.ct.grid_checks import grid_warnings
from slicemill.ct.labels import Labels

TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
TYPE_OF = {name: code for code, names in TYPES.items() for name in names.split(", ")}
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
"""Space -> signs of its axes in LPS."""
ENCODINGS: dict[str, Encoding] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
SPATIAL = ("domain", "space")
UNKNOWN_KINDS = ("", "???", "none")
NO_SPACE = "the header has no space; its spacings are used, and the patient's sides and position are unknown"


def read_nrrd(path: Location) -> VolumeHeader:
    """Read and check the header of an NRRD file.

    Raises
    ------
    ScanError
        The file is not NRRD, cannot be a CT or a mask, or names files that are not beside it.
    """
    text = read_text(path)
    rank = parse_integers(_require(text, "dimension", path), 1, "dimension", path)[0]
    if not 2 <= rank <= 4:
        raise ScanError(f"a CT has 3 axes; the header has {rank}. Save one volume.", where=path)
    sizes = parse_integers(_require(text, "sizes", path), rank, "sizes", path)
    if min(sizes) < 1:
        raise ScanError(f"every size must be at least 1; they are {sizes}.", where=path)
    spatial = _find_spatial_axes(text, sizes, path)
    affine, warnings = _read_affine(text, spatial, rank, path)
    layers: tuple[tuple[int, ...], ...] = ()
    if rank - len(spatial) == 1 and 0 not in spatial and sizes[0] > 1:
        layers = values_of_layers(read_segments(text.pairs, path), sizes[0], path)
    try:
        shape = (*(sizes[axis] for axis in spatial), 1)[:3]
        grid = Grid(shape=shape, affine=affine)  # type: ignore[arg-type]
    except GeometryError as error:
        raise GeometryError(error.reason, where=path) from error
    return VolumeHeader(
        format="NRRD",
        grid=grid,
        dtype=_read_type(text, path),
        voxels=_locate_voxels(text, path),
        warnings=(*warnings, *grid_warnings(grid)),
        layers=layers,
    )


def list_data_files(path: Location) -> tuple[Location, ...]:
    """Return the files with voxels that a header names; they need not exist.

    Raises
    ------
    ScanError
        The header cannot be read, or names a file that is not beside it.
    """
    return _name_files(read_text(path), path)


def list_segments(path: Location) -> tuple[Segment, ...]:
    """Return the segments of a segmentation of 3D Slicer; none if the header names none.

    Raises
    ------
    ScanError
        The header cannot be read.
    """
    return read_segments(read_text(path).pairs, path)


def check_segments(path: Location, labels: Labels) -> None:
    """Check the names of the segments of a segmentation of 3D Slicer (`check_names`); other formats name none.

    Raises
    ------
    LabelError
        A segment has the name of a label, but another value.
    ScanError
        The header cannot be read.
    """
    if is_nrrd_name(path.name):
        check_names(list_segments(path), labels, path)


def _require(text: NrrdText, field: str, path: Location) -> str:
    if field not in text.fields:
        raise ScanError(f"its NRRD header has no {field}. Correct the header.", where=path)
    return text.fields[field]


def _find_spatial_axes(text: NrrdText, sizes: list[int], path: Location) -> list[int]:
    """Return the three spatial axes, or two of a single slice."""
    rank = len(sizes)
    kinds = text.fields.get("kinds", "").lower().split() or [""] * rank
    vectors = parse_vectors(text.fields.get("space directions", ""), "space directions", path)
    if len(kinds) != rank or (vectors and len(vectors) != rank):
        raise ScanError(f"kinds and space directions must each have {rank} entries. Correct the header.", where=path)
    if vectors:
        spatial = [axis for axis, vector in enumerate(vectors) if vector is not None]
    elif any(kind in SPATIAL for kind in kinds):
        spatial = [axis for axis, kind in enumerate(kinds) if kind in SPATIAL]
    else:
        spatial = [axis for axis in range(rank) if kinds[axis] in UNKNOWN_KINDS]
    odd = [kinds[axis] for axis in spatial if kinds[axis] not in (*SPATIAL, *UNKNOWN_KINDS)]
    others = [axis for axis in range(rank) if axis not in spatial]
    if (
        odd
        or len(spatial) not in (2, 3)
        or (len(spatial) == 2 and others)
        or any(sizes[axis] > 1 for axis in others[1:])
    ):
        raise ScanError(
            f"a CT has 3 spatial axes and one number a voxel; the axes are {' '.join(map(str, sizes))}, kinds "
            f"{text.fields.get('kinds', 'not stated')}. Save one volume.",
            where=path,
        )
    if any(sizes[axis] > 1 for axis in others if axis != 0):
        raise ScanError(f"holds several volumes, sizes {' '.join(map(str, sizes))}; a CT is one volume.", where=path)
    return spatial


def _read_affine(
    text: NrrdText, spatial: list[int], rank: int, path: Location
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Return the affine, voxel (i, j, k, 1) to RAS mm, and warnings."""
    warnings = _warn_units(text)
    if len(spatial) == 2:
        warnings.append("the header has 2 axes; the slice was taken as 1 mm thick")
    affine = np.eye(4)
    name = text.fields.get("space", "").lower()
    vectors = parse_vectors(text.fields.get("space directions", ""), "space directions", path)
    if not vectors:
        lengths = _read_spacings(text, rank, path)
        known = [lengths[axis] for axis in spatial]
        affine[range(len(known)), range(len(known))] = [1.0 if length is None else length for length in known]
        missing = ["the header has no spacing; 1 mm was taken"] if None in known else []
        return np.asarray(RAS_TO_LPS @ affine, dtype=np.float64), [*warnings, *missing, NO_SPACE]
    if name not in SPACES:
        raise ScanError(
            f"its space must be one of a patient ({', '.join(name for name in SPACES if '-' in name)}); it is "
            f"{shorten(name) or 'not stated'!r}. Correct the header.",
            where=path,
        )
    columns = [np.array(vectors[axis]) for axis in spatial]
    if len(columns) == 2:
        normal = np.cross(columns[0], columns[1])
        length = np.linalg.norm(normal)
        columns.append(normal / length if length > 0 else normal)
    affine[:3, :3] = np.array(columns).T
    origin = parse_vectors(text.fields.get("space origin", ""), "space origin", path)
    if len(origin) == 1 and origin[0] is not None:
        affine[:3, 3] = origin[0]
    elif "space origin" in text.fields:
        raise ScanError(f"space origin must be one vector; it is {shorten(text.fields['space origin'])!r}.", where=path)
    else:
        warnings.append("the header has no space origin; the first voxel was put at 0, 0, 0")
    lps = np.diag([*SPACES[name], 1.0]) @ affine
    return np.asarray(RAS_TO_LPS @ lps, dtype=np.float64), warnings


def _read_spacings(text: NrrdText, rank: int, path: Location) -> list[float | None]:
    """Return the spacing of each axis; None where it is not stated."""
    words = text.fields.get("spacings", " ".join(["nan"] * rank)).split()
    if len(words) != rank or not all(NUMBER.fullmatch(word) or word.lower() == "nan" for word in words):
        raise ScanError(f"spacings must be {rank} numbers; they are {' '.join(words)[:60]!r}.", where=path)
    return [None if word.lower() == "nan" else float(word) for word in words]


def _warn_units(text: NrrdText) -> list[str]:
    """Return a warning about lengths that are not in mm."""
    units = {unit.lower() for unit in parse_quoted(text.fields.get("space units", text.fields.get("units", "")))}
    odd = sorted(units - {"mm", "millimeter", "millimeters", "", "???"})
    return [f"the header gives lengths in {shorten(', '.join(odd))}; its numbers were taken as mm"] if odd else []


def _read_type(text: NrrdText, path: Location) -> np.dtype[np.generic]:
    name = " ".join(_require(text, "type", path).lower().split())
    if name not in TYPE_OF:
        raise ScanError(f"voxels must be integers or floats; the type is {shorten(name)!r}.", where=path)
    code = TYPE_OF[name]
    endian = text.fields.get("endian", "").lower()
    if code[1] != "1" and endian not in ("little", "big"):
        raise ScanError(f"endian must be little or big; it is {shorten(endian)!r}. Correct the header.", where=path)
    return np.dtype((">" if endian == "big" else "<") + code)


def _name_files(text: NrrdText, path: Location) -> tuple[Location, ...]:
    """Return the files that the header names; none if the voxels follow it."""
    if "data file" not in text.fields:
        return ()
    value = text.fields["data file"]
    if "list" in text.fields:
        names = list(text.files)
    elif "%" in value:
        words = value.split()
        names = expand_pattern(" ".join(words[:4]) if len(words) == 5 else value, "data file", path)
    else:
        names = [value]
    if not names:
        raise ScanError("data file is an empty LIST. Correct the header.", where=path)
    # the format's own programs write ./ before the name of a file that lies beside the header
    return tuple(locate_data_file(name.removeprefix("./"), "data file", path) for name in names)


def _locate_voxels(text: NrrdText, path: Location) -> VoxelFiles:
    encoding = ENCODINGS.get(_require(text, "encoding", path).lower())
    if encoding is None:
        raise ScanError(
            f"encoding must be raw or gzip; it is {shorten(text.fields['encoding'])!r}. Save it again.", where=path
        )
    skip = parse_integers(text.fields.get("byte skip", "0"), 1, "byte skip", path)[0]
    lines = parse_integers(text.fields.get("line skip", "0"), 1, "line skip", path)[0]
    files = _name_files(text, path)
    is_raw = encoding == "raw"
    if files and len(text.start) == MAX_HEADER_BYTES:
        raise ScanError(f"its header has more than {MAX_HEADER_BYTES:,} bytes.", where=path)
    if lines or skip < FROM_END or (skip == FROM_END and not is_raw) or (len(files) > 1 and not is_raw):
        raise ScanError(
            f"line skip {lines} and byte skip {skip} with encoding {encoding} in {max(1, len(files))} files are not "
            "read. Save it as one .nrrd.",
            where=path,
        )
    before = 0 if files else text.size
    stored = (skip if skip == FROM_END else before + skip) if is_raw else before
    return VoxelFiles(
        files=files or (path,),
        header=text.start if files else b"",
        encoding=encoding,
        skip=stored,
        skip_inside=0 if is_raw else skip,
    )
