"""The NIfTI headers that a store keeps of its source files."""

import base64

from slicemill.common.errors import ScanError, StoreError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.geometry import Grid
from slicemill.ct.same_grid import match_grid
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


def read_mask_grid(case: Case, header: bytes) -> Grid:
    """Return the grid that restores the axis order of a case's mask file from its stored header.

    Ingest turned the mask to the image's axes. If the two headers do not agree, ingest trusted the image's, and the
    files have one axis order.

    Raises
    ------
    StoreError
        The stored headers have other shapes than the stored voxels.
    """
    image = read_grid(case)
    try:
        mask = parse_grid(header)
    except ScanError as error:
        raise StoreError(
            f"the mask's stored header: {error.reason} Ingest the case again with --overwrite.", where=case.folder
        ) from error
    grid = match_grid(mask, image) or image
    if grid.shape != mask.shape:
        raise StoreError(
            f"the stored headers of image and mask have other shapes, {image.shape} and {mask.shape}. "
            "Ingest the case again with --overwrite.",
            where=case.folder,
        )
    return grid
