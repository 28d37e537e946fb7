"""Reads predictions, references and scans onto one grid."""

import base64
import contextlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, LabelError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import Labels, format_labels
from slicemill.ct.same_grid import match_grid, require_same_grid
from slicemill.ct.scan import ScanReader
from slicemill.ct.window import AIR_HU
from slicemill.measure.inputs.pairs import Pair
from slicemill.store.reader import Case
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
    if pair.case is not None:
        label, own_grid = read_stored_mask(pair.case)
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
    reference = pair.reference
    where = f"its reference {reference.case_id}"
    if reference.case is not None:
        truth, own_grid = read_stored_mask(reference.case)
        return _ReferenceMask(label=truth, grid=own_grid, turned=require_same_grid(grid, own_grid, pair.where, where))
    assert reference.mask is not None  # noqa: S101 (a reference is a file or a stored case)
    with ScanReader(reference.mask, "mask") as reader:
        turned = require_same_grid(grid, reader.grid, pair.where, where)
        truth = reader.read()
        reader.finish()
        warnings = tuple(f"{reference.mask}: {warning}" for warning in reader.value_warnings())
        return _ReferenceMask(label=truth, grid=reader.grid, turned=turned, warnings=warnings)


def read_stored_mask(case: Case) -> tuple[Label, Grid]:
    """Read the mask of a stored case that has one, uint8[z, y, x], and the grid of its scan."""
    assert case.label is not None  # noqa: S101 (only cases with a mask are paired)
    return case.label[:], parse_grid(base64.b64decode(case.info.image.header_b64))


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
    reference = pair.reference
    with contextlib.suppress(InputError, OSError):
        if reference.case is not None:
            return reference.case.image[:]
        if reference.image is not None:
            with ScanReader(reference.image, "image") as reader:
                turned = match_grid(reader.grid, grid)
                if turned is not None:
                    reader.replace_grid(turned)
                    image: npt.NDArray[np.int16] = reader.read()
                    return image
    return np.full(grid.stored_shape, AIR_HU, dtype=np.int16)
