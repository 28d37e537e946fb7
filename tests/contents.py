"""What a file holds, however it was packed: isal may code the same bytes otherwise (Huffman codes of equal lengths trade places)."""

import gzip
from pathlib import Path

from PIL import Image


def content(path: Path) -> bytes:
    """Return the bytes of a file, unpacked where its name says gzip, or its pixels where it says PNG; half a file raises."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return repr((picture.size, picture.mode)).encode() + picture.tobytes()
    return path.read_bytes()
