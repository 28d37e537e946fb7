"""Planes: one slice each, of a file of its own or of a frame of a multi-frame file, with its place and scaling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, ScanError
from slicemill.ct.formats.dicom.header import FileHeader, Numbers
from slicemill.ct.formats.dicom.uids import SYNTAX_NAMES

MAX_FRAMES = 100_000
MAX_SIDE = 16_384
"""Most rows or columns of a slice."""
MAX_PACKED_BYTES = 32 << 20
"""Largest slice, decoded, that a file of any size may claim to hold compressed: 4096 x 4096 pixels of 16 bits. A blank
slice of JPEG 2000 has a few hundred bytes whatever its size, so the file's size does not bound it."""
MOST_PACKED = 256
"""Most bytes of a larger slice for each byte of its file. CT compresses 2 to 10 times."""
UNIT_TOLERANCE = 1e-3
"""How far the directions of rows and columns may be from unit length and from a right angle."""
HU_TYPES = ("", "HU", "US", "HU_MOD")
"""Values of RescaleType that mean HU, or say nothing."""
KNOWN_CODES = frozenset((
    "", "HU", "US", "HU_MOD", "OD", "MGML", "Z_EFF", "ED", "EDW", "PCT", "MONOCHROME1", "MONOCHROME2", "RGB",
    "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "CT", "MR", "PT", "NM", "CR",
    "DX", "XA", "OT", "SC", "SEG", "SR", "PR", "KO", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "DOC",
))  # fmt: skip
"""Codes of RescaleType (C.11.1.1.2), PhotometricInterpretation (C.7.6.3.1.2) and Modality (C.7.3.1.1.1)."""
POSITION, ORIENTATION, SPACING = (
    "ImagePositionPatient (0020,0032)",
    "ImageOrientationPatient (0020,0037)",
    "PixelSpacing (0028,0030)",
)


@dataclass(frozen=True, slots=True)
class Plane:
    """One slice."""

    header: FileHeader
    """Header of its file."""
    frame: int
    """Index of its frame in the file, from 0."""
    position: Numbers
    """Center of the first pixel, LPS mm."""
    orientation: Numbers
    """Direction along a row (x, y, z) and along a column, LPS, unit vectors."""
    spacing: Numbers
    """Distance of rows and of columns, mm."""
    slope: float
    """HU = stored number * slope + inter."""
    inter: float
    phase: tuple[str, ...]
    """Values of PHASE_TAGS, which tell several stacks at the same positions apart."""

    @property
    def sop_instance_uid(self) -> str:
        """Return the SOPInstanceUID of the plane's file."""
        return self.header.sop_instance_uid

    @property
    def name(self) -> str:
        """Return the name of the plane's file, with its frame in a multi-frame file."""
        name = self.header.file.name
        return f"{name} (frame {self.frame + 1})" if self.header.frames > 1 else name

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Return the direction across the slice, LPS: that along a row times that along a column."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def make_plane(
    header: FileHeader,
    frame: int,
    geometry: tuple[Numbers | None, Numbers | None, Numbers | None],
    rescale: tuple[float | None, float | None, str],
    phase: Sequence[str],
) -> Plane:
    """Return a plane whose position, orientation, spacing and rescaling were checked."""
    position = _check(header, POSITION, geometry[0], 3)
    orientation = _check(header, ORIENTATION, geometry[1], 6)
    spacing = _check(header, SPACING, geometry[2], 2)
    _check_directions(header, orientation)
    if min(spacing) <= 0:
        raise refuse(header, f"{SPACING} must be above 0; it is {_show(spacing)}")
    slope, inter, kind = rescale
    slope, inter = (1.0 if slope is None else slope), (0.0 if inter is None else inter)
    if not math.isfinite(slope) or slope == 0:
        raise refuse(header, "RescaleSlope (0028,1053) must be a number other than 0")
    if not math.isfinite(inter):
        raise refuse(header, "RescaleIntercept (0028,1052) must be a number")
    if kind.upper() not in HU_TYPES:
        raise refuse(header, f"RescaleType (0028,1054) must be HU; it is {show_code(kind)}, so its values are no HU")
    return Plane(header, frame, position, orientation, spacing, slope, inter, tuple(phase))


def check_pixels(header: FileHeader) -> None:
    """Check that pixels are whole numbers of one channel, in a known syntax, and that the file is large enough.

    Raises
    ------
    ScanError
        They are not.
    """
    form = header.format
    if not header.pixel_tag:
        raise refuse(header, "PixelData (7FE0,0010) is missing: the file has no picture")
    if header.pixel_tag != 0x7FE00010:
        raise refuse(header, "its pixels are floating-point numbers (7FE0,0008 or 7FE0,0009), not those of a CT")
    if form.syntax not in SYNTAX_NAMES:
        raise refuse(header, f"its transfer syntax (0002,0010) {show_uid(form.syntax)} is not read")
    if form.samples != 1 or form.photometric != "MONOCHROME2":
        raise refuse(
            header,
            f"PhotometricInterpretation (0028,0004) must be MONOCHROME2 with one sample; it is "
            f"{show_code(form.photometric)} with {form.samples}, which is no CT slice",
        )
    if form.bits_allocated not in (8, 16):
        raise refuse(header, f"BitsAllocated (0028,0100) must be 8 or 16; it is {form.bits_allocated}")
    if header.has_lut:
        raise refuse(header, "has a ModalityLUTSequence (0028,3000) in place of slope and intercept")
    _check_size(header)


def _check_size(header: FileHeader) -> None:
    form = header.format
    if not (0 < form.bits_stored <= form.high_bit + 1 <= form.bits_allocated):
        raise refuse(
            header,
            f"BitsStored (0028,0101) {form.bits_stored} and HighBit (0028,0102) {form.high_bit} do not fit "
            f"BitsAllocated {form.bits_allocated}",
        )
    if not (0 < form.rows <= MAX_SIDE and 0 < form.columns <= MAX_SIDE):
        raise refuse(header, f"Rows and Columns (0028,0010 and 0011) {form.rows} x {form.columns} are impossible")
    if not 0 < header.frames <= MAX_FRAMES:
        raise refuse(header, f"NumberOfFrames (0028,0008) must be 1 to {MAX_FRAMES:,}; it is {header.frames}")
    needed = form.rows * form.columns * header.frames * form.bits_allocated // 8
    if header.pixel_length == 0xFFFFFFFF:
        _check_packed(header, needed // header.frames)
        return
    beyond = form.columns * form.bits_allocated // 8  # a row: anything shorter may be padding
    if not needed <= header.pixel_length < needed + max(2, beyond):
        raise refuse(
            header, f"PixelData (7FE0,0010) has {header.pixel_length:,} bytes, but the header claims {needed:,}"
        )


def _check_packed(header: FileHeader, slice_bytes: int) -> None:
    """Check that a compressed slice is not far larger than its file: decoders take memory by the header's claim."""
    size = header.file.size
    if slice_bytes > MAX_PACKED_BYTES and slice_bytes > MOST_PACKED * size:
        form = header.format
        raise refuse(
            header,
            f"Rows and Columns (0028,0010 and 0011) claim a slice of {form.rows} x {form.columns} pixels, "
            f"{slice_bytes:,} bytes, in a compressed file of {size:,}; at most {MOST_PACKED} times its size is read",
        )


def _check(header: FileHeader, name: str, numbers: Numbers | None, count: int) -> Numbers:
    if numbers is None:
        raise refuse(header, f"{name} is missing, so nothing says where the slice lies")
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise refuse(header, f"{name} must be {count} numbers")
    return numbers


def _check_directions(header: FileHeader, orientation: Numbers) -> None:
    if not are_directions(orientation):
        raise GeometryError(
            f"{ORIENTATION} must be two directions of length 1 at a right angle; it is {_show(orientation)}. The file "
            "is damaged.",
            where=header.file,
        )


@lru_cache(maxsize=1024)
def are_directions(orientation: Numbers) -> bool:
    """Return whether six numbers are two directions of length 1 at a right angle; computed once for a series.

    >>> are_directions((1.0, 0.0, 0.0, 0.0, 0.6, 0.8)), are_directions((1.0, 0.0, 0.0, 0.6, 0.8, 0.0))
    (True, False)
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    apart = abs(float(row @ column))
    return max(abs(lengths[0] - 1), abs(lengths[1] - 1), apart) <= UNIT_TOLERANCE


def refuse(header: FileHeader, rule: str) -> ScanError:
    """Return the error that a file breaks a rule."""
    return ScanError(f"{rule}.", where=header.file)


def _show(numbers: Numbers) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def show_code(text: str) -> str:
    """Return a code of a header for a message: other text may name a person, and is not shown.

    >>> show_code("MONOCHROME1"), show_code("DOE JANE"), show_code("")
    ('MONOCHROME1', '(not a known code)', '(empty)')
    """
    return (text or "(empty)") if text in KNOWN_CODES else "(not a known code)"


def show_uid(text: str) -> str:
    """Return a UID for a message; text that is no UID is not shown."""
    plain = text and len(text) <= 64 and all(one.isdigit() or one == "." for one in text)
    return text if plain else "(not a UID)"


def dataset_numbers(value: Any) -> Numbers | None:
    """Return a value of pydicom as numbers; None without a value, NaN for one that cannot be read."""
    if value is None:
        return None
    try:
        many = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        return tuple(float(one) for one in many) or None
    except (TypeError, ValueError):
        return (math.nan,)
