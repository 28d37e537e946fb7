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
from slicemill.ct.formats.dicom.pixels import number_type
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
END_OF_IMAGE = b"\xff\xd9"
"""Last marker of JPEG, JPEG-LS and JPEG 2000 streams (T.81 table B.1, T.800 annex A.4.4)."""
END_BYTES = 64
"""Bytes in which the last marker is looked for: one zero may follow it (PS3.5 A.4), some writers add more."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What the header of a codestream says."""

    rows: int
    columns: int
    components: int
    precision: int
    is_signed: bool


def decode_frame(data: bytes | memoryview, form: Format, where: object) -> npt.NDArray[Any]:
    """Decode a compressed frame to any[row, column]; its bits are still those of the stream.

    Raises
    ------
    ScanError
        The stream is damaged, or has another size than the header says.
    """
    pixels = np.empty((form.rows, form.columns), number_type(form))
    decode_into(pixels, data, form, where)
    return pixels


def decode_into(out: npt.NDArray[Any], data: bytes | memoryview, form: Format, where: object) -> None:
    """Decode a compressed frame into any[row, column] of the header's type; its bits are still those of the stream.

    Raises
    ------
    ScanError
        The stream is damaged, ends early, or has another size than the header says.
    """
    imagecodecs = import_imagecodecs()
    try:
        if form.syntax == RLE:
            _decode_rle(out, data, imagecodecs)
        elif form.syntax == ENCAPSULATED_PLAIN:
            out[...] = np.frombuffer(data, out.dtype, out.size).reshape(out.shape)
        else:
            _decode_stream(out, data, form, _decoder(form.syntax, imagecodecs))
    except ScanError as error:
        raise ScanError(error.reason, where=where) from error
    except MemoryError:
        raise
    except Exception as error:  # each codec has its own exceptions
        raise ScanError(
            f"its compressed pixels are damaged ({type(error).__name__}). Copy the file again.", where=where
        ) from error


def _decode_rle(out: npt.NDArray[Any], data: bytes | memoryview, imagecodecs: Any) -> None:
    """Decode the runs of a frame. The decoder leaves the rest of `out` as it was if they end early."""
    count = imagecodecs.dicomrle_decode(data, out.dtype, out=out.reshape(-1).view(np.uint8)).nbytes
    if count != out.nbytes:
        raise ScanError(f"its runs (RLE) give {count:,} bytes of pixels in place of {out.nbytes:,}; it is damaged.")


def _decode_stream(out: npt.NDArray[Any], data: bytes | memoryview, form: Format, decode: Any) -> None:
    """Decode a JPEG, JPEG-LS or JPEG 2000 stream into `out`, without another array if it has pixels of that size."""
    stream = read_stream(data)
    if (stream.rows, stream.columns, stream.components) != (form.rows, form.columns, 1):
        raise ScanError(
            f"its compressed picture has {stream.rows} x {stream.columns} pixels of {stream.components} channels; "
            f"Rows and Columns say {form.rows} x {form.columns} of 1."
        )
    if stream.precision > form.bits_allocated:
        raise ScanError(
            f"its compressed picture has {stream.precision} bits, BitsAllocated says {form.bits_allocated}."
        )
    if bytes(data[-END_BYTES:]).rstrip(b"\0")[-2:] != END_OF_IMAGE:  # some decoders make up what lacks
        raise ScanError("its compressed picture ends without its end marker (FFD9), so a part may lack.")
    if (stream.precision > 8) == (out.itemsize == 2):
        pixels = out.view(f"{'i' if stream.is_signed else 'u'}{out.itemsize}")
        decode(data, out=pixels)
        _extend_sign(pixels, stream, form)
        return
    narrow = np.asarray(decode(data))  # a stream of up to 8 bits in a file of 16
    if narrow.shape != out.shape:
        raise ScanError(f"its compressed picture was decoded to the shape {narrow.shape}.")
    out[...] = _extend_sign(narrow, stream, form)


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
    """Give pixels of a stream whose sign differs from PixelRepresentation the sign of the header, in place.

    JPEG 2000 alone states a sign. pydicom's rule (``apply_j2k_sign_correction``): the bits of the stream's precision
    are right, their sign is not.
    """
    bits = pixels.itemsize * 8
    if form.syntax not in JPEG_2000 | HTJ2K or stream.is_signed == form.is_signed or stream.precision == bits:
        return pixels
    target = pixels.view(f"{'i' if form.is_signed else 'u'}{pixels.itemsize}")
    shift = bits - stream.precision
    np.left_shift(target, shift, out=target)
    np.right_shift(target, shift, out=target)
    return target


def read_stream(data: bytes | memoryview) -> Stream:
    """Return size and precision of a JPEG, JPEG-LS or JPEG 2000 codestream (raw, or in a JP2 file).

    Raises
    ------
    ScanError
        There is none.
    """
    if data[:2] == b"\xff\xd8":
        return _read_jpeg(data)
    at = bytes(data[:4096]).find(b"\xff\x4f\xff\x51")
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


def _read_jpeg(data: bytes | memoryview) -> Stream:
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
