"""Files that may be DICOM: local, in an object store, or members of a zip archive. They are read by ranges of bytes."""

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from slicemill.common.errors import ReadError, ScanError
from slicemill.common.files import Location, open_regular
from slicemill.common.remote import RemotePath, Status
from slicemill.ct.formats.dicom.elements import PREAMBLE, is_dicom

ARCHIVE_SUFFIX = ".zip"


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A file, or a member of a zip archive, as it was when its folder was listed."""

    path: Location
    """The file, or the archive."""
    size: int
    """Bytes, uncompressed."""
    mtime_ns: int
    ctime_ns: int
    """Time of the last change of the file or of its attributes, which copying tools cannot set back as they do the
    modification time; 0 in an object store."""
    member: str | None = None
    """Name of the archive's member: text for messages, and the key of its entry; it is never a path on the disk."""
    e_tag: str | None = None
    """Entity tag of an object in a bucket: no other version of it is read."""

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def name(self) -> str:
        """Return the last part of the file's name."""
        return self.path.name if self.member is None else self.member.replace("\\", "/").rpartition("/")[2]


class OpenFile:
    """An open file. Its errors are `ReadError`, or `ScanError` for a damaged archive, and name the file.

    Raises
    ------
    ReadError
        The file cannot be opened, or has another size or other times than when it was listed. An object is compared
        by its entity tag, each time a part of it is read.
    """

    def __init__(self, file: DicomFile) -> None:
        self._file = file
        self._descriptor = -1
        self._member: Any = None
        with _named(file):
            if file.member is not None:
                self._member = open_archive(file.path, file.mtime_ns, file.ctime_ns).open(file.member)
            elif isinstance(file.path, Path):
                self._descriptor = open_regular(file.path)
                state = os.fstat(self._descriptor)
                if (state.st_size, state.st_mtime_ns, state.st_ctime_ns) != (file.size, file.mtime_ns, file.ctime_ns):
                    self.close()
                    raise _make_changed_error(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_into(self, buffer: memoryview, offset: int = 0) -> int:
        """Read from `offset` into `buffer` and return the number of bytes; fewer only at the end of the file."""
        done = 0
        with _named(self._file):
            while done < len(buffer):
                count = self._read_some(buffer[done:], offset + done)
                if not count:
                    break
                done += count
        return done

    def read_vector(self, buffers: list[memoryview]) -> int:
        """Read the file from its start into buffers, one after the other, and return the number of bytes."""
        if self._descriptor >= 0:
            with _named(self._file):
                count = os.preadv(self._descriptor, buffers, 0)
            if count == sum(map(len, buffers)):
                return count
        done = 0
        for buffer in buffers:
            count = self.read_into(buffer, done)
            done += count
            if count < len(buffer):
                break
        return done

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        if self._descriptor >= 0:
            return os.preadv(self._descriptor, [buffer], offset)
        if self._member is not None:
            if self._member.tell() != offset:
                self._member.seek(offset)  # decompresses what lies between
            data = self._member.read(len(buffer))
            if offset + len(data) >= self._file.size:
                self._member.read(1)  # the end of the stream, where zipfile compares the checksum
        else:
            data = self._read_object(offset, min(len(buffer), self._file.size - offset))
        buffer[: len(data)] = data
        return len(data)

    def _read_object(self, offset: int, size: int) -> bytes:
        """Return bytes of an object in a bucket."""
        if size <= 0:
            return b""
        path, e_tag = self._file.path, self._file.e_tag
        data: bytes | None = path.read_range(offset, size, e_tag=e_tag)  # type: ignore[union-attr]
        if data is None:
            raise _make_changed_error(self._file)
        return data

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at the end of the file."""
        buffer = bytearray(max(0, min(length, self._file.size - offset)))
        return bytes(buffer[: self.read_into(memoryview(buffer), offset)])

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._member is not None:
            self._member.close()


def _make_changed_error(file: DicomFile) -> ReadError:
    return ReadError("changed during reading; run the same command again.", where=file)


@contextmanager
def _named(file: DicomFile) -> Iterator[None]:
    """Convert errors of the disk and of damaged archives to errors that name the file."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"is damaged or cannot be unpacked ({error}). Copy the archive again.", where=file) from error
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}.", where=file) from error


@lru_cache(maxsize=2)
def open_archive(path: Path, mtime_ns: int, ctime_ns: int) -> zipfile.ZipFile:  # noqa: ARG001 (times: for the key)
    """Return an open zip archive; the last two stay open."""
    return zipfile.ZipFile(path)


def stat_file(path: Location) -> DicomFile:
    """Return a file with its current size and times.

    Raises
    ------
    ReadError
        There is no such file.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}.", where=path) from error
    return _describe(path, state)


def _describe(path: Location, state: os.stat_result | Status) -> DicomFile:
    if isinstance(state, Status):
        return DicomFile(path, state.st_size, state.st_mtime_ns, 0, e_tag=state.e_tag)
    return DicomFile(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def list_folder(folder: Location) -> list[DicomFile]:
    """Return the files directly in a folder with size and times; hidden ones and links to folders are left out.

    A link that leads nowhere is a file that cannot be opened: it may be a slice that was not copied.

    Raises
    ------
    ReadError
        The folder cannot be listed.
    """
    if isinstance(folder, RemotePath):
        return [
            _describe(path, status)
            for path, status in folder.files()
            if path.parent == folder and not path.name.startswith(".")
        ]
    try:
        with os.scandir(folder) as entries:
            states = [(entry.name, _stat_entry(entry)) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ReadError(f"cannot be listed: {error.strerror}.", where=folder) from error
    return [_describe(folder / name, state) for name, state in states if state is not None]


def _stat_entry(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the state of a regular file, or of a link that leads nowhere; None for others."""
    try:
        state = entry.stat()
    except OSError:
        state = entry.stat(follow_symlinks=False)
    return state if stat.S_ISREG(state.st_mode) or stat.S_ISLNK(state.st_mode) else None


def is_dicom_file(location: Location) -> bool:
    """Return whether a file's content is DICOM's."""
    try:
        with OpenFile(stat_file(location)) as opened:
            return is_dicom(opened.read(0, PREAMBLE + 32))
    except ScanError:  # the caller's own reader says why
        return False


def strip_dicom(name: str) -> str:
    """Return a name without a suffix of DICOM files or archives; other dots belong to the name.

    >>> strip_dicom("P1/IM1.dcm"), strip_dicom("CT.1.3.12")
    ('P1/IM1', 'CT.1.3.12')
    """
    suffix = next((end for end in (".dcm", ".ima", ARCHIVE_SUFFIX) if name.lower().endswith(end)), "")
    return name[: len(name) - len(suffix)]
