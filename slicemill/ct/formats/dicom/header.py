"""The header of a DICOM file: the fields that matter for a CT, decoded.

`slicemill.ct.formats.dicom.elements` reads the usual files. pydicom reads the others: big endian, and files whose
elements are not encoded as their transfer syntax says.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.elements import (
    Elements,
    TooShortError,
    UnwalkableError,
    is_dicom,
    walk,
)
from slicemill.ct.formats.dicom.files import DicomFile, OpenFile
from slicemill.ct.formats.dicom.uids import DEFLATED, EXPLICIT

FIRST_BYTES = 16 << 10
"""Bytes of a file that are read first: the headers of CT scanners have 2 to 16 KiB."""
MAX_HEADER_BYTES = 64 << 20
"""Longest header before the pixels; that of an enhanced CT with 10,000 frames has 15 MB."""
MAX_INFLATED_BYTES = 256 << 20
"""Most bytes of a deflated file, inflated."""
TAGS = {
    0x00080008: "ImageType",
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080033: "ContentTime",
    0x00080060: "Modality",
    0x00081090: "ManufacturerModelName",
    0x00100020: "PatientID",
    0x00180010: "ContrastBolusAgent",
    0x00180050: "SliceThickness",
    0x00180060: "KVP",
    0x00181060: "TriggerTime",
    0x00181210: "ConvolutionKernel",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200011: "SeriesNumber",
    0x00200012: "AcquisitionNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00200052: "FrameOfReferenceUID",
    0x00200100: "TemporalPositionIdentifier",
    0x00280002: "SamplesPerPixel",
    0x00280004: "PhotometricInterpretation",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280030: "PixelSpacing",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
    0x00280120: "PixelPaddingValue",
    0x00280121: "PixelPaddingRangeLimit",
    0x00280301: "BurnedInAnnotation",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
    0x00281054: "RescaleType",
    0x00282110: "LossyImageCompression",
    0x00283000: "ModalityLUTSequence",
}
"""The tags that are read, and their keywords. Names, dates, addresses and private tags are not among them."""
TAG_OF = {name: tag for tag, name in TAGS.items()}
BINARY = frozenset(
    TAG_OF[name]
    for name in (
        "SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
        "PixelPaddingValue", "PixelPaddingRangeLimit",
    )
)  # fmt: skip
"""Tags whose values are numbers of two bytes (US or SS)."""
Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a store keeps of a DICOM header beside the grid: the allow list. Nothing else of it is ever written."""

    transfer_syntax: str
    scanner_model: str
    kernel: str
    kvp: float | None
    slice_thickness_mm: float | None
    contrast: bool


@dataclass(frozen=True, slots=True)
class Format:
    """How the pixels of a file are stored. Files of one stack share it."""

    syntax: str
    """Transfer syntax UID."""
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    samples: int
    photometric: str
    padding: int | None
    """PixelPaddingValue, a stored number; None without padding."""
    padding_limit: int | None
    """PixelPaddingRangeLimit: the other end of the padding's range."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file belongs to. Files of one series share it."""

    sop_class: str
    modality: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    image_type: tuple[str, ...]
    series_number: str
    patient_id: str = field(repr=False)
    """PatientID as in the file: hashed before anything is written."""


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The decoded header of a file. Numbers that cannot be read are NaN; those that are absent are None."""

    file: DicomFile
    identity: Identity
    format: Format
    kept: Kept
    sop_instance_uid: str
    frames: int
    spacing: Numbers | None
    """PixelSpacing: distance of rows, then of columns, mm."""
    orientation: Numbers | None
    """ImageOrientationPatient: direction along a row, then along a column, LPS."""
    position: Numbers | None
    """ImagePositionPatient: center of the first pixel, LPS mm."""
    rescale: tuple[float | None, float | None]
    """RescaleSlope and RescaleIntercept."""
    rescale_type: str
    has_lut: bool
    """Whether there is a ModalityLUTSequence."""
    is_lossy: bool
    has_burned_in_text: bool
    phase: tuple[str, str, str, str]
    """AcquisitionNumber, TemporalPositionIdentifier, TriggerTime, ContentTime: what tells stacks apart."""
    pixel_tag: int
    pixel_offset: int
    pixel_length: int


def read_file_header(file: DicomFile) -> FileHeader | None:
    """Read the header of a file; None if the file is not DICOM.

    Raises
    ------
    ScanError
        The file is DICOM and damaged.
    """
    with OpenFile(file) as opened:
        start = opened.read(0, FIRST_BYTES)
        if not is_dicom(start):
            return None
        try:
            elements = read_elements(opened, file, start)
        except ScanError as error:
            if start[128:132] != b"DICM":
                return None
            error.where = error.where or str(file)
            raise
        if start[128:132] != b"DICM" and not elements.values.get(TAG_OF["SOPClassUID"]):
            return None
    return decode_header(file, elements)


def read_elements(opened: OpenFile, file: DicomFile, start: bytes) -> Elements:
    """Return the wanted elements of an open file whose first bytes are `start`."""
    while True:
        try:
            return walk(start, file.size, TAGS)
        except TooShortError as error:
            needed = max(error.needed, 8 * len(start))
            if len(start) >= MAX_HEADER_BYTES:
                raise ScanError(f"its header has more than {MAX_HEADER_BYTES:,} bytes; it is damaged.") from None
            if len(start) >= file.size:
                raise ScanError(f"ends early: an element needs {needed:,} bytes. Copy the file again.") from None
            start = opened.read(0, min(needed, MAX_HEADER_BYTES))
        except UnwalkableError as error:
            if str(error) == DEFLATED:
                return _walk_inflated(inflate(opened.read(0, file.size), file), file)
            return _read_by_pydicom(opened, file)


def _walk_inflated(content: bytes, file: DicomFile) -> Elements:
    """Return the elements of a deflated file, inflated."""
    try:
        elements = walk(content, len(content), TAGS)
    except (TooShortError, UnwalkableError):
        raise ScanError("its inflated elements are damaged. Copy the file again.", where=file) from None
    elements.syntax = DEFLATED
    return elements


def inflate(data: bytes, file: DicomFile) -> bytes:
    """Return a deflated file with its data set inflated, and with the transfer syntax of the inflated bytes.

    Raises
    ------
    ScanError
        The stream is damaged, or longer than MAX_INFLATED_BYTES.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\x02\0":
        is_long = data[at + 4 : at + 6] in (b"OB", b"UN", b"OW")
        length = int.from_bytes(data[at + 8 : at + 12] if is_long else data[at + 6 : at + 8], "little")
        at += (12 if is_long else 8) + length
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(data[at:], MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise ScanError(f"its deflated data are damaged ({error}). Copy the file again.", where=file) from error
    if not stream.eof:
        why = f"inflates to more than {MAX_INFLATED_BYTES:,} bytes" if stream.unconsumed_tail else "ends early"
        raise ScanError(f"its deflated data set {why}; the file is damaged.", where=file)
    return _EXPLICIT_META + content


_EXPLICIT_META = (
    bytes(128) + b"DICM" + b"\x02\0\x10\0UI" + len(EXPLICIT.encode() + b"\0").to_bytes(2, "little") + EXPLICIT.encode()
    + b"\0"
)  # fmt: skip


def _read_by_pydicom(opened: OpenFile, file: DicomFile) -> Elements:
    """Return the elements of a file that `walk` does not read."""
    from slicemill.ct.formats.dicom.pydicom_files import read_dataset, report_damage, to_elements

    dataset = read_dataset(opened, file)
    with report_damage(file):
        return to_elements(dataset, TAGS, BINARY)


_OWN = (
    "SOPInstanceUID", "ImagePositionPatient", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime",
    "ContentTime",
)  # fmt: skip
"""Elements that differ from slice to slice. All others are decoded once for all files with the same bytes."""
_SHARED = tuple(tag for tag, name in TAGS.items() if name not in _OWN)


def decode_header(file: DicomFile, elements: Elements) -> FileHeader:
    """Return the decoded fields of a file's elements."""
    values = elements.values
    shared = _decode_shared(elements.syntax, tuple([values.get(tag) for tag in _SHARED]))
    return FileHeader(
        file=file,
        sop_instance_uid=_text(values, "SOPInstanceUID"),
        position=_numbers(values, "ImagePositionPatient"),
        phase=(
            _text(values, "AcquisitionNumber"),
            _text(values, "TemporalPositionIdentifier"),
            _text(values, "TriggerTime"),
            _text(values, "ContentTime"),
        ),
        pixel_tag=elements.pixel_tag,
        pixel_offset=elements.pixel_offset,
        pixel_length=elements.pixel_length,
        **shared,
    )


@lru_cache(maxsize=1024)
def _decode_shared(syntax: str, raws: tuple[bytes | None, ...]) -> dict[str, Any]:
    """Return the fields of a header that the files of a series have in common."""
    values = {tag: raw for tag, raw in zip(_SHARED, raws, strict=True) if raw is not None}
    frames = _number(values, "NumberOfFrames")
    return {
        "identity": _identity(tuple(_text(values, name) for name in _IDENTITY)),
        "format": _format(syntax, values),
        "kept": _kept(syntax, tuple(_text(values, name) for name in _KEPT)),
        "frames": int(frames) if frames and math.isfinite(frames) else 1,
        "spacing": _numbers(values, "PixelSpacing"),
        "orientation": _numbers(values, "ImageOrientationPatient"),
        "rescale": (_number(values, "RescaleSlope"), _number(values, "RescaleIntercept")),
        "rescale_type": _text(values, "RescaleType"),
        "has_lut": TAG_OF["ModalityLUTSequence"] in values,
        "is_lossy": _text(values, "LossyImageCompression") == "01",
        "has_burned_in_text": _text(values, "BurnedInAnnotation") == "YES",
    }


def _format(syntax: str, values: Mapping[int, bytes]) -> Format:
    signed = _integer(values, "PixelRepresentation") == 1
    bits = _integer(values, "BitsAllocated") or 0
    return Format(
        syntax=syntax,
        rows=_integer(values, "Rows") or 0,
        columns=_integer(values, "Columns") or 0,
        bits_allocated=bits,
        bits_stored=_integer(values, "BitsStored") or bits,
        high_bit=_high_bit(values, bits),
        is_signed=signed,
        samples=_integer(values, "SamplesPerPixel") or 1,
        photometric=_text(values, "PhotometricInterpretation"),
        padding=_integer(values, "PixelPaddingValue", signed=signed),
        padding_limit=_integer(values, "PixelPaddingRangeLimit", signed=signed),
    )


_IDENTITY = (
    "SOPClassUID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType",
    "SeriesNumber", "PatientID",
)  # fmt: skip
_KEPT = ("ManufacturerModelName", "ConvolutionKernel", "KVP", "SliceThickness", "ContrastBolusAgent")


@lru_cache(maxsize=1024)
def _identity(texts: tuple[str, ...]) -> Identity:
    """Return one object for all files of a series."""
    sop_class, modality, study, series, frame, image_type, number, patient = texts
    parts = tuple(part.strip().upper() for part in image_type.split("\\"))
    return Identity(sop_class, modality, study, series, frame, parts, number, patient)


@lru_cache(maxsize=1024)
def _kept(syntax: str, texts: tuple[str, ...]) -> Kept:
    """Return one object for all files of a series."""
    model, kernel, kvp, thickness, agent = texts
    return Kept(syntax, model, kernel, _parse_positive(kvp), _parse_positive(thickness), bool(agent))


def _parse_positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _text(values: Mapping[int, bytes], name: str) -> str:
    """Return a value as text without padding; empty if it is absent."""
    raw = values.get(TAG_OF[name], b"")
    return raw.strip(b"\0 ").decode("latin-1")


def _numbers(values: Mapping[int, bytes], name: str) -> Numbers | None:
    """Return decimal numbers, NaN for one that cannot be read; None if they are absent."""
    text = _text(values, name)
    if not text:
        return None
    try:
        return tuple([float(part) for part in text.split("\\")])
    except ValueError:
        return (math.nan,)


def _number(values: Mapping[int, bytes], name: str) -> float | None:
    numbers = _numbers(values, name)
    return None if numbers is None else numbers[0]


def _integer(values: Mapping[int, bytes], name: str, *, signed: bool = False) -> int | None:
    """Return a number of two bytes; None if it is absent."""
    raw = values.get(TAG_OF[name], b"")
    return int.from_bytes(raw[:2], "little", signed=signed) if len(raw) >= 2 else None


def _high_bit(values: Mapping[int, bytes], bits: int) -> int:
    high = _integer(values, "HighBit")
    return high if high is not None else (_integer(values, "BitsStored") or bits) - 1
