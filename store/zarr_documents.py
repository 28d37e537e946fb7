"""The ``zarr.json`` documents of a store: groups and arrays of Zarr v3.

Specification: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html#metadata
"""

from typing import Any, Literal, TypedDict

from slicemill.common.errors import InputError, StoreError
from slicemill.common.files import Location, parse_json_object, read_json
from slicemill.ct.window import AIR_HU
from slicemill.store.codecs import CodecDocument, make_codec
from slicemill.store.layout import ATTRIBUTE, DOCUMENT, IMAGE, LABEL, ArrayName, ProfileName

DTYPES: dict[ArrayName, str] = {IMAGE: "int16", LABEL: "uint8"}
LAYOUT_KEYS = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
"""The fields of an array document that determine the layout of its bytes."""


class GroupDocument(TypedDict):
    """A group (https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html#group-metadata)."""

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, Any]


class ArrayDocument(TypedDict):
    """An array (https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html#array-metadata)."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[int]
    data_type: str
    chunk_grid: CodecDocument
    chunk_key_encoding: CodecDocument
    fill_value: int
    codecs: list[CodecDocument]
    attributes: dict[str, Any]
    dimension_names: list[str]
    storage_transformers: list[CodecDocument]


def make_group_document(attributes: dict[str, Any]) -> GroupDocument:
    """Return the ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def make_array_document(
    name: ArrayName, shape: tuple[int, int, int], profile: ProfileName = "compact"
) -> ArrayDocument:
    """Return the ``zarr.json`` of an array of `shape` [z, y, x]. Each slice and the index end with a checksum.

    The sharding codec is https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html.
    """
    nz, ny, nx = shape
    little: CodecDocument = {"name": "bytes", "configuration": {"endian": "little"}}
    compressor = make_codec(profile, name, ny * nx).document
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


def make_table_document(rows: int, columns: int) -> ArrayDocument:
    """Return the ``zarr.json`` of a small table, float64[rows, columns] in one chunk that ends with a checksum."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, columns],
        "data_type": "float64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, rows), columns]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {},
        "dimension_names": ["row", "column"],
        "storage_transformers": [],
    }


def recognize_profile(document: dict[str, Any], name: ArrayName, shape: tuple[int, int, int]) -> ProfileName | None:
    """Return the profile that an array document describes, or None if it is not slicemill's layout."""
    profiles: tuple[ProfileName, ...] = ("compact", "fast")
    for profile in profiles:
        expected = dict(make_array_document(name, shape, profile))
        if all(document.get(key) == expected[key] for key in LAYOUT_KEYS):
            return profile
    return None


def read_document(folder: Location, data: bytes | None = None) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group or array, whose bytes are `data` if they were read.

    Raises
    ------
    StoreError
        It cannot be read, or is not a JSON object.
    """
    try:
        return read_json(folder / DOCUMENT) if data is None else parse_json_object(data, folder / DOCUMENT)
    except InputError as error:
        raise StoreError(error.reason, where=folder / DOCUMENT) from error


def read_attribute(folder: Location, data: bytes | None = None) -> object:
    """Return the attribute ``slicemill`` of a group (`read_document`), or an empty object if it has none.

    Raises
    ------
    StoreError
        The group's document cannot be read.
    """
    attributes = read_document(folder, data).get("attributes")
    return attributes.get(ATTRIBUTE, {}) if isinstance(attributes, dict) else {}
