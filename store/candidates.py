"""The candidates of a case: one small Zarr v3 array, float64[n, 7], next to its image.

The columns are `CANDIDATE_COLUMNS` and whether the candidate lies in a lung (1 or 0; NaN if no lungs were passed).
Arrays of earlier versions have no segmentation_mean; it is read as NaN.
The array is one chunk that ends with a crc32c, like the slices.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import StoreError
from slicemill.common.files import Location, read_file, write_bytes, write_json
from slicemill.ct.points import CANDIDATE_COLUMNS
from slicemill.store.codecs import CRC_BYTES, with_checksum, without_checksum
from slicemill.store.layout import CANDIDATES, DOCUMENT
from slicemill.store.zarr_documents import make_table_document

COLUMNS = len(CANDIDATE_COLUMNS) + 1
MEAN = CANDIDATE_COLUMNS.index("segmentation_mean")
CHUNK = "c/0/0"
MAX_CANDIDATES = 1_000_000
"""Candidates of a case."""
Floats = npt.NDArray[np.float64]


def write_candidates(folder: Path, rows: Floats) -> None:
    """Write the candidates float64[n, 7] of the case in `folder`, which is not published yet.

    Raises
    ------
    StoreError
        There are more than MAX_CANDIDATES, which no store is read with.
    """
    if len(rows) > MAX_CANDIDATES:
        raise StoreError(
            f"the table has {len(rows):,} candidates in this scan; a case may have at most {MAX_CANDIDATES:,}. Remove "
            "the least probable from the table."
        )
    target = folder / CANDIDATES
    if len(rows):
        write_bytes(target / CHUNK, with_checksum(np.ascontiguousarray(rows, dtype="<f8").tobytes()))
    write_json(target / DOCUMENT, make_table_document(len(rows), COLUMNS))


def read_candidates(folder: Location, document: dict[str, object]) -> Floats:
    """Return the candidates float64[n, 7] of the case in `folder`, whose array has this document.

    Raises
    ------
    StoreError
        Bytes are missing or damaged, or it is another array.
    """
    where = folder / CANDIDATES
    shape = document.get("shape")
    rows, columns = shape if isinstance(shape, list) and len(shape) == 2 else (-1, COLUMNS)
    is_table = isinstance(rows, int) and 0 <= rows <= MAX_CANDIDATES and columns in (COLUMNS - 1, COLUMNS)
    if not is_table or document != make_table_document(rows, columns):
        raise StoreError("is not an array of candidates; ingest the case again with --overwrite.", where=where)
    if not rows:
        return np.empty((0, COLUMNS))
    size = rows * columns * 8
    try:
        data = without_checksum(read_file(where / CHUNK, size + CRC_BYTES))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot be read ({error}); ingest the case again with --overwrite.", where=where) from error
    if len(data) != size:
        raise StoreError(f"has {len(data)} bytes, but {rows} rows need {size}.", where=where)
    found = np.frombuffer(data, dtype="<f8").reshape(rows, columns).astype(np.float64)
    if columns < COLUMNS:
        found = np.insert(found, MEAN, np.nan, axis=1)
    if not np.isfinite(found[:, :MEAN]).all():
        raise StoreError("a position or class is not a finite number.", where=where)
    return found
