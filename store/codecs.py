"""Encoding and decoding of slices: compression, checksums, and single-threaded use of blosc."""

import os
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import google_crc32c
import numpy.typing as npt
from numcodecs import blosc, zstd

from slicemill.store.layout import IMAGE, ArrayName, ProfileName

CRC_BYTES = 4
CRC_RESIDUE = 0x48674BC7
"""crc32c of any bytes followed by their crc32c, little endian (RFC 3720, B.4 gives the polynomial)."""
BLOSC_HEADER_BYTES = 16
BLOSC_SIZES = struct.Struct("<III")
"""Bytes of the decoded chunk, of a block and of the encoded chunk, from byte 4 of the header on."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class CodecDocument(TypedDict):
    """A codec in an array document (https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html#codecs)."""

    name: str
    configuration: NotRequired[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Compressor of slices: its Zarr document, and the function that compresses."""

    document: CodecDocument
    encode: Callable[[npt.NDArray[Any]], bytes]
    """Compress any[y, x], C-contiguous, without a checksum."""


class _BloscScope:
    """A scope in which blosc runs in the calling thread only.

    Slices are already distributed over threads and processes, so blosc's thread pool would only add context switches.
    `use_threads` is a global of numcodecs: the first thread that enters sets it, the last one that leaves restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: bool | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before, blosc.use_threads = blosc.use_threads, False
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                blosc.use_threads = self._before

    def reset_after_fork(self) -> None:
        """Reset the state in a forked child, which does not have the parent's threads."""
        if self._users:
            blosc.use_threads = self._before
        self._lock, self._users = threading.Lock(), 0


_IN_ONE_THREAD = _BloscScope()
os.register_at_fork(after_in_child=_IN_ONE_THREAD.reset_after_fork)


def make_blosc_codec(cname: str, clevel: int, shuffle: str, typesize: int, blocksize: int) -> Codec:
    """Return a blosc codec that compresses a slice as one block of `blocksize` bytes."""
    mode = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[shuffle]
    settings = {"typesize": typesize, "cname": cname, "clevel": clevel, "shuffle": shuffle, "blocksize": blocksize}

    def encode(voxels: npt.NDArray[Any]) -> bytes:
        with _IN_ONE_THREAD:
            return bytes(blosc.compress(voxels, cname.encode(), clevel, mode, blocksize, typesize=typesize))

    return Codec(document={"name": "blosc", "configuration": settings}, encode=encode)


def make_zstd_codec(level: int) -> Codec:
    """Return a plain zstd codec."""
    return Codec(
        document={"name": "zstd", "configuration": {"level": level, "checksum": False}},
        encode=lambda voxels: bytes(zstd.compress(voxels, level)),
    )


def make_codec(profile: ProfileName, name: ArrayName, pixels: int) -> Codec:
    """Return the codec of an array whose slices have `pixels` pixels.

    ``compact`` is a fifth smaller; ``fast`` is read more than twice as fast. `slicemill bench store` measures both.
    """
    if name == IMAGE:
        settings = {"compact": ("zstd", 1, "bitshuffle"), "fast": ("lz4", 5, "shuffle")}[profile]
        return make_blosc_codec(*settings, typesize=2, blocksize=2 * pixels)
    return make_zstd_codec(1) if profile == "compact" else make_blosc_codec("lz4", 5, "noshuffle", 1, pixels)


def decode_blosc(data: bytes | memoryview, out: npt.NDArray[Any]) -> None:
    """Check the size of a blosc chunk and decompress it into `out`, in the calling thread.

    Raises
    ------
    ValueError, RuntimeError
        The data are not a blosc chunk of ``out.nbytes`` bytes.
    """
    size, block, stored = BLOSC_SIZES.unpack_from(data, 4) if len(data) >= BLOSC_HEADER_BYTES else (0, 0, 0)
    if stored != len(data) or size != out.nbytes:
        raise ValueError(f"is not a blosc chunk of {out.nbytes} bytes.")
    if block >= size:  # blosc uses other threads only for chunks of several blocks
        blosc.decompress(data, out)
        return
    with _IN_ONE_THREAD:
        blosc.decompress(data, out)


def decode_zstd(data: memoryview, out: npt.NDArray[Any]) -> None:
    """Check the size of a zstd frame and decompress it into `out`.

    Raises
    ------
    ValueError, RuntimeError
        The data are not a zstd frame of ``out.nbytes`` bytes.
    """
    if zstd_content_size(data) != out.nbytes:
        raise ValueError(f"is not a zstd chunk of {out.nbytes} bytes.")
    zstd.decompress(data, out)


def zstd_content_size(data: memoryview) -> int | None:
    """Return the decoded size that a zstd frame declares (RFC 8878, section 3.1.1.1); None without a size."""
    if len(data) < 6 or data[:4] != ZSTD_MAGIC:
        return None
    descriptor = data[4]
    single, flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(single), 2, 4, 8)[flag]
    return int.from_bytes(data[start : start + width], "little") + (256 if flag == 1 else 0) if width else None


def with_checksum(data: bytes) -> bytes:
    """Append the crc32c, 4 bytes, little endian."""
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def without_checksum(data: bytes) -> memoryview:
    """Check the crc32c at the end of `data` and return the bytes before it.

    The crc32c of bytes followed by their crc32c is a constant, so the check needs no copy.

    Raises
    ------
    ValueError
        The checksum does not match: the bytes are damaged.
    """
    if len(data) < CRC_BYTES or google_crc32c.value(data) != CRC_RESIDUE:
        raise ValueError("the checksum does not match: the bytes are damaged. Ingest the case again with --overwrite.")
    return memoryview(data)[:-CRC_BYTES]
