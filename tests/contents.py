"""The content of a file without its compression: isal may encode the same bytes in several ways."""

import gzip
from pathlib import Path

from PIL import Image


def content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if it is gzip, or its pixels if it is a PNG; half a file raises."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return repr((picture.size, picture.mode)).encode() + picture.tobytes()
    return path.read_bytes()
