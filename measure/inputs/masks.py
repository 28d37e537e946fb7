"""Reads predictions, references and scans onto one grid."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, LabelError
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object
from slicemill.ct.formats.open import require_unchanged
from slicemill.ct.formats.png_slices import is_png_folder
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import IGNORE, Labels, format_labels
from slicemill.ct.mask_files import ScanGrid, needs_scan, open_mask_file, read_scan_grid
from slicemill.ct.same_grid import match_grid, require_same_grid
from slicemill.ct.scan import ScanReader
from slicemill.ct.window import AIR_HU
from slicemill.measure.inputs.pairs import MaskFile, Pair, StoredMask
from slicemill.store.headers import read_grid
from slicemill.store.statistics import count_values

Label = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PairMasks:
    """A prediction and its reference."""

    predicted: Label
    """uint8[z, y, x], values of the labels."""
    truth: Label
    """uint8[z, y, x], values of the labels."""
    grid: Grid
    """The reference's grid, on which both masks are."""
    warnings: tuple[str, ...] = ()
    """Warnings about label values that were rounded."""


def read_masks(pair: Pair, labels: Labels | None = None, ignored: int | None = None) -> PairMasks:
    """Read a prediction and its reference.

    Parameters
    ----------
    labels
        Names of the label values, which are the names of segments and structures in DICOM.
    ignored
        Value of the reference's voxels that are left out; a segment in DICOM is then called `IGNORE`.

    Raises
    ------
    InputError
        A mask cannot be read or changes meanwhile, or the two have different grids.
    """
    reference = pair.reference.mask
    files = [
        *([pair.prediction] if pair.stored is None else []),
        *([reference.path] if isinstance(reference, MaskFile) else []),
    ]
    with require_unchanged(*files):
        return _read_both(pair, labels, ignored)


def _read_both(pair: Pair, labels: Labels | None, ignored: int | None) -> PairMasks:
    scan = _find_scan(pair)
    of_reference = labels and (labels if ignored is None else _add_ignored(labels, ignored))
    if pair.stored is not None:
        label, own_grid = _read_stored_mask(pair.stored)
        reference = _read_reference(pair, own_grid, scan, of_reference)
        predicted = np.ascontiguousarray(reference.turned.to_stored(own_grid.to_file(label)))
        return PairMasks(predicted=predicted, truth=reference.label, grid=reference.grid, warnings=reference.warnings)
    with open_mask_file(pair.prediction, scan, labels) as reader:
        reference = _read_reference(pair, reader.grid, scan, of_reference)
        reader.replace_grid(reference.turned)
        predicted = reader.read()
        reader.finish()
        own = _warn(reader, pair.prediction)
        warnings = (*reference.warnings, *(f"{pair.where}: {warning}" for warning in own))
    return PairMasks(predicted=predicted, truth=reference.label, grid=reference.grid, warnings=warnings)


@dataclass(frozen=True, kw_only=True)
class _ReferenceMask:
    label: Label
    grid: Grid
    turned: Grid
    """The prediction's axes on the reference's voxels."""
    warnings: tuple[str, ...] = ()


def _find_scan(pair: Pair) -> ScanGrid | None:
    """Return the grid on which a SEG, an RTSTRUCT or PNG slices of a pair are drawn: its scan's, else the other mask's.

    PNG slices are drawn on that of their series only (`_read_reference` for those of the reference).
    """
    reference = pair.reference.mask
    if isinstance(reference, StoredMask):
        if pair.image is not None and is_png_folder(pair.prediction):
            return read_scan_grid(pair.image)
        return ScanGrid(grid=read_grid(reference.case))
    files = [reference.path] if pair.stored is not None else [pair.prediction, reference.path]
    others = [path for path in files if not needs_scan(path)]
    if len(others) == len(files):
        return None
    scan = pair.image or reference.image
    if scan is not None:
        return read_scan_grid(scan)
    if pair.stored is not None:
        return ScanGrid(grid=read_grid(pair.stored.case))
    if not others:
        return None
    with ScanReader(others[0], "mask", hashed=False) as reader:
        return ScanGrid(grid=reader.grid)


def _add_ignored(labels: Labels, ignored: int) -> Labels:
    return Labels(values={**labels.values, IGNORE: ignored}, organ=labels.organ, tumor=labels.tumor)


def _warn(reader: ScanReader, path: Path) -> list[str]:
    """Return warnings about label values, and of a SEG or RTSTRUCT those about its parts, too."""
    return [*(reader.warnings if is_mask_object(path) else ()), *reader.value_warnings()]


def _read_reference(pair: Pair, grid: Grid, scan: ScanGrid | None, labels: Labels | None) -> _ReferenceMask:
    """Read the reference, which must have the voxels of the prediction's `grid`.

    PNG slices are drawn on their own series: the prediction may refer to a copy whose files have other names.
    """
    mask = pair.reference.mask
    where = f"its reference {pair.reference.case_id}"
    if isinstance(mask, StoredMask):
        truth, own_grid = _read_stored_mask(mask)
        return _ReferenceMask(label=truth, grid=own_grid, turned=require_same_grid(grid, own_grid, pair.where, where))
    if mask.image is not None and is_png_folder(mask.path):
        scan = read_scan_grid(mask.image)
    with open_mask_file(mask.path, scan, labels) as reader:
        turned = require_same_grid(grid, reader.grid, pair.where, where)
        truth = reader.read()
        reader.finish()
        warnings = tuple(f"{mask.path}: {warning}" for warning in _warn(reader, mask.path))
        return _ReferenceMask(label=truth, grid=reader.grid, turned=turned, warnings=warnings)


def _read_stored_mask(stored: StoredMask) -> tuple[Label, Grid]:
    """Read the mask of a stored case, uint8[z, y, x], and the grid of its scan."""
    return stored.label[:], read_grid(stored.case)


def leave_out(masks: PairMasks, ignored: int | None) -> PairMasks:
    """Return the masks with background in both where the reference has the ignored value."""
    if ignored is None:
        return masks
    scored = masks.truth != ignored
    return replace(masks, truth=masks.truth * scored, predicted=masks.predicted * scored)


def check_values(label: Label, labels: Labels, where: str) -> None:
    """Check that every value of a mask is 0 or has a label.

    Raises
    ------
    LabelError
        A value has no label.
    """
    unknown = sorted({int(value) for value in np.flatnonzero(count_values(label))} - {0, *labels.values.values()})
    if unknown:
        raise LabelError(
            f"{where}: has the values {unknown} outside the labels {format_labels(labels.values)}; pass --labels."
        )


def read_background(pair: Pair, grid: Grid) -> npt.NDArray[np.int16]:
    """Read the reference's scan as a background for pictures, int16[z, y, x], HU, on the reference's `grid`.

    Without a readable scan on this grid, the background is air. Scores do not need the scan.
    """
    reference = pair.reference.mask
    with contextlib.suppress(InputError, OSError):
        if isinstance(reference, StoredMask):
            return np.asarray(reference.case.image)
        if reference.image is not None:
            with ScanReader(reference.image, "image") as reader:
                turned = match_grid(reader.grid, grid)
                if turned is not None:
                    reader.replace_grid(turned)
                    image: npt.NDArray[np.int16] = reader.read()
                    return image
    return np.full(grid.stored_shape, AIR_HU, dtype=np.int16)
