"""The grids of a case's source files, from the headers that the store keeps."""

import base64
import binascii

from slicemill.common.errors import ScanError, StoreError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.geometry import Grid
from slicemill.ct.same_grid import match_grid
from slicemill.store.case import SourceFile
from slicemill.store.reader import Case


def read_grid(case: Case) -> Grid:
    """Return the grid of a case's image file.

    Raises
    ------
    StoreError
        The stored header has another shape than the stored voxels.
    """
    case_id = case.info.case_id
    try:
        grid = parse_grid(read_header(case.info.image, case_id))
    except ScanError as error:
        raise StoreError(f"{case_id}: its stored {error}") from error
    if grid.stored_shape != case.image.shape:
        raise StoreError(
            f"{case_id}: stored header and voxels must have the same shape; the header has {grid.stored_shape}, "
            f"the voxels have {case.image.shape}. Ingest the case again with --overwrite."
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
        raise StoreError(f"{case.info.case_id}: the mask's stored {error}") from error
    grid = match_grid(mask, image) or image
    if grid.shape != mask.shape:
        raise StoreError(
            f"{case.info.case_id}: the stored headers of image and mask have other shapes, {image.shape} and "
            f"{mask.shape}. Ingest the case again with --overwrite."
        )
    return grid


def read_header(source: SourceFile, case_id: str) -> bytes:
    """Return the stored header of a source file, with its extensions if they were kept.

    Raises
    ------
    StoreError
        The header is not valid base64.
    """
    try:
        return base64.b64decode(source.header_b64, validate=True)
    except binascii.Error as error:
        raise StoreError(
            f"{case_id}: the stored header of {source.name} is damaged ({error}); ingest it again with --overwrite."
        ) from error
