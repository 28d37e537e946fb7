"""The slice store on disk, format 2: names of files and folders, and the allowed values. All arrays are plain Zarr v3.

::

    STORE/scans.zarr/<case_id>/zarr.json
                              /image/{zarr.json, c/0/0/0}
                              /labels/{zarr.json, segmentation/zarr.json, segmentation/0/{zarr.json, c/0/0/0}}
                              /candidates/{zarr.json, c/0/0}      (only with a table of candidates)

Each case is an OME-Zarr image (`slicemill.store.ome_zarr`), which wants its segmentations in the group ``labels``.
Format 1 had the segmentation in ``label``, and was no OME-Zarr image. Everything else is the same. Cases of format 1
can be read; `slicemill.store.upgrade` moves them to format 2.

A chunk is one slice and a shard is one case. A shard holds the encoded slices in the order in which they were
written, then the index: offset and length of each slice as little-endian uint64, then a crc32c.
`slicemill.store.zarr_documents` defines the ``zarr.json`` documents, `slicemill.store.codecs` the compression.
"""

import os
import re
from typing import Final, Literal

from slicemill.common.errors import StoreError

FORMAT = 2
READABLE_FORMATS = (1, FORMAT)
GROUP = "scans.zarr"
IMAGE: Final = "image"
LABEL: Final = "label"
LABELS_GROUP = "labels"
SEGMENTATION_GROUP = "labels/segmentation"
ARRAY_PATHS: Final[dict[int, dict["ArrayName", str]]] = {
    1: {"image": "image", "label": "label"},
    FORMAT: {"image": "image", "label": f"{SEGMENTATION_GROUP}/0"},
}
"""Path of each array below its case, by format."""
SHARD = "c/0/0/0"
DOCUMENT = "zarr.json"
ATTRIBUTE = "slicemill"
PARTIAL = ".partial"
"""Folder next to the group for cases that are being written. The next run removes what a killed run left."""
MANIFEST, SLICES, LESIONS = "manifest", "slices", "lesions"
POINTS, CANDIDATES = "points", "candidates"
"""Tables of a store with points; CANDIDATES is also the array below a case."""
CHECKSUMS = "checksums.json"
"""SHA-256 of each table and of each case's documents at the time when the tables were built."""
FAILURES = "failures.jsonl"
PATIENTS = "patients.json"
"""The salt of the ids of DICOM patients (`slicemill.store.patients`)."""
TABLES = ".tables"
"""Name of the claim of a run that builds the tables. It starts with a dot, which no case id does."""
INDEX_ENTRY_BYTES = 16
MAX_ID_BYTES = 160
"""Folder names have at most 255 bytes, and the name of a partial folder adds 13 to the id."""
ABSENT = 2**64 - 1
"""Offset and length of a missing slice, as the sharding specification defines them."""

ArrayName = Literal["image", "label"]
ProfileName = Literal["compact", "fast"]
SliceFormat = Literal["jpeg", "png", "png16", "npy"]
"""File formats of exported slices."""
DatasetFormat = Literal["nnunet", "monai", "lits"]
"""Layouts of exported collections."""
Suffix = Literal[".nii.gz", ".nii"]
"""Endings of exported volumes."""
Link = Literal["hard", "symbolic", "never"]
"""How an exported file is linked to the source file of the same bytes."""


def check_case_id(case_id: str) -> str:
    """Check that a case id can be a Zarr name and a folder name, and return it.

    Raises
    ------
    StoreError
        The id is empty, too long, starts with a dot or two underscores, or contains a slash or a control character.
    """
    fits = len(os.fsencode(case_id)) <= MAX_ID_BYTES
    if case_id == DOCUMENT or not fits or not re.fullmatch(r"(?!\.|__)[^/\\\x00-\x1f]{1,120}", case_id):
        raise StoreError(
            f"case id {case_id!r}: must have 1 to 120 characters ({MAX_ID_BYTES} bytes), no slash, "
            "and no dot at its start; rename the file, or set the ids in a CSV."
        )
    return case_id
