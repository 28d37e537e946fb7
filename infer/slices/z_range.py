"""Range in z: labels only the slices that a scan's organ needs, where the model's rules keep one organ alone.

The rule ``largest_organ`` clears everything but the largest 26-connected component of organ and tumor. A component lies
in consecutive slices and ends where a slice is empty. So the slices from one empty slice to the next, around the
organ, give the labels of the complete scan:

1. Label samples: the first slice, the last one, and those about STRIDE_MM apart between them.
2. Neighboring labeled slices with organ make a stretch. Its volume is estimated from its areas. Label all slices of
   the largest stretch and a few beyond each end, then further outward, a few at a time, until a slice has none.
3. Measure the largest component of the complete stretches. A stretch that could exceed it is labeled, too: one whose
   bound (twice its estimate, and a stride of its largest area at each end) is not smaller.
4. All other slices are background. Where no sample has organ, or the largest component is lower than two strides, label
   the whole scan.

What is left is a component between two samples, or in a stretch left out, that outweighs the organ. Steps 3 and 4 make
that implausible, not impossible: areas between samples are not seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.labels import Labels
from slicemill.ct.runs import connect_runs, find_runs, select_values

STRIDE_MM = 25.0
"""Distance of samples. By the reference masks of LiTS 0, 1, 2 and 3D-IRCADb 1, 0.43 of the slices are labeled at 20 mm
and 0.41 at 30 mm; no benchmark here has tried other distances."""
OUTWARD = 4
"""Slices that are labeled together at each end of a stretch: two CPU batches of 512x512. Not tuned."""
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class RangeRule:
    """How a scan is searched."""

    values: tuple[int, ...]
    """Label values of organ and tumor."""
    stride: int
    """Distance of samples, slices."""


def make_range_rule(labels: Labels, z_spacing_mm: float) -> RangeRule:
    """Return the rule for a scan of this slice distance, for a model with an organ.

    >>> labels = Labels({"liver": 1, "tumor": 2}, organ="liver", tumor="tumor")
    >>> make_range_rule(labels, 1.0).stride, make_range_rule(labels, 40.0).stride
    (25, 1)
    """
    return RangeRule(values=tuple(labels.organ_values()), stride=max(1, int(STRIDE_MM / z_spacing_mm)))


def explain_no_range(labels: Labels, *, largest_organ: bool) -> str:
    """Return why a model's labels need every slice; empty if the organ's range is enough."""
    if labels.organ is None:
        return "the model has no organ label"
    if set(labels.values.values()) - set(labels.organ_values()):
        return "the model has labels besides the organ and its tumor"
    return "" if largest_organ else "the model's rules do not keep the largest organ alone (`slicemill tune` sets them)"


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Neighboring labeled slices with organ; between two of them there may be slices that are not labeled yet."""

    first: int
    last: int
    estimate: float
    """Estimated voxels."""
    bound: float
    """Voxels that the component may have at most, by its samples."""


class RangeSearch:
    """The search in one scan. `next_slices` names the slices to label, again and again, until it names none.

    It is deterministic: the order in which labels arrive does not matter.
    """

    def __init__(self, rule: RangeRule, label: npt.NDArray[np.uint8]) -> None:
        """Take `label`: uint8[z, y, x], which holds the labels of the slices that were named, at the next call."""
        self._rule = rule
        self._label = label
        self._areas = np.full(len(label), UNKNOWN, dtype=np.int64)
        """Voxels of organ and tumor in each slice; UNKNOWN where it is not labeled."""
        self._asked: list[int] = []

    @property
    def unlabeled(self) -> list[int]:
        """Return the slices that were not labeled, once `next_slices` returns none."""
        return [int(z) for z in np.flatnonzero(self._areas == UNKNOWN)]

    def next_slices(self) -> list[int]:
        """Return the next slices to label, in order; empty when the range is complete."""
        for z in self._asked:
            self._areas[z] = np.count_nonzero(select_values(self._label[z], self._rule.values))
        self._asked = self._choose()
        return self._asked

    def _choose(self) -> list[int]:
        missing = self.unlabeled
        if not missing:
            return []
        count = len(self._areas)
        if len(missing) == count:
            return sorted({*range(0, count, self._rule.stride), count - 1})
        stretches = sorted(self._stretches(), key=lambda one: -one.estimate)
        complete: list[_Stretch] = []
        left: list[tuple[_Stretch, list[int]]] = []
        for stretch in stretches:
            slices = self._missing_of(stretch)
            if slices:
                left.append((stretch, slices))
            else:
                complete.append(stretch)
        if not complete:
            return left[0][1] if left else missing
        kept, height = self._largest_component(complete)
        for stretch, slices in left:
            if stretch.bound >= kept:
                return slices
        return missing if height < 2 * self._rule.stride else []

    def _stretches(self) -> Iterator[_Stretch]:
        known = np.flatnonzero(self._areas != UNKNOWN)
        areas = self._areas[known]
        # each labeled slice stands for the slices half way to its neighbors
        edges = np.concatenate([known[:1], (known[1:] + known[:-1] + 1) / 2, known[-1:] + 1])
        volumes = areas * np.diff(edges)
        filled = np.concatenate([[False], areas > 0, [False]])
        changes = np.flatnonzero(filled[1:] != filled[:-1]).reshape(-1, 2)
        for start, stop in changes.tolist():
            estimate = float(volumes[start:stop].sum())
            margin = 2 * self._rule.stride * float(areas[start:stop].max())
            yield _Stretch(int(known[start]), int(known[stop - 1]), estimate, 2 * estimate + margin)

    def _missing_of(self, stretch: _Stretch) -> list[int]:
        """Return the unlabeled slices of a stretch, and a few beyond each end up to the first that is labeled."""
        inside = [z for z in range(stretch.first, stretch.last + 1) if self._areas[z] == UNKNOWN]
        below = range(stretch.first - 1, max(-1, stretch.first - 1 - OUTWARD), -1)
        above = range(stretch.last + 1, min(len(self._areas), stretch.last + 1 + OUTWARD))
        return sorted([*inside, *self._until_labeled(below), *self._until_labeled(above)])

    def _until_labeled(self, slices: range) -> Iterator[int]:
        for z in slices:
            if self._areas[z] != UNKNOWN:
                return
            yield z

    def _largest_component(self, stretches: list[_Stretch]) -> tuple[float, int]:
        """Return voxels and height in slices of the largest component of stretches that are labeled completely."""
        largest, height = 0.0, 0
        for stretch in stretches:
            runs = find_runs(self._label[stretch.first : stretch.last + 1], self._rule.values)
            numbers, _ = connect_runs(runs)
            sizes = np.bincount(numbers, weights=runs.voxels)
            if (size := float(sizes.max())) > largest:
                z = runs.z[numbers == sizes.argmax()]
                largest, height = size, int(z[-1] - z[0]) + 1
        return largest, height
