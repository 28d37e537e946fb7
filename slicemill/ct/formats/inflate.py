"""A stream that inflates one zlib stream, in bounded memory."""

import io
from typing import Any

from isal import igzip_lib

STEP = 1 << 17
"""Bytes of compressed data that are read at a time."""
MOST_OUT = 1 << 18
"""Bytes that are inflated at a time; larger blocks cost more for their memory than for inflating them."""


class Inflate(io.RawIOBase):
    """The content of a zlib stream, whose checksum is verified at its end. Bytes after its end are not read from it."""

    def __init__(self, stored: Any) -> None:
        """`stored` is a stream of compressed bytes."""
        self._stored = stored
        self._decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)

    def readable(self) -> bool:  # noqa: D102 (documented in io.RawIOBase)
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` and return the number of bytes; fewer only at the end of the zlib stream.

        Raises
        ------
        EOFError
            The compressed bytes end early.
        igzip_lib.IsalError
            They are damaged.
        """
        view = memoryview(buffer).cast("B")
        filled, decoder = 0, self._decoder
        while filled < len(view) and not decoder.eof:
            hungry = decoder.needs_input
            block = self._stored.read(STEP) if hungry else b""
            data = decoder.decompress(block, max_length=min(len(view) - filled, MOST_OUT))
            if hungry and not block and not data and not decoder.eof:  # isal < 1.9 asks while it holds output
                raise EOFError("the compressed data end early")
            view[filled : filled + len(data)] = data
            filled += len(data)
        return filled
