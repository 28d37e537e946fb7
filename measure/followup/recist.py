"""Two time points of one patient: matched lesions, changes, new and vanished lesions, and the RECIST 1.1 category.

1. The follow-up is aligned with the baseline: by the patient coordinates of the headers, or with `--align organ` by the
   organ's centroid and extent along the patient's axes, for scans in different frames of reference.
2. Two lesions may be matched if their surfaces are within REACH_MM. The number of pairs is maximized first, then the
   distances of centers are minimized.
3. An unmatched lesion that is within REACH_MM of a matched one at the other time has merged into it or split from it.
   Other unmatched lesions have vanished or are new.
4. The category is computed from the target lesions at baseline
   (`slicemill.measure.lesions.measurements.choose_targets`). CR: no lesion is left. PD: the sum of diameters grew by at
   least 20 % and 5 mm, or a lesion is new. PR: it shrank by at least 30 %. NE: there are no targets. SD: all else. The
   baseline is used as the smallest sum so far. This is a computation, not a diagnosis: RECIST also considers lymph
   nodes, non-measurable lesions, other organs and the reader's judgement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import to_document
from slicemill.common.errors import LabelError
from slicemill.ct.lesion_masks import isolate_lesions
from slicemill.measure.evaluation.surface import mark_surface, nearest_distances
from slicemill.measure.lesions.measurements import (
    CaseFigures,
    LesionMeasurement,
    Volume,
    measure_case,
    measure_lesions,
    round_record,
)

Floats = npt.NDArray[np.float64]
Align = Literal["headers", "organ"]
Fate = Literal["matched", "vanished", "merged", "new", "split"]
Category = Literal["CR", "PR", "SD", "PD", "NE"]
REACH_MM = 5.0
"""About the shift of a lesion's border by breathing and slice positions. Larger values would match neighbors."""
PD_PERCENT, PD_MM, PR_PERCENT = 20.0, 5.0, -30.0
NOTE = "computed by the rules of RECIST 1.1 from segmentations of one organ; research use, not a diagnosis"


@dataclass(frozen=True, kw_only=True)
class TimePoint:
    """A measured segmentation."""

    volume: Volume
    lesions: tuple[LesionMeasurement, ...]

    def surfaces(self) -> list[Floats]:
        """Return the surface voxels of each lesion: float64[n, 3], LPS mm."""
        return [
            voxels_to_mm(np.argwhere(mark_surface(mask)) + np.array(lesion.bbox_zyx[:3]), self.volume.affine_lps)
            for lesion, mask in isolate_lesions(self.volume.label, self.volume.labels, self.volume.affine_lps)
        ]


@dataclass(frozen=True, kw_only=True)
class LesionChange:
    """Change of one lesion."""

    fate: Fate
    baseline_id: int | None = None
    """None for a new lesion or a split."""
    followup_id: int | None = None
    """None if the lesion has vanished or merged."""
    with_id: int | None = None
    """The lesion at the other time that this one merged into or split from; written as ``with``."""
    baseline_ml: float | None = None
    followup_ml: float | None = None
    volume_change_percent: float | None = None
    baseline_mm: float | None = None
    """Longest axial diameter."""
    followup_mm: float | None = None
    """Longest axial diameter."""
    diameter_change_percent: float | None = None

    def as_row(self) -> dict[str, Any]:
        """Return the change as it is written and printed."""
        return {"with" if key == "with_id" else key: value for key, value in to_document(self).items()}


@dataclass(frozen=True, kw_only=True)
class Recist:
    """The RECIST 1.1 category and the values behind it."""

    category: Category
    targets: int
    """Target lesions at baseline."""
    baseline_sum_mm: float
    """Sum of the targets' diameters."""
    followup_sum_mm: float
    """Sum of the diameters of the lesions that continue the targets."""
    change_percent: float | None
    """Change of the sum; None without targets."""
    new_lesions: int
    note: str = NOTE


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two time points of one patient. All figures are rounded."""

    note: str = NOTE
    alignment: Align
    reach_mm: float = REACH_MM
    baseline: CaseFigures
    followup: CaseFigures
    tumor_volume_change_percent: float | None
    """None without tumor at baseline."""
    lesions: tuple[LesionChange, ...]
    """All lesions of the baseline, then the new and split ones."""
    recist: Recist

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as it is written to compare.json."""
        return to_document(self) | {"lesions": [lesion.as_row() for lesion in self.lesions]}


def voxels_to_mm(voxels: npt.NDArray[Any], affine_lps: Floats) -> Floats:
    """Return voxels z, y, x as LPS mm: float64[n, 3]."""
    return np.asarray(voxels[:, ::-1] @ affine_lps[:3, :3].T + affine_lps[:3, 3], dtype=np.float64)


def measure_time_point(volume: Volume) -> TimePoint:
    """Measure a segmentation.

    Raises
    ------
    LabelError
        There is no tumor label.
    """
    if volume.labels.tumor is None:
        raise LabelError(
            "no label is named tumor, so lesions cannot be compared; pass --labels, like --labels liver=1,tumor=2."
        )
    return TimePoint(volume=volume, lesions=measure_lesions(volume))


def compare_time_points(baseline: TimePoint, followup: TimePoint, align: Align = "headers") -> Comparison:
    """Match the lesions of two time points, and compute their changes and the RECIST category.

    Raises
    ------
    LabelError
        There is no organ to align by.
    """
    to_baseline = compute_alignment(baseline.volume, followup.volume, align)
    before = baseline.surfaces()
    after = [points @ to_baseline[:3, :3].T + to_baseline[:3, 3] for points in followup.surfaces()]
    gaps_mm = np.array([[measure_gap(a, b) for b in after] for a in before]).reshape(len(before), len(after))
    centers = [np.array([points.mean(axis=0) for points in side]).reshape(-1, 3) for side in (before, after)]
    pairs = match_lesions(gaps_mm, centers[0], centers[1])
    changes = find_changes(baseline.lesions, followup.lesions, pairs, gaps_mm)
    figures = [measure_case(one.volume, one.lesions) for one in (baseline, followup)]
    return Comparison(
        alignment=align,
        baseline=figures[0],
        followup=figures[1],
        tumor_volume_change_percent=percent_change(figures[0].tumor_ml, figures[1].tumor_ml),
        lesions=tuple(map(round_record, changes)),
        recist=compute_recist(figures[0].target_ids, changes),
    )


def compute_alignment(baseline: Volume, followup: Volume, align: Align) -> Floats:
    """Return the map from the follow-up's LPS mm to the baseline's: float64[4, 4].

    For `headers` it is the identity. For `organ` it shifts and scales along the patient's axes.

    Raises
    ------
    LabelError
        There is no organ to align by.
    """
    if align == "headers":
        return np.eye(4)
    sides = []
    for name, volume in (("baseline", baseline), ("follow-up", followup)):
        values = volume.labels.organ_values()
        voxels = np.argwhere(np.isin(volume.label, values)) if values else np.empty((0, 3))
        if not len(voxels):
            raise LabelError(f"the {name} has no organ to align by; use --align headers.")
        points = voxels_to_mm(voxels, volume.affine_lps)
        sides.append((points.mean(axis=0), np.maximum(np.ptp(points, axis=0), 1.0)))
    (center, extent), (other_center, other_extent) = sides
    scale = extent / other_extent
    result = np.eye(4)
    result[:3, :3] = np.diag(scale)
    result[:3, 3] = center - scale * other_center
    return result


def measure_gap(one: Floats, other: Floats) -> float:
    """Return the smallest distance between two surfaces, mm."""
    few, many = (one, other) if len(one) < len(other) else (other, one)
    return float(nearest_distances(few, many).min())


def match_lesions(gaps_mm: Floats, centers: Floats, other_centers: Floats) -> list[tuple[int, int]]:
    """Return the most pairs (baseline, follow-up) within reach; among equal numbers, those with the nearest centers.

    Parameters
    ----------
    gaps_mm
        float64[n, m]: distance of each pair of surfaces.
    centers, other_centers
        float64[n, 3] and float64[m, 3], LPS mm.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if not gaps_mm.size:
        return []
    distances = cdist(centers, other_centers)
    allowed = gaps_mm <= REACH_MM
    # one pair out of reach costs more than all pairs within reach together
    cost = np.where(allowed, distances, (distances.max() + 1) * (min(gaps_mm.shape) + 1))
    return [(int(a), int(b)) for a, b in zip(*linear_sum_assignment(cost), strict=True) if allowed[a, b]]


def find_changes(
    before: Sequence[LesionMeasurement],
    after: Sequence[LesionMeasurement],
    pairs: Sequence[tuple[int, int]],
    gaps_mm: Floats,
) -> list[LesionChange]:
    """Return the change of each lesion. Unmatched ones merged into or split from the nearest matched one in reach."""
    forward = dict(pairs)
    backward = {b: a for a, b in pairs}
    changes = []
    for a, lesion in enumerate(before):
        if a in forward:
            changes.append(compare_lesions(lesion, after[forward[a]]))
            continue
        into = min((b for b in backward if gaps_mm[a, b] <= REACH_MM), key=lambda b: gaps_mm[a, b], default=None)
        changes.append(
            LesionChange(
                fate="vanished" if into is None else "merged",
                baseline_id=lesion.id,
                with_id=None if into is None else after[into].id,
                baseline_ml=lesion.volume_ml,
                baseline_mm=lesion.max_axial_diameter_mm,
            )
        )
    for b, lesion in enumerate(after):
        if b in backward:
            continue
        parent = min((a for a in forward if gaps_mm[a, b] <= REACH_MM), key=lambda a: gaps_mm[a, b], default=None)
        changes.append(
            LesionChange(
                fate="new" if parent is None else "split",
                followup_id=lesion.id,
                with_id=None if parent is None else before[parent].id,
                followup_ml=lesion.volume_ml,
                followup_mm=lesion.max_axial_diameter_mm,
            )
        )
    return changes


def compare_lesions(before: LesionMeasurement, after: LesionMeasurement) -> LesionChange:
    """Return the change of a matched lesion."""
    return LesionChange(
        fate="matched",
        baseline_id=before.id,
        followup_id=after.id,
        baseline_ml=before.volume_ml,
        followup_ml=after.volume_ml,
        volume_change_percent=percent_change(before.volume_ml, after.volume_ml),
        baseline_mm=before.max_axial_diameter_mm,
        followup_mm=after.max_axial_diameter_mm,
        diameter_change_percent=percent_change(before.max_axial_diameter_mm, after.max_axial_diameter_mm),
    )


def percent_change(before: float | None, after: float | None) -> float | None:
    """Return the change in percent of the first value; None if it is 0 or a value is missing.

    >>> percent_change(20.0, 15.0)
    -25.0
    """
    return 100 * (after - before) / before if before and after is not None else None


def compute_recist(target_ids: Sequence[int], changes: Sequence[LesionChange]) -> Recist:
    """Compute the RECIST 1.1 category.

    A split target counts with all its parts. A target that merged into another lesion is measured by that lesion,
    target or not.
    """
    targets = [one for one in changes if one.baseline_id in target_ids]
    merged_into = {one.with_id for one in targets if one.fate == "merged"}
    parts = [one for one in changes if one.fate == "split" and one.with_id in target_ids]
    parts += [one for one in changes if one.fate == "matched" and one.followup_id in merged_into and one not in targets]
    before = sum(one.baseline_mm or 0.0 for one in targets)
    after = sum(one.followup_mm or 0.0 for one in [*targets, *parts])
    new = sum(one.fate == "new" for one in changes)
    remaining = sum(one.followup_id is not None for one in changes)
    change = percent_change(before, after)
    return Recist(
        category=choose_category(change, after - before, new, remaining),
        targets=len(targets),
        baseline_sum_mm=round(before, 2),
        followup_sum_mm=round(after, 2),
        change_percent=None if change is None else round(change, 1),
        new_lesions=new,
    )


def choose_category(change_percent: float | None, growth_mm: float, new: int, remaining: int) -> Category:
    """Return CR, PR, SD, PD or NE from the sum's change, the number of new lesions, and of all lesions at follow-up.

    >>> choose_category(-100.0, -40.0, 0, 0), choose_category(-30.0, -12.0, 0, 1)
    ('CR', 'PR')
    >>> choose_category(25.0, 4.0, 0, 1), choose_category(25.0, 6.0, 0, 1)
    ('SD', 'PD')
    """
    if new or (change_percent is not None and change_percent >= PD_PERCENT and growth_mm >= PD_MM):
        return "PD"
    if change_percent is None:
        return "NE"
    if not remaining:
        return "CR"
    return "PR" if change_percent <= PR_PERCENT else "SD"
