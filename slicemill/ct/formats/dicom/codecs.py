"""Compressed frames: decoded by imagecodecs, after their size was compared with the header's.

A codestream states its own size and precision. It is read first, because a decoder allocates what the stream claims.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError, ScanError
from slicemill.common.extras import describe_install
from slicemill.ct.formats.dicom.header import Format
from slicemill.ct.formats.dicom.uids import (
    ENCAPSULATED_PLAIN,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LOSSY,
    JPEG_LS,
    RLE,
)

START_OF_FRAME = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))
"""Markers of a JPEG frame header; 0xF7 is that of JPEG-LS (ITU-T T.81 table B.1, T.87 annex C)."""
SIZ = 0x51
"""Marker of the size of a JPEG 2000 codestream (ITU-T T.800 annex A.5.1)."""
MAX_MARKERS = 1000


@dataclass(frozen=True, slots=True)
class Stream:
    """What the header of a codestream says."""

    rows: int
    columns: int
    components: int
    precision: int
    is_signed: bool


def decode_frame(data: bytes, form: Format, where: object) -> npt.NDArray[Any]:
    """Decode a compressed frame to any[row, column]; its bits are still those of the stream.

    Raises
    ------
    ScanError
        The stream is damaged, or has another size than the header says.
    """
    imagecodecs = import_imagecodecs()
    try:
        if form.syntax == RLE:
            kind = np.dtype(f"<u{form.bits_allocated // 8}")
            out = bytearray(form.rows * form.columns * kind.itemsize)
            imagecodecs.dicomrle_decode(data, kind, out=out)
            return np.frombuffer(out, kind).reshape(form.rows, form.columns)
        if form.syntax == ENCAPSULATED_PLAIN:
            size = form.rows * form.columns
            return np.frombuffer(data, f"<u{form.bits_allocated // 8}", size).reshape(form.rows, form.columns)
        stream = read_stream(data)
        if (stream.rows, stream.columns, stream.components) != (form.rows, form.columns, 1):
            raise ScanError(
                f"its compressed picture has {stream.rows} x {stream.columns} pixels of {stream.components} channels; "
                f"Rows and Columns say {form.rows} x {form.columns} of 1.",
                where=where,
            )
        if stream.precision > form.bits_allocated:
            raise ScanError(
                f"its compressed picture has {stream.precision} bits, BitsAllocated says {form.bits_allocated}.",
                where=where,
            )
        pixels = np.asarray(_decoder(form.syntax, imagecodecs)(data))
    except ScanError as error:
        raise ScanError(error.reason, where=where) from error
    except MemoryError:
        raise
    except Exception as error:  # each codec has its own exceptions
        raise ScanError(
            f"its compressed pixels are damaged ({type(error).__name__}). Copy the file again.", where=where
        ) from error
    if pixels.shape != (form.rows, form.columns):
        raise ScanError(f"its compressed picture was decoded to the shape {pixels.shape}.", where=where)
    return _extend_sign(pixels, stream, form) if form.syntax in JPEG_2000 | HTJ2K else pixels


def import_imagecodecs() -> Any:
    """Return the package imagecodecs.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        import imagecodecs
    except ImportError as error:
        raise ConfigError(f"compressed DICOM needs imagecodecs. {describe_install('dicom')}.") from error
    return imagecodecs


def _decoder(syntax: str, imagecodecs: Any) -> Any:
    if syntax in JPEG_LOSSLESS | JPEG_LOSSY:
        return imagecodecs.jpeg8_decode
    if syntax in JPEG_LS:
        return imagecodecs.jpegls_decode
    return imagecodecs.htj2k_decode if syntax in HTJ2K else imagecodecs.jpeg2k_decode


def _extend_sign(pixels: npt.NDArray[Any], stream: Stream, form: Format) -> npt.NDArray[Any]:
    """Return pixels of a stream whose sign differs from PixelRepresentation with the sign of the header.

    pydicom's rule (``apply_j2k_sign_correction``): the bits of the stream's precision are right, their sign is not.
    """
    bits = pixels.itemsize * 8
    if stream.is_signed == form.is_signed or stream.precision == bits:
        return pixels
    target = pixels.view(f"{'i' if form.is_signed else 'u'}{pixels.itemsize}")
    shift = bits - stream.precision
    return np.asarray((target << shift) >> shift)


def read_stream(data: bytes) -> Stream:
    """Return size and precision of a JPEG, JPEG-LS or JPEG 2000 codestream (raw, or in a JP2 file).

    Raises
    ------
    ScanError
        There is none.
    """
    if data[:2] == b"\xff\xd8":
        return _read_jpeg(data)
    at = 0 if data[:4] == b"\xff\x4f\xff\x51" else data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(data) < at + 45:
        raise ScanError("its compressed pixels are no JPEG stream; the file is damaged.")

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[at + offset : at + offset + size], "big")

    return Stream(
        rows=number(12, 4) - number(20, 4),
        columns=number(8, 4) - number(16, 4),
        components=number(40, 2),
        precision=(number(42, 1) & 0x7F) + 1,
        is_signed=bool(number(42, 1) & 0x80),
    )


def _read_jpeg(data: bytes) -> Stream:
    at = 2
    for _ in range(MAX_MARKERS):
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if len(data) < at + 10 or data[at] != 0xFF:
            break
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in START_OF_FRAME:
            rows, columns = (int.from_bytes(data[at + start : at + start + 2], "big") for start in (5, 7))
            return Stream(rows, columns, data[at + 9], precision=data[at + 4], is_signed=False)
        at += 2 + length
    raise ScanError("its compressed pixels have no JPEG frame header; the file is damaged.")
