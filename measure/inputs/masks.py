"""Reads predictions, references and scans onto one grid."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, LabelError
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import Labels, format_labels
from slicemill.ct.same_grid import match_grid, require_same_grid
from slicemill.ct.scan import ScanReader
from slicemill.ct.window import AIR_HU
from slicemill.measure.inputs.pairs import Pair, StoredMask
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


def read_masks(pair: Pair) -> PairMasks:
    """Read a prediction and its reference.

    Raises
    ------
    InputError
        A mask cannot be read, or the two have different grids.
    """
    if pair.stored is not None:
        label, own_grid = _read_stored_mask(pair.stored)
        reference = _read_reference(pair, own_grid)
        predicted = np.ascontiguousarray(reference.turned.to_stored(own_grid.to_file(label)))
        return PairMasks(predicted=predicted, truth=reference.label, grid=reference.grid, warnings=reference.warnings)
    with ScanReader(pair.prediction, "mask") as reader:
        reference = _read_reference(pair, reader.grid)
        reader.replace_grid(reference.turned)
        predicted = reader.read()
        reader.finish()
        warnings = (*reference.warnings, *(f"{pair.where}: {warning}" for warning in reader.value_warnings()))
    return PairMasks(predicted=predicted, truth=reference.label, grid=reference.grid, warnings=warnings)


@dataclass(frozen=True, kw_only=True)
class _ReferenceMask:
    label: Label
    grid: Grid
    turned: Grid
    """The prediction's axes on the reference's voxels."""
    warnings: tuple[str, ...] = ()


def _read_reference(pair: Pair, grid: Grid) -> _ReferenceMask:
    """Read the reference, which must have the voxels of the prediction's `grid`."""
    mask = pair.reference.mask
    where = f"its reference {pair.reference.case_id}"
    if isinstance(mask, StoredMask):
        truth, own_grid = _read_stored_mask(mask)
        return _ReferenceMask(label=truth, grid=own_grid, turned=require_same_grid(grid, own_grid, pair.where, where))
    with ScanReader(mask.path, "mask") as reader:
        turned = require_same_grid(grid, reader.grid, pair.where, where)
        truth = reader.read()
        reader.finish()
        warnings = tuple(f"{mask.path}: {warning}" for warning in reader.value_warnings())
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
