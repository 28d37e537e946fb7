"""Files that appear whole or not at all, hashes, and ledgers of JSON lines; local or in an object store."""

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slicemill.common.errors import InputError
from slicemill.common.remote import RemotePath, remote

Location = Path | RemotePath
"""Where something lies: a local path, or the URL of an object store."""
HASH_BLOCK = 1 << 20


def parse_location(url: "str | Location") -> Location:
    """Return the place that a path, a ``file://`` URL or the URL of an object store names.

    >>> parse_location("file:///data/lits").as_posix(), parse_location("s3://scans/lits/").key
    ('/data/lits', 'lits')

    Raises
    ------
    StoreError
        The URL has a scheme that is not known, or carries credentials.
    """
    if isinstance(url, RemotePath):
        return url
    text = str(url)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return remote(text) if "://" in text else Path(text)


def relative_path(path: Location, root: Location) -> str:
    """Return a path below a folder, with forward slashes; ``..`` leads out of a local folder.

    >>> relative_path(Path("/data/lits/batch1/volume-17.nii"), Path("/data/lits"))
    'batch1/volume-17.nii'

    Raises
    ------
    ValueError
        One is local and the other is not, or they lie in different buckets.
    """
    if isinstance(path, RemotePath) and isinstance(root, RemotePath):
        return path.relative_to(root).as_posix()
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        raise ValueError(f"{path} does not lie below {root}")  # noqa: TRY004 (as pathlib does)
    return Path(os.path.relpath(path, root)).as_posix()


@contextlib.contextmanager
def atomic_write(path: Location) -> Iterator[Path]:
    """Yield a local path to write to; when the block ends it is renamed or uploaded into place, when it fails removed."""
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
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Location, data: bytes) -> None:
    """Write a small file whole."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    with atomic_write(path) as aside:
        aside.write_bytes(data)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return strict JSON (no NaN) with keys in the order given."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Location, value: object) -> None:
    """Write a JSON document whole."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Location) -> dict[str, Any]:
    """Return a JSON object that someone else may have written.

    Raises
    ------
    InputError
        The file cannot be read or holds no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold a JSON object; found {type(document).__name__}.")
    return document


def sha256_of_json(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def open_stream(path: Location) -> io.RawIOBase:
    """Open a file for reading from its first byte on."""
    return path.open_stream() if isinstance(path, RemotePath) else path.open("rb", buffering=0)


def sha256_of_file(*paths: Location) -> str:
    """Return the SHA-256 of a file's bytes; of several files, of their bytes one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open_stream(path) as stream:
            while block := stream.read(HASH_BLOCK):
                digest.update(block)
    return digest.hexdigest()


class HashingStream:
    """A binary stream that counts and, unless told not to, hashes each byte read through it; reading only, no seeking.

    The bytes `start` were read before by someone else and count too.
    """

    def __init__(self, stream: io.RawIOBase, start: bytes = b"", *, hashed: bool = True) -> None:
        self._stream = stream
        self._digest = hashlib.sha256(start) if hashed else None
        self.bytes_read = len(start)
        self.seconds = 0.0
        """How long the reads took, without the hashing."""

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes (all when negative)."""
        start = time.perf_counter()
        data = self._stream.read(size) or b""
        self._count(data, len(data), start)
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the stream goes and return the number of bytes."""
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
        """Read what is left and return the SHA-256 of everything; empty where nothing is hashed, and then nothing is read."""
        if self._digest is None:
            return ""
        while self.read(HASH_BLOCK):
            pass
        return self._digest.hexdigest()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that a killed run leaves at most one torn last line.

    When the previous writer was killed in the middle of a line, that torn line is closed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = to_json(record) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = "\n" + line
        data = line.encode()
        if os.write(descriptor, data) < len(data):  # a torn line, which the next one closes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def _ledger_text(path: Location) -> str:
    if isinstance(path, RemotePath):
        parts = sorted(part for part, _ in path.files())
        return "\n".join(part.read_text(errors="replace") for part in parts)
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def read_lines(path: Location) -> list[dict[str, Any]]:
    """Return the records of a ledger; torn lines (from a killed run) are left out."""
    records = []
    for line in _ledger_text(path).split(
        "\n"
    ):  # not splitlines: names may hold other separators, which JSON leaves as they are
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def folder_bytes(folder: Location) -> int:
    """Return the size of all files below a folder."""
    if isinstance(folder, RemotePath):
        return sum(status.st_size for _, status in folder.files())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_csv(path: Location, rows: Iterable[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows of equal keys as CSV; None becomes an empty cell. Without rows only `columns` are written."""
    import csv

    rows = list(rows)
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else columns)
        writer.writeheader()
        writer.writerows(rows)
