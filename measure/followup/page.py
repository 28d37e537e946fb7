"""The page of two time points: RECIST category, its computation, changes of lesions, and pictures."""

from collections.abc import Sequence
from pathlib import Path

from slicemill.common.documents import to_document
from slicemill.common.files import write_bytes, write_json
from slicemill.common.html import render
from slicemill.measure.followup.recist import (
    PD_MM,
    PD_PERCENT,
    PR_PERCENT,
    Category,
    Comparison,
    LesionChange,
    TimePoint,
    percent_change,
)
from slicemill.measure.lesions.case_page import SHOWN, Table, describe_size, list_provenance
from slicemill.measure.lesions.measurements import round_record
from slicemill.measure.lesions.pictures import CaptionedPicture, draw_lesion, to_jpeg
from slicemill.measure.lesions.records import CaseOrigin

FIGURES = {
    "lesion_count": "lesions",
    "tumor_ml": "tumor, ml",
    "organ_ml": "organ with tumors, ml",
    "tumor_burden_percent": "tumor burden, % of the organ",
}
COLUMNS = {
    "fate": "change",
    "baseline_id": "lesion at baseline",
    "followup_id": "at follow-up",
    "with": "with lesion",
    "baseline_ml": "baseline, ml",
    "followup_ml": "follow-up, ml",
    "volume_change_percent": "volume, %",
    "baseline_mm": "baseline, mm",
    "followup_mm": "follow-up, mm",
    "diameter_change_percent": "diameter, %",
}
MEANINGS: dict[Category, str] = {
    "CR": "complete response",
    "PR": "partial response",
    "SD": "stable disease",
    "PD": "progressive disease",
    "NE": "not evaluable",
}


def write_comparison(
    out: Path, comparison: Comparison, points: tuple[TimePoint, TimePoint], origins: tuple[CaseOrigin, CaseOrigin]
) -> None:
    """Write compare.html and compare.json; `points` and `origins` are of baseline and follow-up."""
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "compare.html", render_page(comparison, points, origins))
    sources = {"baseline": to_document(origins[0]), "followup": to_document(origins[1])}
    write_json(out / "compare.json", comparison.as_json() | {"sources": sources})


def render_page(
    comparison: Comparison, points: tuple[TimePoint, TimePoint], origins: tuple[CaseOrigin, CaseOrigin]
) -> bytes:
    """Return the self-contained page."""
    new = [one for one in comparison.lesions if one.fate == "new"]
    targets = [one for one in comparison.lesions if one.baseline_id in comparison.baseline.target_ids]
    shown_new = new[: max(0, SHOWN - len(targets))]
    return render(
        "measure/followup/page.html",
        title="Two time points",
        comparison=comparison,
        names=[origin.source.mask.name if origin.source.mask else "-" for origin in origins],
        cards=list_cards(comparison),
        meaning=MEANINGS[comparison.recist.category],
        change=format_change(comparison.recist.change_percent),
        limits={"pd_percent": PD_PERCENT, "pd_mm": PD_MM, "pr_percent": -PR_PERCENT},
        figures=tabulate_figures(comparison),
        changes=tabulate_changes(comparison.lesions),
        pictures=[
            *(picture for target in targets for picture in draw_target(target, comparison.lesions, points)),
            *(draw("New at follow-up", points[1], one.followup_id) for one in shown_new),
        ],
        more_new=len(new) - len(shown_new),
        alignment={"headers": "patient coordinates of the headers", "organ": "centroid and extent of the organ"}[
            comparison.alignment
        ],
        provenance=[list_provenance(origin) for origin in origins],
    )


def list_cards(comparison: Comparison) -> list[tuple[str, object]]:
    """Return the key figures."""
    recist = comparison.recist
    return [
        ("computed RECIST 1.1 category", recist.category),
        (
            f"sum of {recist.targets} target diameters, mm: {format_change(recist.change_percent)}",
            format_both(recist.baseline_sum_mm, recist.followup_sum_mm),
        ),
        (
            f"tumor, ml: {format_change(comparison.tumor_volume_change_percent)}",
            format_both(comparison.baseline.tumor_ml, comparison.followup.tumor_ml),
        ),
        ("new lesions", recist.new_lesions),
    ]


def format_both(before: float | None, after: float | None) -> str:
    """Return the figures of both time points with an arrow between them.

    >>> format_both(12.04, None)
    '12.0 → -'
    """
    return " → ".join("-" if value is None else f"{value:.1f}" for value in (before, after))


def format_change(percent: float | None) -> str:
    """Return a change in percent with its sign.

    >>> format_change(3.0), format_change(-0.04), format_change(None)
    ('+3.0 %', '0.0 %', 'no change can be computed')
    """
    return "no change can be computed" if percent is None else "0.0 %" if abs(percent) < 0.05 else f"{percent:+.1f} %"


def tabulate_figures(comparison: Comparison) -> Table:
    """Return the figures of both time points, without rows that are empty at both."""
    rows: list[list[object]] = []
    for key, name in FIGURES.items():
        before, after = getattr(comparison.baseline, key), getattr(comparison.followup, key)
        rows.append([name, before, after, None if key == "lesion_count" else percent_change(before, after)])
    recist = comparison.recist
    rows.append(["sum of target diameters, mm", recist.baseline_sum_mm, recist.followup_sum_mm, recist.change_percent])
    return Table(
        header=["figure", "baseline", "follow-up", "change, %"],
        rows=[row for row in rows if row[1:3] != [None, None]],
    )


def tabulate_changes(changes: Sequence[LesionChange]) -> Table:
    """Return the change of each lesion, without empty columns."""
    rows = [change.as_row() for change in changes]
    kept = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    return Table(header=[COLUMNS[key] for key in kept], rows=[[row[key] for key in kept] for row in rows])


def draw_target(
    target: LesionChange, changes: Sequence[LesionChange], points: tuple[TimePoint, TimePoint]
) -> list[CaptionedPicture]:
    """Draw a target at baseline and its successors at follow-up."""
    at_baseline, at_followup = f"Target {target.baseline_id}, baseline", f"Target {target.baseline_id}, follow-up"
    later = [draw(at_followup, points[1], lesion_id) for lesion_id in find_successors(target, changes)]
    vanished = CaptionedPicture(caption=f"{at_followup}: the lesion has vanished.", jpeg=None)
    return [draw(at_baseline, points[0], target.baseline_id), *(later or [vanished])]


def find_successors(change: LesionChange, changes: Sequence[LesionChange]) -> list[int]:
    """Return the lesions at follow-up that continue one at baseline: its match and splits, or the merged lesion."""
    if change.fate == "merged":
        return [] if change.with_id is None else [change.with_id]
    parts = [one.followup_id for one in changes if one.fate == "split" and one.with_id == change.baseline_id]
    return [lesion_id for lesion_id in (change.followup_id, *parts) if lesion_id is not None]


def draw(title: str, point: TimePoint, lesion_id: int | None) -> CaptionedPicture:
    """Draw a lesion, with its size in the caption."""
    lesion = round_record(next(one for one in point.lesions if one.id == lesion_id))
    return CaptionedPicture(
        caption=f"{title}: lesion {lesion.id}, {describe_size(lesion)}, key slice {lesion.key_z}",
        jpeg=to_jpeg(draw_lesion(point.volume, lesion)),
    )
