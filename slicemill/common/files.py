"""Atomic writes, JSON, CSV, hashes, and ledgers of JSON lines; local or in an object store.

A file that is read must be a regular file: opening a pipe may block for ever, and a device has no end.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slicemill.common.csv_cells import format_csv
from slicemill.common.errors import InputError
from slicemill.common.failures import raise_system_limit
from slicemill.common.remote import RemotePath, check_size, parse_url

Location = Path | RemotePath
"""A local path, or a path in an object store."""
HASH_BLOCK = 1 << 20
MAX_DOCUMENT_BYTES = 256 << 20
"""Largest JSON or TOML document; that of a case with 20,000 slices and 20 labels has 5 MB."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Escape of a surrogate in JSON; only a pair of them is a character."""


def parse_location(url: "str | Location") -> Location:
    """Parse a path, a ``file://`` URL or the URL of an object store.

    >>> parse_location("file:///data/lits").as_posix(), parse_location("s3://scans/lits/").key
    ('/data/lits', 'lits')

    Raises
    ------
    StoreError
        The URL's scheme is unknown, or it contains credentials.
    """
    if isinstance(url, RemotePath):
        return url
    text = str(url)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return parse_url(text) if "://" in text else Path(text)


def relative_path(path: Location, root: Location) -> str:
    """Return a path relative to a folder, with forward slashes. Outside a local folder it starts with ``..``.

    >>> relative_path(Path("/data/lits/batch1/volume-17.nii"), Path("/data/lits"))
    'batch1/volume-17.nii'

    Raises
    ------
    ValueError
        One is local and the other is not, or their buckets differ.
    """
    if isinstance(path, RemotePath) and isinstance(root, RemotePath):
        return path.relative_to(root).as_posix()
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        raise ValueError(f"{path} is not inside {root}")  # noqa: TRY004 (as pathlib does)
    return Path(os.path.relpath(path, root)).as_posix()


@contextlib.contextmanager
def name_file(path: Path, *, aside: Path | None = None) -> Iterator[None]:
    """Add the file to errors of the system that name none, such as a full disk; `aside` is its temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, aside and str(aside)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: Location) -> Iterator[Path]:
    """Yield a temporary local path to write to. It is renamed or uploaded to `path` when the block succeeds.

    Readers see the old file or the complete new one. The temporary file is removed if the block fails.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / path.name
            yield aside
            path.upload(aside)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part{suffix}")
    try:
        with name_file(path, aside=aside):
            yield aside
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Location, data: bytes) -> None:
    """Write a small file atomically."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    with atomic_write(path) as aside:
        aside.write_bytes(data)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return strict JSON (no NaN), keys in the order of the value."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Location, value: object) -> None:
    """Write a JSON document atomically."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def read_text(path: Location, *, encoding: str = "utf-8") -> str:
    """Read a text document of at most MAX_DOCUMENT_BYTES.

    Raises
    ------
    InputError
        The file cannot be read, is not a regular file, is too large, or is not text.
    """
    try:
        return read_file(path, MAX_DOCUMENT_BYTES).decode(encoding)
    except OSError as error:
        raise_system_limit(error)
        raise InputError(f"cannot be read ({error.strerror or error}).", where=path) from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot be read as text ({error}).", where=path) from error


def parse_json(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> object:
    """Parse JSON that another program may have written; `object_pairs_hook` as in `json.loads`.

    Raises
    ------
    ValueError
        The text is not JSON, is nested too deeply, or holds a number or a character that cannot be represented.
    """
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if SURROGATE.search(text if isinstance(text, str) else text.decode("latin-1")):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a character (a lone surrogate)") from None
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number of JSON")


def parse_json_object(text: str | bytes, where: object) -> dict[str, Any]:
    """Parse a JSON object that another program may have written; `where` is the file, for the message.

    Raises
    ------
    InputError
        `parse_json` refuses the text, or it is not an object.
    """
    try:
        document = parse_json(text)
    except ValueError as error:
        raise InputError(f"cannot be read as JSON ({error}).", where=where) from error
    if not isinstance(document, dict):
        raise InputError(f"must be a JSON object; it is {type(document).__name__}.", where=where)
    return document


def read_json(path: Location) -> dict[str, Any]:
    """Read a JSON object that another program may have written.

    Raises
    ------
    InputError
        The file cannot be read or is not a JSON object.
    """
    return parse_json_object(read_text(path), path)


def sha256_of_json(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def open_stream(path: Location) -> io.RawIOBase:
    """Open a file for sequential reading."""
    return path.open_stream() if isinstance(path, RemotePath) else io.FileIO(open_regular(path))


def open_regular(path: Path) -> int:
    """Open a regular file for reading, without waiting for the other end of a pipe, and return its descriptor.

    Raises
    ------
    OSError
        The file cannot be opened, or is a folder, a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is not a regular file, but a folder, a pipe or a device", str(path))


def read_file(path: Location, most_bytes: int | None = None) -> bytes:
    """Return the bytes of a regular file or an object.

    Raises
    ------
    OSError
        The file cannot be read, is not a regular file, or has more than `most_bytes`.
    """
    if isinstance(path, RemotePath):
        return path.read_bytes(most_bytes)
    with open_stream(path) as stream:
        check_size(path, os.fstat(stream.fileno()).st_size, most_bytes)
        return stream.read() or b""


def read_start(path: Path, count: int) -> bytes:
    """Return up to the first `count` bytes of a regular file."""
    with open_stream(path) as stream:
        return stream.read(count) or b""


def sha256_of_file(*paths: Location) -> str:
    """Return the SHA-256 of the bytes of a file, or of several files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open_stream(path) as stream:
            while block := stream.read(HASH_BLOCK):
                digest.update(block)
    return digest.hexdigest()


class HashingStream:
    """A read-only binary stream that counts and, if `hashed`, hashes each byte that is read through it; no seeking.

    `start`: bytes that were already read; they are counted and hashed too.
    """

    def __init__(self, stream: io.RawIOBase, start: bytes = b"", *, hashed: bool = True) -> None:
        self._stream = stream
        self._digest = hashlib.sha256(start) if hashed else None
        self.bytes_read = len(start)
        self.seconds = 0.0
        """Time spent reading, s, without hashing."""

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes (all when negative)."""
        start = time.perf_counter()
        data = self._stream.read(size) or b""
        self._count(data, len(data), start)
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Read into `buffer` and return the number of bytes; 0 at the end."""
        start = time.perf_counter()
        count = self._stream.readinto(buffer) or 0
        self._count(buffer, count, start)
        return int(count)

    def _count(self, data: bytes | memoryview, count: int, start: float) -> None:
        self.seconds += time.perf_counter() - start
        self.bytes_read += count
        if self._digest is not None:
            self._digest.update(data[:count])

    def drain(self) -> str:
        """Read the rest and return the SHA-256 of all bytes. If nothing is hashed, return an empty string at once."""
        if self._digest is None:
            return ""
        while self.read(HASH_BLOCK):
            pass
        return self._digest.hexdigest()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that a killed run leaves at most one incomplete last line.

    If the file ends with an incomplete line, that line is terminated first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = to_json(record) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with name_file(path):
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = "\n" + line
            data = line.encode()
            if os.write(descriptor, data) < len(data):  # an incomplete line, which the next append terminates
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _ledger_bytes(path: Location) -> bytes:
    if isinstance(path, RemotePath):
        parts = sorted(part for part, _ in path.files())
        return b"\n".join(part.read_bytes() for part in parts)
    return read_file(path) if path.exists() else b""


def parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the records of a ledger's lines; lines that are incomplete or not JSON objects are left out."""
    for line in data.split(b"\n"):  # not splitlines: names may contain other line separators
        with contextlib.suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict):
                yield record


def read_lines(path: Location) -> list[dict[str, Any]]:
    """Return the records of a ledger, without the incomplete lines of killed runs."""
    return list(parse_lines(_ledger_bytes(path)))


def folder_bytes(folder: Location) -> int:
    """Return the size of all files below a folder, bytes."""
    if isinstance(folder, RemotePath):
        return sum(status.st_size for _, status in folder.files())
    return sum(_file_sizes(folder))


def _file_sizes(folder: str | Path) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _file_sizes(entry.path)
            elif entry.is_file():
                yield entry.stat().st_size


def write_csv(path: Location, rows: Iterable[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows with equal keys as CSV (`slicemill.common.csv_cells.format_csv`), atomically."""
    write_bytes(path, format_csv(rows, columns).encode())
