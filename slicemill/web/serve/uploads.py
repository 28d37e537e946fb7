"""Uploaded files: names become numbers, and bytes are counted while they arrive.

A name from outside is never a path. Of it, only a suffix of `SUFFIXES` is used. Files whose names differ only in the
suffix get one number, so that a header and its data stay together.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from slicemill.web.serve.records import UploadedFile

SUFFIXES = (
    ".nii.gz", ".nii", ".hdr", ".img.gz", ".img", ".mha", ".mhd", ".nrrd", ".nhdr", ".raw.gz", ".raw", ".zraw", ".zip",
    ".png", ".jpg", ".jpeg",
)  # fmt: skip
"""Suffixes that are kept. Any other file is tried as DICOM, which is known by its content."""
BUFFER_BYTES = 1 << 20
MAX_NAME = 300
"""Characters of a name that are kept: its last ones, which have the suffix."""


class TooLargeError(Exception):
    """A job has more bytes or files than the limits allow."""


class StalledError(Exception):
    """A client sends nothing any more."""


@dataclass(slots=True)
class Upload:
    """A file that is arriving, or has; if its connection breaks, the rest may follow."""

    file: UploadedFile
    bytes: int = 0
    """Bytes that have arrived."""
    is_open: bool = True
    """Whether a connection sends it now."""
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class _Key:
    stem: str
    suffix: str


class Names:
    """Numbers for the names of a job's files."""

    def __init__(self) -> None:
        self.files: list[UploadedFile] = []
        self._last = 0
        self._numbers: dict[str, int] = {}
        self._known: set[_Key] = set()

    def add(self, name: str) -> UploadedFile:
        """Return the file for a name.

        >>> names = Names()
        >>> [names.add(name).local for name in ("a/ct.mhd", "a/ct.raw", "../../x.nii.gz", "IM-1", "a/ct.raw")]
        ['1.mhd', '1.raw', '2.nii.gz', '3', '4.raw']
        """
        name = name[-MAX_NAME:]
        key = _split(name)
        if key in self._known or key.stem not in self._numbers:
            self._last += 1
            self._numbers[key.stem] = self._last
        self._known.add(key)
        file = UploadedFile(local=f"{self._numbers[key.stem]}{key.suffix}", shown=name)
        self.files.append(file)
        return file


def _split(name: str) -> _Key:
    low = name.lower()
    suffix = next((one for one in SUFFIXES if low.endswith(one)), "")
    return _Key(name[: len(name) - len(suffix)], suffix)


async def receive(parts: AsyncIterator[bytes], path: Path, stalled_seconds: float, offset: int = 0) -> None:
    """Write a body to a new file, or behind the first `offset` bytes of one; what `parts` raises ends it.

    All that arrived is written, also before an error.

    Raises
    ------
    StalledError
        Nothing arrived for so many seconds.
    OSError
        The disk is full.
    """
    buffer = bytearray()
    descriptor = os.open(path, os.O_WRONLY | (os.O_APPEND if offset else os.O_CREAT), 0o600)
    try:
        while True:
            try:
                part = await asyncio.wait_for(anext(parts, None), stalled_seconds)
            except TimeoutError as error:
                raise StalledError from error
            if part is not None:
                buffer += part
            if buffer and (part is None or len(buffer) >= BUFFER_BYTES):
                data = bytes(buffer)
                buffer.clear()  # before the wait: what ends it must not write the block again
                await run_in_threadpool(_write, descriptor, data)
            if part is None:
                return
    finally:
        try:
            _write(descriptor, bytes(buffer))
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
