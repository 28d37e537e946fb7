"""Exports a stored case as NIfTI, with the voxels, axis order and header geometry of its source file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError, UsageError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.formats.nifti.names import SUFFIXES
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.geometry import Grid
from slicemill.ct.scan import SLAB_BYTES
from slicemill.store.headers import read_grid, read_header, read_mask_grid
from slicemill.store.layout import ArrayName
from slicemill.store.reader import Case, SliceArray

SAME_AFFINE_MM = 1e-5
"""Largest difference of two affines that no program takes for two grids; float32 headers are rounded to it."""


def export_case(case: Case, out: Path, *, array: ArrayName = "image", overwrite: bool = False) -> None:
    """Write a case's image (int16 HU) or label array (uint8) as NIfTI, on the grid of its source file.

    Parameters
    ----------
    out
        A ``.nii`` or ``.nii.gz`` file, written atomically.
    array
        ``image``, or ``label`` for the segmentation, under the header of the mask file.

    Raises
    ------
    ConfigError
        `out` has another suffix or exists already, or the case has no mask.
    StoreError
        The stored header does not match the stored voxels.
    """
    check_output_path(out, overwrite=overwrite)
    voxels, source = (case.image, case.info.image) if array == "image" else (case.label, case.info.mask)
    if voxels is None or source is None:
        raise ConfigError("has no mask, so there is no segmentation to export; omit --mask.", where=case.info.case_id)
    header = read_header(case, source)
    grid = read_grid(case) if array == "image" else read_mask_grid(case, header)
    write_volume(out, header, voxels.dtype, read_in_file_order(voxels, grid))


def export_label_like_image(case: Case, out: Path, values: npt.NDArray[np.uint8] | None = None) -> None:
    """Write a case's label array as NIfTI in the axis order and on the grid of its image file.

    Programs that compare two files voxel by voxel, such as nnU-Net, want it so. The header is the mask file's if it
    describes that grid, else the image's.

    Parameters
    ----------
    out
        A ``.nii`` or ``.nii.gz`` file, written atomically; an existing file is replaced.
    values
        uint8[256], the value to write for each label value; None to write them as they are.

    Raises
    ------
    ConfigError
        The case has no mask.
    StoreError
        The stored header does not match the stored voxels.
    """
    label, mask = case.label, case.info.mask
    if label is None or mask is None:
        raise ConfigError("has no mask, so there is no segmentation to export.", where=case.info.case_id)
    grid = read_grid(case)
    header = read_header(case, mask if has_image_grid(case) else case.info.image)
    planes = read_in_file_order(label, grid)
    write_volume(out, header, label.dtype, planes if values is None else (values[plane] for plane in planes))


def has_image_grid(case: Case) -> bool:
    """Return whether a case's mask file has the grid of its image file: axis order, shape and affine."""
    if case.info.mask is None:
        return False
    image, mask = read_grid(case), parse_grid(read_header(case, case.info.mask))
    return mask.shape == image.shape and np.allclose(mask.affine, image.affine, rtol=0, atol=SAME_AFFINE_MM)


def check_output_path(out: Path, *, overwrite: bool) -> None:
    """Check that `out` has the suffix of a NIfTI file, and that it does not exist or may be overwritten.

    Raises
    ------
    ConfigError
        The suffix is wrong, or the file exists.
    """
    if not out.name.lower().endswith(SUFFIXES):
        raise UsageError("cases are exported as NIfTI; choose a name that ends in .nii or .nii.gz.", where=out)
    if out.exists() and not overwrite:
        raise ConfigError("exists already; choose another name, or pass --overwrite.", where=out)


def read_in_file_order(voxels: SliceArray, grid: Grid) -> Iterator[npt.NDArray[Any]]:
    """Yield planes any[j, i] in the file's order from an array any[z, y, x].

    A slab of up to SLAB_BYTES is in memory at a time. If the file's slowest axis is not z, each plane needs voxels of
    every slice, so all slices are in memory.
    """
    nz, ny, nx = voxels.shape
    depth = max(1, SLAB_BYTES // (ny * nx * voxels.dtype.itemsize)) if grid.slowest_is_z else nz
    starts = range(0, nz, depth)
    for z in reversed(starts) if grid.z_is_flipped else starts:
        yield from grid.to_file(voxels[z : z + depth])
