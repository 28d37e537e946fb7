"""Files in an object store, by URL: ``s3://``, ``gs://`` and ``az://``, through obstore.

`RemotePath` has the names and meanings of `pathlib.Path`, as far as an object store can keep them, so that the rest of the
code takes a `Place`, one or the other, and does not ask which. What differs:

1. There are no folders: one is there when an object lies below it.
2. A write is one PUT, whole or not at all; `create` writes only where nothing is, `replace` only over what was seen.
3. Nothing can be appended or renamed: ledgers become one object a run and batch of lines, cases are shown by their last document.

Credentials come from where the provider's own tools look (environment, AWS configuration files where boto3 is
installed, the machine's role), are never taken from a URL, and stand in no message.
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

SCHEMES = ("s3", "gs", "az")
METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal")
"""Where a provider's role is asked for when nothing else gives credentials."""
RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
"""obstore's own would try for three minutes before a wrong address is named."""
STREAM_CHUNK = 4 << 20
"""Bytes asked for at a time from a stream: large enough that the request rate does not bound it, small beside a slab."""


@dataclass(frozen=True, slots=True)
class Status:
    """What `os.stat` says of a file, as far as an object store knows it."""

    st_size: int
    st_mtime_ns: int
    e_tag: str | None = None
    version: str | None = None
    """Google's clouds tell by it what a conditional write replaces, the others by the entity tag."""


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """An object, or a prefix of objects, in a bucket."""

    bucket: str
    """Scheme and bucket, like ``s3://scans``."""
    key: str
    """Path in the bucket, without slashes at its ends."""

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
        """Return the prefix that holds this one; a bucket holds itself."""
        return RemotePath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "RemotePath":
        """Return the neighbor of that name."""
        return self.parent / name

    def as_posix(self) -> str:
        """Return the URL."""
        return str(self)

    def absolute(self) -> "RemotePath":
        """Return itself: a URL holds anywhere."""
        return self

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        """Return the key below another prefix.

        Raises
        ------
        ValueError
            It does not lie there.
        """
        if self.bucket != other.bucket:
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath(self.key).relative_to(PurePosixPath(other.key))

    def is_relative_to(self, other: "RemotePath") -> bool:
        """Return whether it lies below another prefix."""
        return self.bucket == other.bucket and PurePosixPath(self.key).is_relative_to(PurePosixPath(other.key))

    def stat(self) -> Status:
        """Return size, time of the last change and entity tag."""
        with _named(self):
            return _status(_obstore().head(_opened(self.bucket), self.key))

    def is_file(self) -> bool:
        """Return whether there is such an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether an object lies below it."""
        return next(self._objects(), None) is not None

    def exists(self) -> bool:
        """Return whether there is such an object, or one below it."""
        return self.is_file() or self.is_dir()

    def read_bytes(self) -> bytes:
        """Return the object."""
        with _named(self):
            return bytes(_obstore().get(_opened(self.bucket), self.key).bytes())

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the object as text."""
        return self.read_bytes().decode(encoding, errors)

    def read_range(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, in one request; fewer where the object ends."""
        with _named(self):
            return bytes(_obstore().get_range(_opened(self.bucket), self.key, start=offset, length=length))

    def read_end(self, length: int) -> tuple[bytes, int]:
        """Return the last `length` bytes and the object's size, in one request."""
        with _named(self):
            answer = _obstore().get(_opened(self.bucket), self.key, options={"range": {"suffix": length}})
            return bytes(answer.bytes()), int(answer.meta["size"])

    def open_stream(self) -> "ObjectStream":
        """Open the object for reading from its first byte to its last, in one request."""
        with _named(self):
            answer = _obstore().get(_opened(self.bucket), self.key)
            return ObjectStream(self, answer.stream(min_chunk_size=STREAM_CHUNK))

    def write_bytes(self, data: bytes) -> None:
        """Write the object, whole or not at all."""
        with _named(self):
            _obstore().put(_opened(self.bucket), self.key, data)

    def upload(self, path: Path) -> None:
        """Write the object from a local file: one PUT, or one multipart upload when it is large."""
        with _named(self), path.open("rb") as file:
            _obstore().put(_opened(self.bucket), self.key, file)

    def create(self, data: bytes) -> bool:
        """Write the object where there is none and return whether that was so; of several writers one is told yes."""
        return self._put_if(data, "create")

    def replace_if(self, data: bytes, seen: Status) -> bool:
        """Write the object over the one that `stat` saw and return whether it was still the one there."""
        known = {"e_tag": seen.e_tag, "version": seen.version}
        return self._put_if(data, {name: value for name, value in known.items() if value is not None})

    def _put_if(self, data: bytes, mode: Any) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _named(self):
            try:
                _obstore().put(_opened(self.bucket), self.key, data, mode=mode)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return False
        return True

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object."""
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext(), _named(self):
            _obstore().delete(_opened(self.bucket), self.key)

    def files(self) -> Iterator[tuple["RemotePath", Status]]:
        """Yield every object below it, with what is known of it; a thousand a request."""
        for found in self._objects():
            yield RemotePath(self.bucket, found["path"]), _status(found)

    def _objects(self) -> Iterator[Any]:
        with _named(self):
            for batch in _obstore().list(_opened(self.bucket), self.key or None):
                yield from batch


class ObjectStream(io.RawIOBase):
    """The body of a GET as a readable stream."""

    def __init__(self, remote: RemotePath, chunks: Any) -> None:
        self._remote = remote
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def readable(self) -> bool:  # noqa: D102 (io.RawIOBase says it)
        return True

    def peek(self) -> memoryview:
        """Return the bytes that come next, without taking them; none at the end."""
        if not self._left:
            with _named(self._remote):
                self._left = memoryview(next(self._chunks, b""))
        return self._left

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        self.peek()
        count = min(len(buffer), len(self._left))
        memoryview(buffer).cast("B")[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def remote(url: str) -> RemotePath:
    """Return the place that a URL names.

    Raises
    ------
    StoreError
        The scheme is unknown, the bucket is missing, or the URL carries a password or a query.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if "@" in bucket or "?" in rest:
        raise StoreError(
            f"{scheme}://...: credentials and queries do not belong in a URL; set them as the provider's tools expect."
        )
    if scheme not in SCHEMES or not bucket:
        raise StoreError(
            f"{url}: expected a local path or one of {', '.join(f'{name}://BUCKET/...' for name in SCHEMES)}."
        )
    return RemotePath(f"{scheme}://{bucket}", "/".join(part for part in key.split("/") if part))


def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise ConfigError("URLs of object stores need obstore: pip install 'slicemill[s3]'.") from error
    return obstore


@lru_cache(maxsize=32)
def _opened(bucket: str) -> Any:
    """Return obstore's handle of a bucket; one a process, so that connections are kept."""
    _obstore()
    from obstore.store import from_url

    # plain HTTP is spoken only where the endpoint that was set says so
    options: Any = {"client_options": {"allow_http": True}, "retry_config": RETRIES}
    try:
        return from_url(bucket, **options, **(_from_boto3() if bucket.startswith("s3://") else {}))
    except Exception as error:
        raise StoreError(f"{bucket}: cannot be opened ({_short(error)}).") from error


def _from_boto3() -> dict[str, Any]:
    """Return credentials and region as boto3 finds them, the AWS files among its places; nothing where it is not installed."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    region = {"region": session.region_name} if session.region_name else {}
    return {"credential_provider": Boto3CredentialProvider(session), **region}


@contextlib.contextmanager
def _named(place: RemotePath) -> Iterator[None]:
    """Turn what obstore raises into an OSError that names the URL and says what happened in a few words."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(place)) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, "access denied", str(place)) from error
    except BaseError as error:
        raise OSError(errno.EIO, _short(error), str(place)) from error


def _short(error: Exception) -> str:
    """Return the first line of a message, without what a server's answer or a debug view adds."""
    lines = str(error).strip().splitlines()
    if any(host in str(error) for host in METADATA_HOSTS):
        return "no credentials were found; set them as the provider's own tools expect (for S3: AWS_ACCESS_KEY_ID and the like)"
    return lines[0].partition(": <?xml")[0][:300] if lines else type(error).__name__


def _status(meta: Any) -> Status:
    return Status(
        st_size=int(meta["size"]),
        st_mtime_ns=int(meta["last_modified"].timestamp() * 1e9),
        e_tag=meta.get("e_tag"),
        version=meta.get("version"),
    )
