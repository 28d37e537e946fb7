"""The NIfTI headers that a store keeps of its source files."""

import base64

from slicemill.common.errors import ScanError, StoreError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.geometry import Grid
from slicemill.store.case import SourceFile
from slicemill.store.reader import Case


def read_header(case: Case, source: SourceFile) -> bytes:
    """Return the stored header of a source file of this case, with its extensions if they were kept.

    Raises
    ------
    StoreError
        The header is not valid base64.
    """
    try:
        return base64.b64decode(source.header_b64, validate=True)
    except ValueError as error:
        raise StoreError(
            f"the stored header of {source.name} is damaged ({error}); ingest the case again with --overwrite.",
            where=case.folder,
        ) from error


def read_grid(case: Case) -> Grid:
    """Return the grid of a case's scan, as its stored header describes it.

    Raises
    ------
    StoreError
        The stored header cannot be read, or has another shape than the stored voxels.
    """
    try:
        grid = parse_grid(read_header(case, case.info.image))
    except ScanError as error:
        raise StoreError(
            f"its stored header: {error.reason} Ingest the case again with --overwrite.", where=case.folder
        ) from error
    if grid.stored_shape != case.image.shape:
        raise StoreError(
            f"stored header and voxels must have the same shape; the header has {grid.stored_shape}, "
            f"the voxels have {case.image.shape}. Ingest the case again with --overwrite.",
            where=case.folder,
        )
    return grid
