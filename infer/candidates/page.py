"""Pages of candidates: one for each scan, next to its mask, and one with all scans of a run.

The page of a scan lists every candidate. Pictures are added, the most probable candidate first, until they have the
size that the page may have; the page says how many have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import markupsafe
import numpy as np
import numpy.typing as npt

from slicemill.common.files import write_bytes
from slicemill.common.html import render
from slicemill.ct.page_slices import LOW_HU, MEBIBYTE, STEP_HU
from slicemill.infer.candidates.records import (
    PAGE_ENDING,
    CandidateRow,
    ScanCandidates,
    ThresholdAtRate,
    count_marks,
)
from slicemill.infer.candidates.views import STRIP, STRIP_PX, VIEW_PX, CandidateViews, draw_views

HEADER = (
    "candidate", "probability", "malignancy", "diameter, mm", "volume, ml", "slice", "x, mm", "y, mm", "z, mm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ShownCandidate:
    """A candidate, as the page's script gets it."""

    row: CandidateRow
    views: CandidateViews | None
    """None if its pictures do not fit."""


@dataclass(frozen=True, kw_only=True)
class CandidatePage:
    """What `slicemill/web/report/candidates.js` gets."""

    scan: str
    """The scan's name in ``candidates.csv``."""
    thresholds: tuple[ThresholdAtRate, ...]
    """Thresholds that `tune` chose, the fewest false alarms first."""
    candidates: tuple[ShownCandidate, ...]
    """The most probable first."""
    view_px: int = VIEW_PX
    strip_px: int = STRIP_PX
    strip: int = STRIP
    low_hu: int = LOW_HU
    step_hu: int = STEP_HU


def write_candidate_page(
    path: Path,
    name: str,
    found: ScanCandidates,
    image: npt.NDArray[np.int16],
    affine: npt.NDArray[np.float64],
    most_mb: float,
) -> None:
    """Write the page of a scan.

    Parameters
    ----------
    name
        The scan's name in ``candidates.csv``.
    image
        int16[z, y, x], HU.
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    most_mb
        MiB of pictures as base64.
    """
    shown = _draw_most_probable(found, image, affine, most_mb)
    without = sum(one.views is None for one in shown)
    page = render(
        "infer/candidates/page.html",
        title=f"{name}: candidates",
        name=name,
        found=found,
        figures=_list_figures(found),
        candidates=CandidatePage(scan=name, thresholds=found.rates, candidates=shown),
        pictured=len(shown) - without,
        without=without,
        most_mb=most_mb,
        header=HEADER,
        rows=[_tabulate(one) for one in found.candidates],
    )
    write_bytes(path, page)


def _draw_most_probable(
    found: ScanCandidates, image: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], most_mb: float
) -> tuple[ShownCandidate, ...]:
    """Return all candidates, the first ones with pictures: those that fit."""
    left = int(most_mb * MEBIBYTE)
    is_full = False
    shown = []
    for row in found.candidates:
        views = None if is_full else draw_views(image, affine, row)
        if views is not None and len(views.data) > left:
            views, is_full = None, True
        left -= len(views.data) if views is not None else 0
        shown.append(ShownCandidate(row=row, views=views))
    return tuple(shown)


def _list_figures(found: ScanCandidates) -> list[tuple[str, object]]:
    """Return the key figures of a scan."""
    figures: list[tuple[str, object]] = [("candidates", len(found.candidates))]
    if found.candidates:
        figures.append(("highest probability", _round(found.candidates[0].probability)))
        figures.append(("largest diameter, mm", round(max(one.diameter_mm for one in found.candidates), 1)))
    for rate in found.rates:
        name = f"at or above {rate.threshold:.3f}, {count_marks(rate.rate)}"
        figures.append((name, sum(one.probability >= rate.threshold for one in found.candidates)))
    return figures


def _tabulate(one: CandidateRow) -> list[object]:
    """Return a row of the table; slices are counted from 1, as in all pages."""
    malignancy = None if one.malignancy is None else _round(one.malignancy)
    place = (round(value, 1) for value in (one.x_mm, one.y_mm, one.z_mm))
    return [
        one.number, _round(one.probability), malignancy, round(one.diameter_mm, 1), round(one.volume_ml, 3),
        one.slice + 1, *place,
    ]  # fmt: skip


def _round(probability: float) -> float:
    return round(probability, 4)


def write_run_page(path: Path, scans: Mapping[str, ScanCandidates], stems: Mapping[str, str]) -> None:
    """Write the page of a run, with a row for each scan and a link to its page, if it has one.

    Parameters
    ----------
    scans
        Name of each scan -> its candidates.
    stems
        Name of each scan -> relative path of its mask without suffix.
    """
    rates = sorted({(rate.rate, rate.threshold) for scan in scans.values() for rate in scan.rates})
    pages = {name: (path.parent / f"{stems[name]}{PAGE_ENDING}").exists() for name in scans}
    page = render(
        "infer/candidates/run_page.html",
        title="Candidates",
        header=["scan", "candidates", "highest probability", "highest malignancy", "largest, mm",
                *(f"at or above {threshold:.3f}, {count_marks(rate)}" for rate, threshold in rates),
                "warnings"],
        rows=[
            [_link(stems[name], name) if pages[name] else name, *_summarize(scan, [one for _, one in rates])]
            for name, scan in scans.items()
        ],
        without=sum(not exists for exists in pages.values()),
    )  # fmt: skip
    write_bytes(path, page)


def _summarize(scan: ScanCandidates, thresholds: list[float]) -> list[object]:
    found = scan.candidates
    malignancies = [one.malignancy for one in found if one.malignancy is not None]
    return [
        len(found),
        _round(found[0].probability) if found else None,
        _round(max(malignancies)) if malignancies else None,
        round(max(one.diameter_mm for one in found), 1) if found else None,
        *(sum(one.probability >= threshold for one in found) for threshold in thresholds),
        "; ".join(scan.warnings),
    ]


def _link(stem: str, name: str) -> markupsafe.Markup:
    """Return a link to the page of a scan."""
    return markupsafe.Markup('<a href="{}">{}</a>').format(quote(f"./{stem}{PAGE_ENDING}"), name)
