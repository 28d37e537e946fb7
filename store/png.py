"""Pictures as PNG, packed by isal: a tenth of the time of zlib's fastest level, for up to a third more bytes."""

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 2
"""Of isal's 0 to 3; 3 takes longer for no fewer bytes (`slicemill bench constants`)."""
GRAY, RGB = 0, 2


def png_bytes(pixels: npt.NDArray[Any]) -> bytes:
    """Return a picture uint8[y, x], uint16[y, x] or uint8[y, x, 3] as a PNG file (ISO/IEC 15948), rows without a filter.

    >>> png_bytes(np.zeros((2, 3), dtype=np.uint8))[:4]
    b'\\x89PNG'
    """
    height, width = pixels.shape[:2]
    kind = RGB if pixels.ndim == 3 else GRAY
    depth = 8 * pixels.dtype.itemsize
    samples = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    rows = np.zeros((height, 1 + samples.shape[1]), dtype=np.uint8)
    rows[:, 1:] = samples
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = isal_zlib.compress(rows, LEVEL)
    return SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
