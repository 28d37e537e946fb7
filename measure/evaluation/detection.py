"""Lesions found, missed and invented: components of two masks matched with each other.

Two modes. ``corrected``, the default: components touch by side, edge or corner (26), overlap is intersection over union, and
each prediction is matched with at most one reference: the most pairs that there can be, of those the ones that overlap
most (above 0.5 no other choice exists). ``official``: the rules of the LiTS challenge's program as far as published
tables depend on them, odd ones included:

1. Components touch by side (6), numbered in the file's own order.
2. A prediction that is the largest of several references merges these into the first of them.
3. Each prediction goes to the reference that it shares most with; those that meet at one reference merge.
4. Detected is what overlaps by more than the threshold, but the union is only right where the first prediction has the
   reference's number; else it is the reference alone, so that an unrelated false positive can turn a miss into a hit.
5. A merged reference is taken off the hits, detected or not: a prediction that covers two references perfectly scores one of
   two, and one that spans two barely scores -1.

That program stops at a reference without lesions and counts wrongly beyond 255 of them; here neither happens.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid
from slicemill.ct.lesions import Part, check_parts, components, measure_lesion, measured_parts

Mode = Literal["corrected", "official"]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint32]
Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Predictions and references that count as one, by number from 1 on."""
THRESHOLDS = (0.0, 0.5)
SIZES_MM = (10.0, 20.0)
"""Lesions below the first longest axial diameter are small, from the second on large; ours until the paper's are at hand."""
SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Which components of two masks share how many voxels."""

    predictions: tuple[int, ...]
    """Voxels of prediction 1, 2, and so on."""
    references: tuple[int, ...]
    shared: dict[tuple[int, int], int]
    """(prediction, reference) -> voxels, above 0."""

    def iou(self, group: Group) -> float:
        """Return intersection over union of predictions and references taken together."""
        both = sum(self.shared.get((p, r), 0) for p in group[0] for r in group[1])
        alone = sum(self.predictions[p - 1] for p in group[0]) + sum(self.references[r - 1] for r in group[1])
        return both / (alone - both)


@dataclass(frozen=True, kw_only=True)
class Matching:
    """What was detected at one threshold of overlap."""

    groups: tuple[Group, ...]
    """What was detected together with what; single pairs in the mode `corrected`."""
    true_positive: int
    predictions: int
    references: int

    @property
    def hits(self) -> frozenset[int]:
        """Return the references that were detected."""
        return frozenset(reference for _, references in self.groups for reference in references)

    @property
    def used(self) -> frozenset[int]:
        """Return the predictions that detected one."""
        return frozenset(prediction for predictions, _ in self.groups for prediction in predictions)


def numbered(mask: Mask, grid: Grid, mode: Mode) -> Numbers:
    """Return the components of a mask bool[z, y, x], of a scan or of a box that holds all of it, as uint32[z, y, x], 0 outside, 1 to n inside.

    In the mode `official` numbers follow the file's own order of voxels, its first axis the slowest.

    Raises
    ------
    LabelError
        There are more than `slicemill.ct.lesions.MAX_PARTS`.
    """
    if mode == "corrected":
        found = components(mask)
        check_parts(int(found.max()))
        return found
    from scipy.ndimage import label

    in_file_order, count = label(np.asarray(grid.to_file(mask)).T)
    check_parts(count)
    return np.ascontiguousarray(grid.to_stored(in_file_order.T), dtype=np.uint32)


def cross(prediction: Numbers, reference: Numbers) -> Crossing:
    """Count what numbered components of one shape share."""
    both = (prediction > 0) & (reference > 0)
    codes, counts = np.unique(
        (prediction[both].astype(np.uint64) << np.uint64(32)) | reference[both].astype(np.uint64), return_counts=True
    )
    return Crossing(
        predictions=_sizes(prediction),
        references=_sizes(reference),
        shared={
            (code >> 32, code & 0xFFFFFFFF): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
        },
    )


def _sizes(numbers: Numbers) -> tuple[int, ...]:
    return tuple(np.bincount(numbers.ravel())[1:].tolist())


def match(crossing: Crossing, threshold: float, mode: Mode) -> Matching:
    """Return which lesions are detected by an overlap strictly above the threshold."""
    groups, merged = _official(crossing, threshold) if mode == "official" else (_pairs(crossing, threshold), 0)
    return Matching(
        groups=groups,
        true_positive=sum(len(group[1]) for group in groups) - merged,
        predictions=len(crossing.predictions),
        references=len(crossing.references),
    )


def _pairs(crossing: Crossing, threshold: float) -> tuple[Group, ...]:
    """Return the most pairs that overlap by more than the threshold; of as many, those of the largest overlap in all."""
    from scipy.optimize import linear_sum_assignment

    overlaps = {(p, r): crossing.iou(((p,), (r,))) for p, r in crossing.shared}
    kept = {pair: value for pair, value in overlaps.items() if value > threshold}
    partners = [Counter(pair[side] for pair in kept) for side in (0, 1)]
    alone = [pair for pair in kept if partners[0][pair[0]] == partners[1][pair[1]] == 1]
    contested = {pair: value for pair, value in kept.items() if partners[0][pair[0]] + partners[1][pair[1]] > 2}
    rows, columns = (
        {number: place for place, number in enumerate(sorted({pair[side] for pair in contested}))} for side in (0, 1)
    )
    gain = np.zeros((len(rows), len(columns)))
    for (p, r), value in contested.items():
        gain[rows[p], columns[r]] = len(contested) + value
    names = list(rows), list(columns)
    chosen = [
        (names[0][row], names[1][column])
        for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    ]
    return tuple(((p,), (r,)) for p, r in sorted([*alone, *(pair for pair in chosen if pair in contested)]))


def _official(crossing: Crossing, threshold: float) -> tuple[tuple[Group, ...], int]:
    """Return what is detected by the program's rules, and how many references were merged into others."""
    touched: dict[int, list[int]] = defaultdict(list)
    largest: dict[int, int] = {}
    for (p, r), count in sorted(crossing.shared.items()):
        touched[p].append(r)
        if count > crossing.shared.get((largest.get(r, 0), r), 0):
            largest[r] = p
    leader = {r: r for r in largest}
    for p, references in touched.items():
        own = [r for r in references if largest[r] == p]
        leader |= dict.fromkeys(own, own[0] if own else 0)
    members: dict[int, list[int]] = defaultdict(list)
    for r, first in leader.items():
        members[first].append(r)
    meeting: dict[int, list[int]] = defaultdict(list)
    for p, references in touched.items():
        shares: dict[int, int] = defaultdict(int)
        for r in references:
            shares[leader[r]] += crossing.shared[p, r]
        meeting[max(shares, key=lambda first: (shares[first], -first))].append(p)
    groups = [(tuple(sorted(ps)), tuple(sorted(members[first]))) for first, ps in sorted(meeting.items())]
    found = tuple(group for group in groups if official_overlap(crossing, group) > threshold)
    return found, sum(len(group) - 1 for group in members.values())


def official_overlap(crossing: Crossing, group: Group) -> float:
    """Return the overlap as the program has it: over the union only where the first prediction has the reference's number."""
    if group[0][0] == group[1][0]:
        return crossing.iou(group)
    both = sum(crossing.shared.get((p, r), 0) for p in group[0] for r in group[1])
    return both / sum(crossing.references[r - 1] for r in group[1])


def diameters(numbers: Numbers, affine_lps: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the longest axial diameter in mm of components 1 to n."""
    parts: list[Part] = measured_parts(numbers, (0, 0, 0))
    return tuple(measure_lesion(1, [part], affine_lps).max_axial_diameter_mm for part in parts)


def size_name(diameter_mm: float) -> str:
    """Return the stratum of a longest axial diameter.

    >>> size_name(9.9), size_name(10.0), size_name(20.0)
    ('small', 'medium', 'large')
    """
    return SIZE_NAMES[sum(diameter_mm >= limit for limit in SIZES_MM)]


def f1(true_positive: int, predictions: int, references: int) -> float:
    """Return 2 TP / (predictions + references); NaN where there are none of both.

    >>> f1(1, 2, 2)
    0.5
    """
    together = predictions + references
    return 2 * true_positive / together if together else float("nan")


def by_size(
    matchings: Sequence[Matching], sizes: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> dict[str, list[int]]:
    """Count hits, unused predictions and references of each size over several cases.

    Hits and references count by the reference's diameter, unused predictions by their own; `sizes` holds the diameters of
    a case's predictions and references, in mm.

    Returns
    -------
    dict
        Name of the size -> detected references, references, predictions that detect none.
    """
    counts = {name: [0, 0, 0] for name in SIZE_NAMES}
    for matching, (predictions, references) in zip(matchings, sizes, strict=True):
        for number, diameter in enumerate(references, start=1):
            row = counts[size_name(diameter)]
            row[0] += number in matching.hits
            row[1] += 1
        for number, diameter in enumerate(predictions, start=1):
            counts[size_name(diameter)][2] += number not in matching.used
    return counts
