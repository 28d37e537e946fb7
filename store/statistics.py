"""Statistics of a case, computed slab by slab: HU range, voxels of each label, lesions."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError
from slicemill.ct.hu_checks import DistinctValues, HuRange
from slicemill.ct.labels import Labels, format_labels, make_labels
from slicemill.ct.lesions import Lesion, LesionTracker
from slicemill.store.case import SliceStats

MANY_SLICES = 4
"""Slices counted at a time. numpy converts them to eight bytes a voxel (`slicemill bench constants`)."""
UNDECLARED = make_labels({"label_1": 1})
"""Labels of a collection without label names: one value of unknown meaning."""


def count_values(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the number of voxels of uint8[z, y, x] for each value, int64[256].

    >>> count_values(np.array([[[0, 2, 2]]], dtype=np.uint8))[:3].tolist()
    [1, 0, 2]
    """
    counts = np.zeros(256, dtype=np.int64)
    for z in range(0, len(label), MANY_SLICES):
        counts += np.bincount(label[z : z + MANY_SLICES].ravel(), minlength=256)
    return counts


@dataclass
class Counts:
    """Statistics of the slabs added so far."""

    slices: int
    labels: Labels | None
    hu_min: list[int | None] = field(init=False)
    hu_max: list[int | None] = field(init=False)
    voxels: dict[str, list[int]] = field(init=False)
    padding: int = 0
    values: DistinctValues = field(default_factory=DistinctValues)
    tracker: LesionTracker = field(default_factory=LesionTracker)

    def __post_init__(self) -> None:
        """Create the list entries of all slices."""
        self.hu_min, self.hu_max = [None] * self.slices, [None] * self.slices
        self.voxels = {name: [0] * self.slices for name in (self.labels.values if self.labels else ())}

    def add_image(self, z: int, slab: npt.NDArray[np.int16]) -> None:
        """Add the HU range of each slice, without padding below air (such as -3024)."""
        for row, section in enumerate(slab, start=z):
            one = HuRange.of_slice(section)
            self.hu_min[row], self.hu_max[row] = one.low, one.high
            self.padding += one.padding
            self.values.add(section, one)

    def hu_range(self) -> HuRange:
        """Return the HU range of the slices added so far."""
        slices = zip(self.hu_min, self.hu_max, strict=True)
        whole = HuRange.of_all(HuRange(low=low, high=high, padding=0) for low, high in slices)
        return replace(whole, padding=self.padding)

    def add_mask(self, z: int, slab: npt.NDArray[np.uint8], path: str) -> None:
        """Count each label in each slice, and track the lesions.

        Raises
        ------
        LabelError
            A voxel has a value without a label.
        """
        if self.labels is None:
            raise LabelError(
                "the label values have no names; pass --labels, like --labels liver=1,tumor=2.", where=path
            )
        tumor = self.labels.tumor_value()
        plane = slab.max(axis=0)
        rows = np.flatnonzero(plane.max(axis=1))
        if not len(rows):
            return
        # count in the bounding box of the labels only, which is mostly a tenth of the slab
        columns = np.flatnonzero(plane.max(axis=0))
        box = np.ascontiguousarray(slab[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        uncounted = [int(np.count_nonzero(section)) for section in box]
        for name, value in self.labels.values.items():
            hits = box == value
            for row, section in enumerate(hits):
                count = int(np.count_nonzero(section))
                self.voxels[name][z + row] = count
                uncounted[row] -= count
            if value == tumor:
                self.tracker.add(z, hits, (int(rows[0]), int(columns[0])))
        if any(uncounted):
            raise LabelError(_describe_undeclared(slab, self.labels, path))

    def stats(self) -> SliceStats:
        """Return the statistics of each slice."""
        return SliceStats(hu_min=self.hu_min, hu_max=self.hu_max, voxels=self.voxels)

    def lesions(self, affine_lps: npt.NDArray[np.float64]) -> tuple[Lesion, ...] | None:
        """Return the tumor's connected components; None without a tumor label."""
        if self.labels is None or self.labels.tumor is None:
            return None
        return self.tracker.lesions(affine_lps)


def _describe_undeclared(slab: npt.NDArray[np.uint8], labels: Labels, path: str) -> str:
    """Return the error message about values without a label."""
    values = [int(value) for value in np.unique(slab)]
    if labels == UNDECLARED:
        return f"{path}: has the values {values} without names; pass --labels, like --labels liver=1,tumor=2."
    unknown = sorted(set(values) - {0, *labels.values.values()})
    return (
        f"{path}: has the values {unknown} outside the labels {format_labels(labels.values)}. "
        "Add them to --labels, or correct the mask."
    )
