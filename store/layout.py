"""The slice store on disk, format 1: names, array documents, codecs. Everything here is plain Zarr v3.

::

    STORE/scans.zarr/<case_id>/{zarr.json, image/zarr.json, image/c/0/0/0, label/zarr.json, label/c/0/0/0}

One chunk is one slice, one shard is the case: a shard holds the encoded slices in the order in which they were
written, then the index (offset and length of each slice, uint64 little endian, crc32c at its end).
"""

import re
from typing import Any, Literal

from store.errors import StoreError

FORMAT = 1
GROUP = "scans.zarr"
IMAGE, LABEL = "image", "label"
SHARD = "c/0/0/0"
DOCUMENT = "zarr.json"
ATTRIBUTE = "slicemill"
PARTIAL = ".partial"
"""Folder beside the group for cases that are being written; what a killed run left there is removed by the next."""
MANIFEST, SLICES, LESIONS = "manifest", "slices", "lesions"
FAILURES, LEDGER = "failures.jsonl", "ledger.jsonl"
AIR_HU = -1024
INDEX_ENTRY_BYTES = 16
CRC_BYTES = 4
ABSENT = 2**64 - 1
"""Offset and length of a slice that is not there (the sharding specification's mark)."""

ArrayName = Literal["image", "label"]
DTYPES: dict[str, str] = {IMAGE: "int16", LABEL: "uint8"}


def array_document(name: ArrayName, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array of `shape` [z, y, x].

    Codecs chosen by measurement (design notes, STORAGE section 2): blosc zstd 1 with bit shuffle in one block a slice
    for HU, plain zstd 1 for labels; both end in a checksum.
    """
    nz, ny, nx = shape
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    if name == IMAGE:
        first: dict[str, Any] = little
        compressor: dict[str, Any] = {
            "name": "blosc",
            "configuration": {
                "typesize": 2,
                "cname": "zstd",
                "clevel": 1,
                "shuffle": "bitshuffle",
                "blocksize": ny * nx * 2,
            },
        }
    else:
        first = {"name": "bytes"}
        compressor = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
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
                    "codecs": [first, compressor, {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
        "dimension_names": ["z", "y", "x"],
        "storage_transformers": [],
    }


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
    if case_id == DOCUMENT or not re.fullmatch(r"(?!\.|__)[^/\\\x00-\x1f]{1,120}", case_id):
        raise StoreError(
            f"case id {case_id!r}: 1 to 120 characters, no slash, not starting with a dot; rename the file or give a CSV."
        )
    return case_id
