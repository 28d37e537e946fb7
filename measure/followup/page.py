"""The page of two time points: what changed, what became of each lesion, the category and how it was computed, pictures."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicemill.common import html as page
from slicemill.common.files import write_bytes, write_json
from slicemill.measure.followup.recist import PD_MM, PD_PERCENT, PR_PERCENT, TimePoint, percent
from slicemill.measure.lesions.case_page import SHOWN, embedded, provenance
from slicemill.measure.lesions.pictures import lesion_picture

Row = dict[str, Any]
Points = tuple[TimePoint, TimePoint]
TIMES = ("baseline", "follow-up")
FIGURES = {
    "lesion_count": "lesions",
    "tumor_ml": "tumor, ml",
    "organ_ml": "organ with tumors, ml",
    "tumor_burden_percent": "tumor burden, % of the organ",
}
COLUMNS = {
    "fate": "became",
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
MEANINGS = {
    "CR": "complete response",
    "PR": "partial response",
    "SD": "stable disease",
    "PD": "progressive disease",
    "NE": "not evaluable",
}


def write_comparison(out: Path, found: Row, points: Points, sources: Sequence[Row]) -> None:
    """Write compare.html and compare.json of what `slicemill.measure.followup.recist.compared` found; `sources`:
    `slicemill.measure.lesions.jobs.source_of` of both."""
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "compare.html", comparison_page(found, points, sources))
    write_json(out / "compare.json", found | {"sources": dict(zip(("baseline", "followup"), sources, strict=True))})


def comparison_page(found: Row, points: Points, sources: Sequence[Row]) -> bytes:
    """Return the page, self-contained."""
    names = [one["source"]["mask"]["name"] for one in sources]
    recist = found["recist"]
    sum_words = f"sum of {recist['targets']} target diameters, mm: {signed(recist['change_percent'])}"
    cards = [
        ("RECIST 1.1 category, computed", recist["category"]),
        (sum_words, change_of(*sums(recist))),
        (
            f"tumor, ml: {signed(found['tumor_volume_change_percent'])}",
            change_of(found["baseline"]["tumor_ml"], found["followup"]["tumor_ml"]),
        ),
        ("new lesions", recist["new_lesions"]),
    ]
    return page.document(
        "Two time points",
        "\n".join(
            [
                "<h1>Two time points</h1>",
                page.paragraph(f"Baseline: {names[0]}. Follow-up: {names[1]}."),
                f'<p class="note">{html.escape(found["note"])}. A person must check the segmentations and the category.</p>',
                page.cards(cards),
                page.section("How the category was computed", *map(page.paragraph, reasons(recist))),
                page.section("Both time points", figures_table(found)),
                page.section("What became of each lesion", fates_table(found["lesions"])),
                page.section("Targets and new lesions in pictures", *pictures(found, points)),
                page.section("What was computed from what", *origins(found, sources)),
            ]
        ),
    )


def sums(recist: Row) -> tuple[float, float]:
    """Return the sums of target diameters, mm."""
    return recist["baseline_sum_mm"], recist["followup_sum_mm"]


def change_of(before: float | None, after: float | None) -> str:
    """Return two figures, the later one after an arrow.

    >>> change_of(12.04, None)
    '12.0 → -'
    """
    return " → ".join("-" if value is None else f"{value:.1f}" for value in (before, after))


def signed(change: float | None) -> str:
    """Return a change in percent with its sign.

    >>> signed(3.0), signed(-0.04), signed(None)
    ('+3.0 %', '0.0 %', 'no change can be told')
    """
    return "no change can be told" if change is None else "0.0 %" if abs(change) < 0.05 else f"{change:+.1f} %"


def reasons(recist: Row) -> list[str]:
    """Return what led to the category, in words."""
    before, after = sums(recist)
    category = recist["category"]
    rules = (
        f"The rules, by the sum of target diameters: CR, no lesion is left; PD, it grew by at least {PD_PERCENT:g} % and {PD_MM:g} mm, "
        f"or a lesion is new; PR, it shrank by at least {-PR_PERCENT:g} %; SD, all else; NE, no target at baseline. "
        "Targets are chosen at baseline: at most two of this organ, the longest. The baseline stands for the smallest sum so far."
    )
    limits = (
        "This is a computation and not a diagnosis. RECIST 1.1 also asks for lymph nodes, lesions that cannot be measured, "
        "other organs, earlier time points and the reader's judgement; none of them is in these masks."
    )
    change = signed(recist["change_percent"])
    words = f"{category} ({MEANINGS[category]}): {before:.1f} to {after:.1f} mm, {change}; new lesions: {recist['new_lesions']}."
    return [words, rules, limits]


def figures_table(found: Row) -> str:
    """Return the figures of both cases beside each other."""
    rows: list[list[object]] = []
    for key, name in FIGURES.items():
        before, after = (found[time][key] for time in ("baseline", "followup"))
        rows.append([name, before, after, None if key == "lesion_count" else percent(before, after)])
    rows.append(["sum of target diameters, mm", *sums(found["recist"]), found["recist"]["change_percent"]])
    return page.table(["figure", *TIMES, "change, %"], [row for row in rows if row[1:3] != [None, None]])


def fates_table(rows: Sequence[Row]) -> str:
    """Return a row a lesion, sortable, with what the words mean."""
    if not rows:
        return page.paragraph("Neither time point has a lesion.")
    words = (
        "matched: one lesion at both times; merged: into the lesion beside it; split: off that lesion; "
        "ml: volume; mm: longest axial diameter; %: change"
    )
    kept = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    table = page.table([COLUMNS[key] for key in kept], [[row[key] for key in kept] for row in rows], sortable=True)
    return f'{table}<p class="note">{html.escape(words)}</p>'


def pictures(found: Row, points: Points) -> list[str]:
    """Return each target at both times, and new lesions up to SHOWN in all, as pictures; outlines on gray where there is no scan."""
    rows = found["lesions"]
    targets = [row for row in rows if row["baseline_id"] in found["baseline"]["target_ids"]]
    every = [row for row in rows if row["fate"] == "new"]
    new = every[: max(0, SHOWN - len(targets))]
    parts = []
    for row in targets:
        parts.append(view(f"Target {row['baseline_id']}, baseline", points[0], row["baseline_id"]))
        later = partners(row, rows)
        parts += [view(f"Target {row['baseline_id']}, follow-up", points[1], number) for number in later]
        if not later:
            parts.append(page.paragraph(f"Target {row['baseline_id']}, follow-up: no lesion is left of it."))
    parts += [view("New at follow-up", points[1], row["followup_id"]) for row in new]
    if more := len(every) - len(new):
        parts.append(page.paragraph(f"{more} more new lesions stand in the table, without a picture."))
    if not parts:
        return [page.paragraph("There is no target at baseline, and no new lesion.")]
    legend = (
        "Outlines: organ blue, tumor red; lines: longest diameter yellow, the longest at right angles green. "
        "From the left: the whole key slice, its part around the lesion, the slices beside it, coronal, sagittal."
    )
    return [*parts, f'<p class="note">{legend}</p>']


def partners(row: Row, rows: Sequence[Row]) -> list[int]:
    """Return the lesions at follow-up that a lesion at baseline became: its partner, what split off, or what it merged into."""
    if row["fate"] == "merged":
        return [row["with"]]
    own = [row["followup_id"]] if row["followup_id"] is not None else []
    return own + [one["followup_id"] for one in rows if one["fate"] == "split" and one["with"] == row["baseline_id"]]


def view(title: str, point: TimePoint, number: int) -> str:
    """Return a lesion in pictures under its sizes."""
    lesion = next(one for one in point.lesions if one.id == number).as_json()
    size = f"{lesion['volume_ml']:.2f} ml, {lesion['max_axial_diameter_mm']:.1f} x {lesion['perpendicular_mm']:.1f} mm"
    words = f"{title}: lesion {number}, {size}, key slice {lesion['key_z']}"
    return f'<figure class="views"><figcaption>{html.escape(words)}</figcaption>{embedded(lesion_picture(point.volume, lesion), words)}</figure>'


def origins(found: Row, sources: Sequence[Row]) -> list[str]:
    """Return how the scans were laid onto each other, and what each was made of."""
    how = {"headers": "the headers' patient millimetres", "organ": "the organ's centroid and extent"}[
        found["alignment"]
    ]
    parts = [page.paragraph(f"Aligned by {how}; surfaces of one lesion come within {found['reach_mm']:g} mm.")]
    for name, source in zip(TIMES, sources, strict=True):
        parts += [f"<h3>{html.escape(name.capitalize())}</h3>", page.pairs(provenance(source))]
    return parts
