"""A stored case back as NIfTI: the voxels, axis order and header geometry of the file that it came from."""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from slicemill.common.errors import ConfigError, ScanError, StoreError, UsageError
from slicemill.ct.formats.nifti.header import grid_of_header
from slicemill.ct.formats.nifti.names import SUFFIXES
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.geometry import Grid
from slicemill.ct.scan import SLAB_BYTES
from slicemill.store.case import SourceFile
from slicemill.store.layout import ArrayName
from slicemill.store.reader import Case, SliceArray


def export_case(case: Case, out: Path, *, array: ArrayName = "image", overwrite: bool = False) -> None:
    """Write a case's image (int16 HU) or label array (uint8) as NIfTI, on the grid of its source file.

    Parameters
    ----------
    out
        A ``.nii`` or ``.nii.gz`` file; it appears whole or not at all.
    array
        ``image``, or ``label`` for the segmentation, under the header of the mask file.

    Raises
    ------
    ConfigError
        `out` has another suffix or is there already, or the case has no mask.
    StoreError
        The stored header does not fit the stored voxels.
    """
    check_target(out, overwrite=overwrite)
    voxels, source = (case.image, case.info.image) if array == "image" else (case.label, case.info.mask)
    if voxels is None or source is None:
        raise ConfigError(f"{case.info.case_id}: has no mask, so there is no segmentation to export; leave --mask out.")
    grid, header = grid_of(case), header_of(source, case.info.case_id)
    write_volume(out, header, voxels.dtype, in_file_order(voxels, grid))


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that is no NIfTI by its name, or that is there and is not to be overwritten.

    Raises
    ------
    ConfigError
        Either is so.
    """
    if not out.name.lower().endswith(SUFFIXES):
        raise UsageError(f"{out}: an exported case is a NIfTI file; give it a name that ends in .nii or .nii.gz.")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: is there already; name another file, or pass --overwrite.")


def grid_of(case: Case) -> Grid:
    """Return the file grid of a case's voxels.

    It is the image's for the segmentation too: ingest turned both by the image's header, whatever the mask's own says,
    so only the image's turns the segmentation back to the voxels of its file.

    Raises
    ------
    StoreError
        The stored header describes other voxels than the stored ones.
    """
    case_id = case.info.case_id
    try:
        grid = grid_of_header(header_of(case.info.image, case_id))
    except ScanError as error:
        raise StoreError(f"{case_id}: its stored {error}") from error
    if grid.stored_shape != case.image.shape:
        raise StoreError(
            f"{case_id}: stored header and voxels must have one shape; the header says {grid.stored_shape}, the voxels "
            f"have {case.image.shape}. Ingest the case again with --overwrite."
        )
    return grid


def header_of(source: SourceFile, case_id: str) -> bytes:
    """Return the header bytes of a source file, with its extensions where they were kept.

    Raises
    ------
    StoreError
        They are no base64.
    """
    try:
        return base64.b64decode(source.header_b64, validate=True)
    except binascii.Error as error:
        raise StoreError(
            f"{case_id}: its stored header of {source.name} is damaged ({error}); ingest it again with --overwrite."
        ) from error


def in_file_order(voxels: SliceArray, grid: Grid) -> Iterator[npt.NDArray[Any]]:
    """Yield slices any[j, i] in the file's order from an array any[z, y, x].

    A slab of up to SLAB_BYTES is held at a time; where the file's slowest axis is not z, no slab is complete before the
    last slice is read, and the whole volume is held.
    """
    nz, ny, nx = voxels.shape
    depth = max(1, SLAB_BYTES // (ny * nx * voxels.dtype.itemsize)) if grid.slowest_is_z else nz
    starts = range(0, nz, depth)
    for z in reversed(starts) if grid.z_is_flipped else starts:
        yield from grid.to_file(voxels[z : z + depth])
