"""Files that appear whole or not at all, hashes, and ledgers of JSON lines."""

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from store.errors import InputError, StoreError

HASH_BLOCK = 1 << 20


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it into place when the block ends, remove it when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part{suffix}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole."""
    with written_whole(path) as aside:
        aside.write_bytes(data)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return strict JSON (no NaN) with keys in the order given."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: object) -> None:
    """Write a JSON document whole."""
    write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
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


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class HashingStream:
    """A binary stream that hashes and counts each byte read through it; reading only, no seeking."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes (all when negative)."""
        data = self._stream.read(size) or b""
        self._digest.update(data)
        self.bytes_read += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the stream goes and return the number of bytes."""
        count = self._stream.readinto(buffer) or 0
        self._digest.update(buffer[:count])
        self.bytes_read += count
        return int(count)

    def drain(self) -> str:
        """Read what is left and return the SHA-256 of everything."""
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
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ledger; torn lines (from a killed run) are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of equal keys as CSV; None becomes an empty cell."""
    import csv

    rows = list(rows)
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def local_path(url: str | Path) -> Path:
    """Return the local path of a path or ``file://`` URL.

    Raises
    ------
    StoreError
        The URL has another scheme.
    """
    text = str(url)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" in text:
        raise StoreError(
            f"{text}: only local paths are read and written by this version; copy the data to a local disk."
        )
    return Path(text)
