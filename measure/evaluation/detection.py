"""Lesion detection: matches the connected components of two masks, and counts hits, misses and false positives.

There are two modes. In the mode ``corrected``, the default, components touch by side, edge or corner (26), and overlap
is intersection over union. Each prediction is matched with at most one reference. The number of pairs is maximized
first, then the sum of overlaps (above 0.5 the matching is unique). The mode ``official`` reproduces the LiTS
challenge's program, including its defects, because published tables depend on them:

1. Components touch by side (6), numbered in the order of the file's voxels.
2. If one prediction is the largest at several references, these are merged into the first of them.
3. Each prediction is assigned to the reference with most shared voxels; predictions of one reference are merged.
4. A reference is detected if the overlap is above the threshold. But the union is correct only if the first
   prediction has the reference's number. Otherwise the reference alone is used, so an unrelated false positive can
   change a miss into a hit.
5. A merged reference is subtracted from the hits, detected or not. A prediction that covers two references perfectly
   scores 1 of 2, and one that barely touches two scores -1.

That program fails for references without lesions, and miscounts more than 255 lesions. This module handles both.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid
from slicemill.ct.lesions import check_parts, label_components, measure_lesion, measure_parts
from slicemill.measure.evaluation.statistics import nan_to_none

Mode = Literal["corrected", "official"]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint32]
"""uint32[z, y, x]: number of the component, 0 outside."""
Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Predictions and references that count as one lesion, by number from 1."""
THRESHOLDS = (0.0, 0.5)
"""Overlaps above which a lesion is detected."""
SIZES_MM = (10.0, 20.0)
"""Limits of the longest axial diameter: small below the first, large from the second. No standard defines them."""
SIZE_NAMES = ("small", "medium", "large")
VOLUMES_ML = (1.0, 5.0)
"""Limits of the bands of a lesion's volume, ml."""
BAND_NAMES = ("below_1_ml", "1_to_5_ml", "above_5_ml")


@dataclass(frozen=True, kw_only=True)
class SharedVoxels:
    """Sizes of the components of two masks, and the voxels that they share."""

    predictions: tuple[int, ...]
    """Voxels of prediction 1, 2, and so on."""
    references: tuple[int, ...]
    """Voxels of reference 1, 2, and so on."""
    shared: dict[tuple[int, int], int]
    """(prediction, reference) -> shared voxels, above 0."""

    def iou(self, group: Group) -> float:
        """Return intersection over union of the group's predictions and its references."""
        both = self.count_shared(group)
        sizes = sum(self.predictions[p - 1] for p in group[0]) + sum(self.references[r - 1] for r in group[1])
        return both / (sizes - both)

    def count_shared(self, group: Group) -> int:
        """Return the voxels that the group's predictions share with its references."""
        return sum(self.shared.get((p, r), 0) for p in group[0] for r in group[1])


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Lesions detected at one threshold of overlap."""

    groups: tuple[Group, ...]
    """Lesions detected together; in the mode `corrected`, pairs of one prediction and one reference."""
    true_positive: int
    """Detected references; in the mode `official`, minus the merged ones."""
    predictions: int
    """Predicted lesions, detected or not."""
    references: int
    """Reference lesions, detected or not."""

    @property
    def hits(self) -> frozenset[int]:
        """Return the numbers of the detected references."""
        return frozenset(reference for _, references in self.groups for reference in references)

    @property
    def used(self) -> frozenset[int]:
        """Return the numbers of the predictions that detect a reference."""
        return frozenset(prediction for predictions, _ in self.groups for prediction in predictions)


@dataclass(frozen=True, kw_only=True)
class SizeCounts:
    """Lesions of one size."""

    found: int
    """Detected references."""
    references: int
    """References, detected or not."""
    false: int
    """Predictions that detect no reference."""
    f1: float | None
    """None without lesions."""


def number_components(mask: Mask, grid: Grid, mode: Mode) -> Numbers:
    """Number the components of a mask bool[z, y, x] from 1: uint32[z, y, x], 0 outside.

    The mask covers the scan, or a box with all its foreground. In the mode `official`, numbers follow the order of the
    file's voxels, with its first axis as the slowest.

    Raises
    ------
    LabelError
        There are more components than `slicemill.ct.lesions.MAX_PARTS`.
    """
    if mode == "corrected":
        numbers = label_components(mask)
        check_parts(int(numbers.max()))
        return numbers
    from scipy.ndimage import label

    in_file_order, count = label(np.asarray(grid.to_file(mask)).T)
    check_parts(count)
    return np.ascontiguousarray(grid.to_stored(in_file_order.T), dtype=np.uint32)


def count_shared_voxels(prediction: Numbers, reference: Numbers) -> SharedVoxels:
    """Count the voxels that the components of two masks of one shape share."""
    both = (prediction > 0) & (reference > 0)
    # one code for each pair of numbers: the prediction in the upper 32 bits, the reference in the lower
    codes, counts = np.unique(
        (prediction[both].astype(np.uint64) << np.uint64(32)) | reference[both].astype(np.uint64), return_counts=True
    )
    return SharedVoxels(
        predictions=_count_voxels(prediction),
        references=_count_voxels(reference),
        shared={
            (code >> 32, code & 0xFFFFFFFF): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
        },
    )


def _count_voxels(numbers: Numbers) -> tuple[int, ...]:
    return tuple(np.bincount(numbers.ravel())[1:].tolist())


def match_lesions(overlaps: SharedVoxels, threshold: float, mode: Mode) -> Matching:
    """Find the lesions that are detected with an overlap strictly above the threshold."""
    groups, merged = (
        _match_official(overlaps, threshold) if mode == "official" else (_match_pairs(overlaps, threshold), 0)
    )
    return Matching(
        groups=groups,
        true_positive=sum(len(group[1]) for group in groups) - merged,
        predictions=len(overlaps.predictions),
        references=len(overlaps.references),
    )


def _match_pairs(overlaps: SharedVoxels, threshold: float) -> tuple[Group, ...]:
    """Return the most pairs above the threshold; among equal numbers, those with the largest sum of overlaps."""
    from scipy.optimize import linear_sum_assignment

    ious = {(p, r): overlaps.iou(((p,), (r,))) for p, r in overlaps.shared}
    candidates = {pair: iou for pair, iou in ious.items() if iou > threshold}
    # Most lesions overlap one other lesion only. The assignment problem is solved for the others.
    partners = [Counter(pair[side] for pair in candidates) for side in (0, 1)]
    alone = [pair for pair in candidates if partners[0][pair[0]] == partners[1][pair[1]] == 1]
    contested = {pair: iou for pair, iou in candidates.items() if partners[0][pair[0]] + partners[1][pair[1]] > 2}
    numbers = [sorted({pair[side] for pair in contested}) for side in (0, 1)]
    rows, columns = ({number: index for index, number in enumerate(side)} for side in numbers)
    gain = np.zeros((len(rows), len(columns)))
    for (p, r), iou in contested.items():
        gain[rows[p], columns[r]] = len(contested) + iou  # one more pair outweighs all overlaps together
    assigned = [
        (numbers[0][row], numbers[1][column])
        for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    ]
    return tuple(((p,), (r,)) for p, r in sorted([*alone, *(pair for pair in assigned if pair in contested)]))


def _match_official(overlaps: SharedVoxels, threshold: float) -> tuple[tuple[Group, ...], int]:
    """Return the lesions that the LiTS program detects, and the number of references that it merges into others."""
    # the references of each prediction, and the largest prediction of each reference
    touched: dict[int, list[int]] = defaultdict(list)
    largest: dict[int, int] = {}
    for (p, r), count in sorted(overlaps.shared.items()):
        touched[p].append(r)
        if count > overlaps.shared.get((largest.get(r, 0), r), 0):
            largest[r] = p
    # rule 2: references with one largest prediction merge into the first of them
    leader = {r: r for r in largest}
    for p, references in touched.items():
        own = [r for r in references if largest[r] == p]
        leader |= dict.fromkeys(own, own[0] if own else 0)
    members: dict[int, list[int]] = defaultdict(list)
    for r, first in leader.items():
        members[first].append(r)
    # rule 3: each prediction is assigned to the merged reference with most shared voxels
    assigned: dict[int, list[int]] = defaultdict(list)
    for p, references in touched.items():
        shares: dict[int, int] = defaultdict(int)
        for r in references:
            shares[leader[r]] += overlaps.shared[p, r]
        assigned[max(shares, key=lambda first: (shares[first], -first))].append(p)
    groups = [(tuple(sorted(ps)), tuple(sorted(members[first]))) for first, ps in sorted(assigned.items())]
    detected = tuple(group for group in groups if official_overlap(overlaps, group) > threshold)
    return detected, sum(len(group) - 1 for group in members.values())


def official_overlap(overlaps: SharedVoxels, group: Group) -> float:
    """Return the overlap by rule 4, whose union is correct only if the first numbers are equal."""
    if group[0][0] == group[1][0]:
        return overlaps.iou(group)
    return overlaps.count_shared(group) / sum(overlaps.references[r - 1] for r in group[1])


def measure_diameters(numbers: Numbers, affine_lps: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the longest axial diameter of components 1 to n, mm."""
    parts = measure_parts(numbers, (0, 0, 0))
    return tuple(measure_lesion(1, [part], affine_lps).max_axial_diameter_mm for part in parts)


def size_name(diameter_mm: float) -> str:
    """Return the size of a lesion by its longest axial diameter.

    >>> size_name(9.9), size_name(10.0), size_name(20.0)
    ('small', 'medium', 'large')
    """
    return SIZE_NAMES[sum(diameter_mm >= limit for limit in SIZES_MM)]


def f1(true_positive: int, predictions: int, references: int) -> float:
    """Return 2 TP / (predictions + references); NaN without predictions and references.

    >>> f1(1, 2, 2)
    0.5
    """
    together = predictions + references
    return 2 * true_positive / together if together else float("nan")


def band_name(volume_ml: float) -> str:
    """Return the band of a lesion's volume; a limit belongs to the band above it.

    >>> band_name(0.9), band_name(1.0), band_name(5.0)
    ('below_1_ml', '1_to_5_ml', 'above_5_ml')
    """
    return BAND_NAMES[sum(volume_ml >= limit for limit in VOLUMES_ML)]


def count_by_volume(matching: Matching, references_ml: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Count the references of each band of volume in one case: those detected, and all."""
    bands = {number: band_name(volume) for number, volume in enumerate(references_ml, start=1)}
    found = Counter(band for number, band in bands.items() if number in matching.hits)
    references = Counter(bands.values())
    return {name: (found[name], references[name]) for name in BAND_NAMES}


def count_by_size(
    matchings: Sequence[Matching], diameters_mm: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> dict[str, SizeCounts]:
    """Count the lesions of each size over all cases.

    References count by their own diameter, and so do predictions that detect no reference.

    Parameters
    ----------
    matchings
        The matching of each case.
    diameters_mm
        The diameters of each case's predictions, and of its references.
    """
    found, references, false = Counter[str](), Counter[str](), Counter[str]()
    for matching, (of_predictions, of_references) in zip(matchings, diameters_mm, strict=True):
        sizes = {number: size_name(diameter) for number, diameter in enumerate(of_references, start=1)}
        references.update(sizes.values())
        found.update(size for number, size in sizes.items() if number in matching.hits)
        sizes = {number: size_name(diameter) for number, diameter in enumerate(of_predictions, start=1)}
        false.update(size for number, size in sizes.items() if number not in matching.used)
    return {
        name: SizeCounts(
            found=found[name],
            references=references[name],
            false=false[name],
            f1=nan_to_none(f1(found[name], found[name] + false[name], references[name])),
        )
        for name in SIZE_NAMES
    }
