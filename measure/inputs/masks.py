"""Reads predictions, references and scans onto one grid."""

import contextlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, InputError, LabelError
from slicemill.ct.geometry import SAME_GRID_MM, Grid
from slicemill.ct.labels import Labels, format_labels
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
    """The reference's grid, which both masks share."""


def read_masks(pair: Pair) -> PairMasks:
    """Read a prediction and its reference.

    Raises
    ------
    InputError
        A mask cannot be read, or the two have different grids.
    """
    if pair.stored is not None:
        label, own_grid = _read_stored_mask(pair.stored)
        truth, grid = _read_reference(pair, own_grid)
        predicted = np.ascontiguousarray(grid.to_stored(own_grid.to_file(label)))
        return PairMasks(predicted=predicted, truth=truth, grid=grid)
    with ScanReader(pair.prediction, "mask") as reader:
        truth, grid = _read_reference(pair, reader.grid)
        reader.replace_grid(grid)
        predicted = reader.read()
        reader.finish()
    return PairMasks(predicted=predicted, truth=truth, grid=grid)


def _read_reference(pair: Pair, grid: Grid) -> tuple[Label, Grid]:
    """Read the reference and its grid, which must match the prediction's `grid`."""
    reference = pair.reference.mask
    if isinstance(reference, StoredMask):
        truth, own_grid = _read_stored_mask(reference)
        _check_grids(pair, grid, own_grid)
        return truth, own_grid
    with ScanReader(reference.path, "mask") as reader:
        _check_grids(pair, grid, reader.grid)
        truth = reader.read()
        reader.finish()
        return truth, reader.grid


def _read_stored_mask(stored: StoredMask) -> tuple[Label, Grid]:
    """Read the mask of a stored case, uint8[z, y, x], and the grid of its scan."""
    return stored.label[:], read_grid(stored.case)


def _check_grids(pair: Pair, grid: Grid, other: Grid) -> None:
    reference = pair.reference.case_id
    if grid.shape != other.shape:
        raise GeometryError(f"{pair.where}: has shape {grid.shape}, but its reference {reference} has {other.shape}.")
    if (apart := grid.distance_mm(other)) > SAME_GRID_MM:
        raise GeometryError(
            f"{pair.where}: is {apart:.3g} mm away from its reference {reference}; both must have the same grid."
        )


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


def read_background(pair: Pair, shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """Read the reference's scan as a background for pictures, int16[z, y, x], HU.

    Without a readable scan of this shape, the background is air. Scores do not need the scan.
    """
    reference = pair.reference.mask
    with contextlib.suppress(InputError, OSError):
        if isinstance(reference, StoredMask):
            return np.asarray(reference.case.image)
        if reference.image is not None:
            with ScanReader(reference.image, "image") as reader:
                if reader.grid.stored_shape == shape:
                    image: npt.NDArray[np.int16] = reader.read()
                    return image
    return np.full(shape, AIR_HU, dtype=np.int16)
