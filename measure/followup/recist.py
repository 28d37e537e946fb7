"""Two time points of one patient: lesions matched, what changed, what is new or gone, and the RECIST 1.1 category.

1. The follow-up is laid onto the baseline: by the headers (both in patient millimetres), or by the organ's centroid and
   extent along the patient's axes when asked, for scans whose headers do not share a frame.
2. Lesions may be one when their surfaces come nearer than REACH_MM. Of those pairs the most are taken, and of as many the
   ones whose centers lie nearest.
3. A lesion without a partner that touches a matched one at the other time has merged into it, or split off from it; others
   have vanished or are new.
4. The category is computed from target lesions (`slicemill.measure.lesions.measurements.targets`, chosen at
baseline): CR no lesion is left; PD the sum
   of diameters grew by at least 20 % and 5 mm, or a lesion is new; PR it shrank by at least 30 %; SD else; NE without targets.
   The baseline stands for the smallest sum so far. It is a computation, not a diagnosis: RECIST also asks for lymph
   nodes, lesions that cannot be measured, other organs and the reader's judgement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError
from slicemill.measure.evaluation.surface import nearest, surface
from slicemill.measure.lesions.measurements import (
    Measured,
    Volume,
    case_figures,
    lesion_masks,
    measure_lesions,
    rounded,
)

Floats = npt.NDArray[np.float64]
Align = Literal["headers", "organ"]
REACH_MM = 5.0
"""About what breathing and the choice of slices move a lesion's border by; a larger one would pair neighbors."""
PD_PERCENT, PD_MM, PR_PERCENT = 20.0, 5.0, -30.0
NOTE = "computed by the rules of RECIST 1.1 from segmentations of one organ; research use, not a diagnosis"


@dataclass(frozen=True, kw_only=True)
class TimePoint:
    """A measured segmentation."""

    volume: Volume
    lesions: tuple[Measured, ...]

    def outlines(self) -> list[Floats]:
        """Return the surface of each lesion, float64[n, 3], LPS mm."""
        return [
            in_mm(np.argwhere(surface(mask)) + np.array(lesion.bbox_zyx[:3]), self.volume.affine_lps)
            for lesion, mask in lesion_masks(self.volume)
        ]


def in_mm(voxels: npt.NDArray[Any], affine_lps: Floats) -> Floats:
    """Return voxels z, y, x as LPS mm, float64[n, 3]."""
    return np.asarray(voxels[:, ::-1] @ affine_lps[:3, :3].T + affine_lps[:3, 3], dtype=np.float64)


def time_point(volume: Volume) -> TimePoint:
    """Measure a segmentation.

    Raises
    ------
    LabelError
        No tumor is named.
    """
    if volume.labels.tumor is None:
        raise LabelError("a comparison needs to know which label is tumor; pass --labels liver=1,tumor=2.")
    return TimePoint(volume=volume, lesions=measure_lesions(volume))


def compared(baseline: TimePoint, followup: TimePoint, align: Align = "headers") -> dict[str, Any]:
    """Return what became of each lesion, the change of volumes, and the RECIST category, as a record."""
    onto = alignment(baseline.volume, followup.volume, align)
    shapes = baseline.outlines(), [points @ onto[:3, :3].T + onto[:3, 3] for points in followup.outlines()]
    gaps = np.array([[gap(a, b) for b in shapes[1]] for a in shapes[0]]).reshape(len(shapes[0]), len(shapes[1]))
    centers = [np.array([points.mean(axis=0) for points in side]).reshape(-1, 3) for side in shapes]
    pairs = matched(gaps, centers[0], centers[1])
    rows = fates(baseline.lesions, followup.lesions, pairs, gaps)
    figures = [case_figures(one.volume, one.lesions) for one in (baseline, followup)]
    return {
        "note": NOTE,
        "alignment": align,
        "reach_mm": REACH_MM,
        "baseline": figures[0],
        "followup": figures[1],
        "tumor_volume_change_percent": percent(figures[0]["tumor_ml"], figures[1]["tumor_ml"]),
        "lesions": rounded(rows),
        "recist": recist(figures[0]["target_ids"], rows),
    }


def alignment(baseline: Volume, followup: Volume, align: Align) -> Floats:
    """Return the map from the follow-up's LPS mm to the baseline's, float64[4, 4].

    By the headers it is the identity; by the organ it moves and stretches along the patient's axes.

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
        places = in_mm(voxels, volume.affine_lps)
        sides.append((places.mean(axis=0), np.maximum(np.ptp(places, axis=0), 1.0)))
    (here, wide), (there, far) = sides
    result = np.eye(4)
    result[:3, :3] = np.diag(wide / far)
    result[:3, 3] = here - wide / far * there
    return result


def gap(one: Floats, other: Floats) -> float:
    """Return how near two surfaces come, mm."""
    few, many = (one, other) if len(one) < len(other) else (other, one)
    return float(nearest(few, many).min())


def matched(gaps: Floats, centers: Floats, others: Floats) -> list[tuple[int, int]]:
    """Return the pairs (baseline, follow-up) of lesions that are one: the most within reach, of those the nearest centers."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if not gaps.size:
        return []
    apart = cdist(centers, others)
    allowed = gaps <= REACH_MM
    cost = np.where(allowed, apart, (apart.max() + 1) * (min(gaps.shape) + 1))
    return [(int(a), int(b)) for a, b in zip(*linear_sum_assignment(cost), strict=True) if allowed[a, b]]


def fates(
    before: Sequence[Measured], after: Sequence[Measured], pairs: Sequence[tuple[int, int]], gaps: Floats
) -> list[dict[str, Any]]:
    """Return a row a lesion: matched, vanished, merged, new or split, with its changes; pixels that touch make a merger."""
    forward = dict(pairs)
    backward = {b: a for a, b in pairs}
    rows = []
    for a, lesion in enumerate(before):
        if a in forward:
            rows.append(row("matched", lesion, after[forward[a]]))
            continue
        taken = [b for b in backward if gaps[a, b] <= REACH_MM]
        into = min(taken, key=lambda b: gaps[a, b]) if taken else None
        rows.append(
            row("vanished", lesion, None) if into is None else row("merged", lesion, None) | {"with": after[into].id}
        )
    for b, lesion in enumerate(after):
        if b in backward:
            continue
        taken = [a for a in forward if gaps[a, b] <= REACH_MM]
        parent = min(taken, key=lambda a: gaps[a, b]) if taken else None
        rows.append(
            row("new", None, lesion) if parent is None else row("split", None, lesion) | {"with": before[parent].id}
        )
    return rows


def row(fate: str, before: Measured | None, after: Measured | None) -> dict[str, Any]:
    """Return one lesion's change."""
    return {
        "fate": fate,
        "baseline_id": before.id if before else None,
        "followup_id": after.id if after else None,
        "with": None,
        "baseline_ml": before.volume_ml if before else None,
        "followup_ml": after.volume_ml if after else None,
        "volume_change_percent": percent(before.volume_ml, after.volume_ml) if before and after else None,
        "baseline_mm": before.max_axial_diameter_mm if before else None,
        "followup_mm": after.max_axial_diameter_mm if after else None,
        "diameter_change_percent": percent(before.max_axial_diameter_mm, after.max_axial_diameter_mm)
        if before and after
        else None,
    }


def percent(before: float | None, after: float | None) -> float | None:
    """Return the change in percent of the former value; None without one.

    >>> percent(20.0, 15.0)
    -25.0
    """
    return 100 * (after - before) / before if before and after is not None else None


def recist(target_ids: Sequence[int], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the RECIST 1.1 category of what became of the lesions, with what it was computed from.

    A target that split counts with all its parts; one that merged into another lesion is measured with that, target or not.
    """
    aims = [one for one in rows if one["baseline_id"] in target_ids]
    into = {one["with"] for one in aims if one["fate"] == "merged"}
    parts = [one for one in rows if one["fate"] == "split" and one["with"] in target_ids]
    parts += [one for one in rows if one["fate"] == "matched" and one["followup_id"] in into and one not in aims]
    before = sum(one["baseline_mm"] for one in aims)
    after = sum(one["followup_mm"] or 0.0 for one in [*aims, *parts])
    new = sum(one["fate"] == "new" for one in rows)
    left = sum(one["followup_id"] is not None for one in rows)
    change = percent(before, after)
    record = {
        "targets": len(aims),
        "baseline_sum_mm": round(before, 2),
        "followup_sum_mm": round(after, 2),
        "change_percent": None if change is None else round(change, 1),
        "new_lesions": new,
        "note": NOTE,
    }
    return {"category": category(change, after - before, new, left)} | record


def category(change: float | None, growth_mm: float, new: int, left: int) -> str:
    """Return CR, PR, SD, PD or NE.

    >>> category(-100.0, -40.0, 0, 0), category(25.0, 4.0, 0, 1), category(25.0, 6.0, 0, 1), category(-30.0, -12.0, 0, 1)
    ('CR', 'SD', 'PD', 'PR')
    """
    if new or (change is not None and change >= PD_PERCENT and growth_mm >= PD_MM):
        return "PD"
    if change is None:
        return "NE"
    if not left:
        return "CR"
    return "PR" if change <= PR_PERCENT else "SD"
