"""The slice store on disk, format 1: names, array documents, codecs. Everything here is plain Zarr v3.

::

    STORE/scans.zarr/<case_id>/{zarr.json, image/zarr.json, image/c/0/0/0, label/zarr.json, label/c/0/0/0}

One chunk is one slice, one shard is the case: a shard holds the encoded slices in the order in which they were
written, then the index (offset and length of each slice, uint64 little endian, crc32c at its end).
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy.typing as npt
from numcodecs import blosc, zstd

from slicemill.common.errors import StoreError
from slicemill.ct.window import AIR_HU

FORMAT = 1
GROUP = "scans.zarr"
IMAGE: Final = "image"
LABEL: Final = "label"
SHARD = "c/0/0/0"
DOCUMENT = "zarr.json"
ATTRIBUTE = "slicemill"
PARTIAL = ".partial"
"""Folder beside the group for cases that are being written; what a killed run left there is removed by the next."""
MANIFEST, SLICES, LESIONS = "manifest", "slices", "lesions"
CHECKSUMS = "checksums.json"
"""SHA-256 of each table and of each case's documents, as they were when the tables were built."""
FAILURES = "failures.jsonl"
TABLES = ".tables"
"""Name of the claim of whoever builds the tables; a case id does not start with a dot."""
INDEX_ENTRY_BYTES = 16
CRC_BYTES = 4
MAX_ID_BYTES = 160
"""A folder's name has at most 255; the name of a partial one adds host, process and 8 digits."""
ABSENT = 2**64 - 1
"""Offset and length of a slice that is not there (the sharding specification's mark)."""

ArrayName = Literal["image", "label"]
ProfileName = Literal["compact", "fast"]
DTYPES: dict[str, str] = {IMAGE: "int16", LABEL: "uint8"}

blosc.use_threads = False
"""A worker process per core does the sharing out; blosc's global pool would only add switches."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How one slice is compressed: the Zarr document of the compressor and the function that does it."""

    document: dict[str, Any]
    encode: Callable[[npt.NDArray[Any]], bytes]
    """any[y, x], C-contiguous -> compressed bytes, checksum not yet appended."""


def blosc_codec(cname: str, clevel: int, shuffle: str, typesize: int, blocksize: int) -> Codec:
    """Return a blosc codec in one block of `blocksize` bytes, a slice."""
    mode = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[shuffle]
    settings = {"typesize": typesize, "cname": cname, "clevel": clevel, "shuffle": shuffle, "blocksize": blocksize}
    return Codec(
        document={"name": "blosc", "configuration": settings},
        encode=lambda voxels: bytes(blosc.compress(voxels, cname.encode(), clevel, mode, blocksize, typesize=typesize)),
    )


def zstd_codec(level: int) -> Codec:
    """Return a plain zstd codec."""
    return Codec(
        document={"name": "zstd", "configuration": {"level": level, "checksum": False}},
        encode=lambda voxels: bytes(zstd.compress(voxels, level)),
    )


def codec_of(profile: ProfileName, name: ArrayName, pixels: int) -> Codec:
    """Return the compressor of an array whose slices have `pixels` pixels.

    ``compact`` is a fifth smaller, ``fast`` is read more than twice as fast; `slicemill bench store` chose and shows both.
    """
    if name == IMAGE:
        settings = {"compact": ("zstd", 1, "bitshuffle"), "fast": ("lz4", 5, "shuffle")}[profile]
        return blosc_codec(*settings, typesize=2, blocksize=2 * pixels)
    return zstd_codec(1) if profile == "compact" else blosc_codec("lz4", 5, "noshuffle", 1, pixels)


def array_document(name: ArrayName, shape: tuple[int, int, int], profile: ProfileName = "compact") -> dict[str, Any]:
    """Return the ``zarr.json`` of an array of `shape` [z, y, x]; every slice and the index end in a checksum."""
    nz, ny, nx = shape
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    compressor = codec_of(profile, name, ny * nx).document
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [nz, ny, nx],
        "data_type": DTYPES[name],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [nz, ny, nx]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": AIR_HU if name == IMAGE else 0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, ny, nx],
                    "codecs": [little if name == IMAGE else {"name": "bytes"}, compressor, {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
        "dimension_names": ["z", "y", "x"],
        "storage_transformers": [],
    }


def profile_of(document: dict[str, Any], name: ArrayName, shape: tuple[int, int, int]) -> ProfileName | None:
    """Return the profile whose bytes an array document describes; None when it is not of our own layout."""
    keys = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
    profiles: tuple[ProfileName, ...] = ("compact", "fast")
    for profile in profiles:
        ours = array_document(name, shape, profile)
        if all(document.get(key) == ours[key] for key in keys):
            return profile
    return None


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def check_case_id(case_id: str) -> str:
    """Return `case_id` if it can be a Zarr name and a folder.

    Raises
    ------
    StoreError
        It is empty, too long, starts with a dot or two underscores, or holds a slash or a control character.
    """
    fits = len(os.fsencode(case_id)) <= MAX_ID_BYTES
    if case_id == DOCUMENT or not fits or not re.fullmatch(r"(?!\.|__)[^/\\\x00-\x1f]{1,120}", case_id):
        raise StoreError(
            f"case id {case_id!r}: 1 to 120 characters ({MAX_ID_BYTES} bytes), no slash, not starting with a dot; rename the file or give a CSV."
        )
    return case_id
