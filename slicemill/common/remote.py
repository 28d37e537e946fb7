"""Files in an object store, by URL: ``s3://``, ``gs://`` and ``az://``, through obstore.

`RemotePath` has the methods of `pathlib.Path` that an object store can offer. Most code takes a `Location`, which is
either of the two, and does not distinguish them. The differences:

1. There are no folders. A folder exists while an object is stored below it.
2. A write is one atomic PUT. `create` writes only a new object, `replace_if` only over the version that was seen.
3. Nothing can be appended or renamed. A ledger is a folder with an object for each run and batch of lines; a case
   becomes visible with its last document.

Credentials come from the same sources as for the provider's tools: the environment, AWS configuration files if boto3 is
installed, or the machine's role. They are never taken from a URL and never appear in a message.
"""

import contextlib
import errno
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from slicemill.common.errors import ConfigError, StoreError
from slicemill.common.extras import explain_import
from slicemill.common.failures import raise_system_limit

SCHEMES = ("s3", "gs", "az")
METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal")
"""Hosts that obstore queries for the machine's role when there are no other credentials."""
RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
"""By default, obstore retries a wrong address for three minutes."""
STREAM_CHUNK = 4 << 20
"""Bytes per read of a stream: large enough for full speed, and small compared with a slab."""


@dataclass(frozen=True, slots=True)
class Status:
    """The fields of `os.stat` that an object store reports."""

    st_size: int
    st_mtime_ns: int
    e_tag: str | None = None
    version: str | None = None
    """Google Cloud Storage checks conditional writes by version, other providers by entity tag."""


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """An object, or a prefix of objects, in a bucket."""

    bucket: str
    """Scheme and bucket, like ``s3://scans``."""
    key: str
    """Path in the bucket, without leading or trailing slash."""

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}".rstrip("/")

    __fspath__ = None  # no system call can open it

    def __truediv__(self, part: str | PurePosixPath) -> "RemotePath":
        return RemotePath(self.bucket, f"{self.key}/{part}".strip("/"))

    @property
    def name(self) -> str:
        """Return the last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> "RemotePath":
        """Return the prefix above; the parent of a bucket is the bucket."""
        return RemotePath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "RemotePath":
        """Return the path with another last part."""
        return self.parent / name

    def as_posix(self) -> str:
        """Return the URL."""
        return str(self)

    def absolute(self) -> "RemotePath":
        """Return the path itself: a URL is always absolute."""
        return self

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        """Return the key below another prefix.

        Raises
        ------
        ValueError
            The path is not below `other`.
        """
        if self.bucket != other.bucket:
            raise ValueError(f"{self} is not inside {other}")
        return PurePosixPath(self.key).relative_to(PurePosixPath(other.key))

    def is_relative_to(self, other: "RemotePath") -> bool:
        """Return whether the path is below another prefix."""
        return self.bucket == other.bucket and PurePosixPath(self.key).is_relative_to(PurePosixPath(other.key))

    def stat(self) -> Status:
        """Return size, time of the last change and entity tag."""
        with _errors_name(self):
            return _parse_status(_import_obstore().head(_open_bucket(self.bucket), self.key))

    def is_file(self) -> bool:
        """Return whether the object exists."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether an object exists below this prefix."""
        return next(self._objects(), None) is not None

    def exists(self) -> bool:
        """Return whether the object, or one below this prefix, exists."""
        return self.is_file() or self.is_dir()

    def read_bytes(self, most_bytes: int | None = None) -> bytes:
        """Return the object's bytes; an OSError if it has more than `most_bytes`, whose content is not fetched."""
        return self.read_with_status(most_bytes)[0]

    def read_with_status(self, most_bytes: int | None = None) -> tuple[bytes, Status]:
        """Return the object's bytes, at most `most_bytes`, and the status of the same version, in one request."""
        with _errors_name(self):
            response = _import_obstore().get(_open_bucket(self.bucket), self.key)
            check_size(self, int(response.meta["size"]), most_bytes)
            return bytes(response.bytes()), _parse_status(response.meta)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the object as text."""
        return self.read_bytes().decode(encoding, errors)

    def read_range(self, offset: int, length: int, *, e_tag: str | None = None) -> bytes | None:
        """Return up to `length` bytes from `offset`, in one request; None if the object has another entity tag."""
        from obstore.exceptions import PreconditionError

        options: Any = {"range": (offset, offset + length), **({"if_match": e_tag} if e_tag else {})}
        with _errors_name(self):
            try:
                return bytes(_import_obstore().get(_open_bucket(self.bucket), self.key, options=options).bytes())
            except PreconditionError:
                return None

    def read_end(self, length: int) -> tuple[bytes, Status]:
        """Return up to the last `length` bytes and the object's status, in one request."""
        with _errors_name(self):
            response = _import_obstore().get(_open_bucket(self.bucket), self.key, options={"range": {"suffix": length}})
            return bytes(response.bytes()), _parse_status(response.meta)

    def open_stream(self) -> "ObjectStream":
        """Open the object for reading from start to end, in one request."""
        with _errors_name(self):
            response = _import_obstore().get(_open_bucket(self.bucket), self.key)
            return ObjectStream(self, response.stream(min_chunk_size=STREAM_CHUNK))

    def write_bytes(self, data: bytes) -> None:
        """Write the object atomically."""
        with _errors_name(self):
            _import_obstore().put(_open_bucket(self.bucket), self.key, data)

    def upload(self, path: Path) -> None:
        """Write the object from a local file, by one PUT or, if it is large, one multipart upload."""
        with _errors_name(self), path.open("rb") as file:
            _import_obstore().put(_open_bucket(self.bucket), self.key, file)

    def copy_to(self, target: "RemotePath") -> None:
        """Copy the object within its bucket, on the server."""
        with _errors_name(self):
            _import_obstore().copy(_open_bucket(self.bucket), self.key, target.key)

    def create(self, data: bytes) -> bool:
        """Write the object if it does not exist and return whether it was written. One of several writers succeeds."""
        return self._put_if(data, "create")

    def replace_if(self, data: bytes, seen: Status) -> bool:
        """Replace the version that `stat` returned; return False if the object has changed since."""
        known = {"e_tag": seen.e_tag, "version": seen.version}
        return self._put_if(data, {name: value for name, value in known.items() if value is not None})

    def _put_if(self, data: bytes, mode: Any) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _errors_name(self):
            try:
                _import_obstore().put(_open_bucket(self.bucket), self.key, data, mode=mode)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return False
        return True

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object."""
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext(), _errors_name(self):
            _import_obstore().delete(_open_bucket(self.bucket), self.key)

    def files(self) -> Iterator[tuple["RemotePath", Status]]:
        """Yield every object below this prefix with its status; a thousand per request."""
        for meta in self._objects():
            yield RemotePath(self.bucket, meta["path"]), _parse_status(meta)

    def _objects(self) -> Iterator[Any]:
        with _errors_name(self):
            for batch in _import_obstore().list(_open_bucket(self.bucket), self.key or None):
                yield from batch


class ObjectStream(io.RawIOBase):
    """The body of a GET as a readable stream."""

    def __init__(self, remote: RemotePath, chunks: Any) -> None:
        self._remote = remote
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def readable(self) -> bool:  # noqa: D102 (documented in io.RawIOBase)
        return True

    def peek(self) -> memoryview:
        """Return the next bytes without consuming them; empty at the end."""
        if not self._left:
            with _errors_name(self._remote):
                self._left = memoryview(next(self._chunks, b""))
        return self._left

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        self.peek()
        count = min(len(buffer), len(self._left))
        memoryview(buffer).cast("B")[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def check_size(path: object, size: int, most_bytes: int | None) -> None:
    """Check the size of a file or object before it is read.

    Raises
    ------
    OSError
        It has more than `most_bytes`.
    """
    if most_bytes is not None and size > most_bytes:
        raise OSError(errno.EFBIG, f"has {size:,} bytes, and a document has at most {most_bytes:,}", str(path))


def parse_url(url: str) -> RemotePath:
    """Parse a URL like ``s3://scans/lits``.

    Raises
    ------
    StoreError
        The scheme is unknown, the bucket is missing, or the URL carries a password or a query.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if "@" in bucket or "?" in rest:
        raise StoreError(
            f"{scheme}://...: credentials and queries do not belong in a URL. Set them as the provider's tools expect."
        )
    if scheme not in SCHEMES or not bucket:
        raise StoreError(
            f"expected a local path or one of {', '.join(f'{name}://BUCKET/...' for name in SCHEMES)}.", where=url
        )
    return RemotePath(f"{scheme}://{bucket}", "/".join(part for part in key.split("/") if part))


def _import_obstore() -> Any:
    missing = ConfigError("URLs of object stores need obstore: pip install 'slicemill[s3]'.")
    with explain_import("obstore", missing):
        import obstore
    return obstore


@lru_cache(maxsize=32)
def _open_bucket(bucket: str) -> Any:
    """Return obstore's handle of a bucket; one per process, so that connections are reused."""
    _import_obstore()
    from obstore.store import from_url

    # plain HTTP is used only if the configured endpoint requests it
    options: Any = {"client_options": {"allow_http": True}, "retry_config": RETRIES}
    try:
        return from_url(bucket, **options, **(_boto3_options() if bucket.startswith("s3://") else {}))
    except Exception as error:
        raise StoreError(f"cannot be opened ({_first_line(error)}).", where=bucket) from error


def _boto3_options() -> dict[str, Any]:
    """Return credentials and region from boto3, which also reads the AWS files; empty if it is not installed."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise_system_limit(error)
        return {}
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    region = {"region": session.region_name} if session.region_name else {}
    return {"credential_provider": Boto3CredentialProvider(session), **region}


@contextlib.contextmanager
def _errors_name(place: RemotePath) -> Iterator[None]:
    """Convert obstore's errors to an OSError that names the URL and has a short message."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(place)) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, "access denied", str(place)) from error
    except BaseError as error:
        raise OSError(errno.EIO, _first_line(error), str(place)) from error


def _first_line(error: Exception) -> str:
    """Return the first line of a message, without the server's XML and debug output."""
    lines = str(error).strip().splitlines()
    if any(host in str(error) for host in METADATA_HOSTS):
        return (
            "no credentials were found; set them as the provider's tools expect (for S3: AWS_ACCESS_KEY_ID and others)"
        )
    return lines[0].partition(": <?xml")[0] if lines else type(error).__name__


def _parse_status(meta: Any) -> Status:
    return Status(
        st_size=int(meta["size"]),
        st_mtime_ns=int(meta["last_modified"].timestamp() * 1e9),
        e_tag=meta.get("e_tag"),
        version=meta.get("version"),
    )
