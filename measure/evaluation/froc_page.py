"""The page of `slicemill froc`: the curve, its tables, and pictures of nodules found, missed and false marks.

Each picture has three views through the mark with a ring around it, in the colors of all pictures of errors: green
for a nodule that was found, red for a false mark, orange for a nodule that was missed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.files import write_bytes
from slicemill.common.html import render
from slicemill.common.progress import progress
from slicemill.common.terminal import count_noun
from slicemill.ct.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GAP_PX,
    TRUE_POSITIVE,
    Color,
    encode_png,
    outline_pixels,
    render_gray,
)
from slicemill.ct.point_views import choose_field, sample_views
from slicemill.ct.points import UNKNOWN_DIAMETER_MM
from slicemill.ct.window import Window
from slicemill.measure.evaluation.froc import RATES, FreeResponse, NoFindings
from slicemill.measure.evaluation.luna16 import Luna16Result
from slicemill.measure.evaluation.marks import KINDS, Mark, MarkKind, Marks, choose_marks
from slicemill.store.reader import Store

COLORS: Mapping[MarkKind, Color] = {"found": TRUE_POSITIVE, "missed": FALSE_NEGATIVE, "false": FALSE_POSITIVE}
TITLES: Mapping[MarkKind, tuple[str, str]] = {
    "found": ("Nodules found (green)", "of all sizes, the largest first"),
    "missed": ("Nodules missed (orange)", "the largest"),
    "false": ("False marks (red)", "the most probable"),
}
LUNG = Window(-1350, 150)
"""The usual window of lung: level -600, width 1500 HU."""
VIEW_PX = 256
RING_MM = 3.0
"""The ring is that much wider than the nodule."""


@dataclass(frozen=True, kw_only=True)
class ShownMark:
    """A picture of the page."""

    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class ShownKind:
    """The pictures of a kind of marks."""

    title: str
    text: str
    """How many there are, and which are shown."""
    marks: tuple[ShownMark, ...]


def write_froc_page(path: Path, result: Luna16Result, curve: bytes, kinds: Sequence[ShownKind], note: str) -> None:
    """Write the page.

    Parameters
    ----------
    curve
        PNG of the curve.
    kinds
        Pictures of the marks; none without scans.
    note
        The threshold of the pictures, or why there are none.
    """
    response = result.response
    assert isinstance(response, FreeResponse)  # noqa: S101 (the command refuses scans without findings)
    low, high = response.cpm_interval
    page = render(
        "measure/evaluation/froc_page.html",
        title="Point detections: free response",
        figures=[("CPM", round(response.cpm, 4)), ("95 % interval", f"{low:.3f} to {high:.3f}"),
                 ("findings", response.findings), ("scans", response.scans)],
        curve=curve,
        header=["findings", "n", *(f"{rate:g}" for rate in RATES), "CPM", "low", "high"],
        rows=[_tabulate("all", response), *(_tabulate(name, one) for name, one in result.parts.items())],
        resampled=result.resampled,
        kinds=kinds,
        note=note,
    )  # fmt: skip
    write_bytes(path, page)


def _tabulate(name: str, one: FreeResponse | NoFindings) -> list[object]:
    if isinstance(one, NoFindings):
        return [name, 0, *[None] * (len(RATES) + 3)]
    values = (*one.sensitivity_between.tolist(), one.cpm, *one.cpm_interval)
    return [name, one.findings, *(round(value, 4) for value in values)]


def draw_marks(store: Store, marks: Marks, most: int) -> tuple[ShownKind, ...]:
    """Draw at most `most` marks of each kind; each scan is read once.

    Raises
    ------
    InputError
        A scan cannot be read.
    """
    chosen = {kind: choose_marks(marks.by_kind[kind], most) for kind in KINDS}
    drawn: dict[Mark, bytes] = {}
    scans = sorted({mark.scan for ones in chosen.values() for mark in ones})
    with progress("pictures", len(scans), "scans") as advance:
        for name in scans:
            case = store[name]
            image = case.image[:]
            for mark in (mark for ones in chosen.values() for mark in ones if mark.scan == name):
                drawn[mark] = draw_mark(image, case.affine, mark)
            advance(1, name)
    return tuple(
        ShownKind(
            title=TITLES[kind][0],
            text=_describe_choice(len(marks.by_kind[kind]), len(ones), TITLES[kind][1]),
            marks=tuple(ShownMark(caption=describe_mark(mark), png=drawn[mark]) for mark in ones),
        )
        for kind, ones in chosen.items()
    )


def _describe_choice(count: int, shown: int, which: str) -> str:
    """Return how many marks are shown.

    >>> _describe_choice(3, 3, "the largest"), _describe_choice(20, 12, "the largest")
    ('3, all shown.', '20, of which 12 are shown: the largest.')
    """
    return f"{count}, all shown." if shown == count else f"{count}, of which {shown} are shown: {which}."


def describe_mark(mark: Mark) -> str:
    """Return the caption of a mark."""
    parts = [mark.scan]
    if mark.kind != "false":
        parts.append("diameter unknown" if mark.diameter_mm is None else f"{mark.diameter_mm:.1f} mm")
    parts.append("no candidate" if mark.probability is None else f"probability {mark.probability:.3f}")
    return f"{', '.join(parts)}, at {', '.join(f'{value:.1f}' for value in mark.xyz_mm)} mm"


def draw_mark(image: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], mark: Mark) -> bytes:
    """Return a PNG of three views through a mark with its ring.

    Parameters
    ----------
    image
        int16[z, y, x], HU.
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    """
    diameter_mm = UNKNOWN_DIAMETER_MM if mark.diameter_mm is None else mark.diameter_mm
    field_mm = choose_field(diameter_mm)
    ring = _make_ring((diameter_mm + RING_MM) / field_mm)
    gap = np.zeros((VIEW_PX, GAP_PX, 3), dtype=np.uint8)
    tiles = []
    for view in sample_views(image, affine, mark.xyz_mm, field_mm, VIEW_PX):
        picture = render_gray(view, LUNG)
        picture[ring] = COLORS[mark.kind]
        tiles += [picture, gap]
    return encode_png(np.concatenate(tiles[:-1], axis=1))


def _make_ring(share: float) -> npt.NDArray[np.bool_]:
    """Return bool[VIEW_PX, VIEW_PX]: a ring, two pixels wide, whose diameter is a share of the side."""
    offsets = np.arange(VIEW_PX) - (VIEW_PX - 1) / 2
    distance = np.hypot(*np.meshgrid(offsets, offsets))
    outer = distance <= share * VIEW_PX / 2
    line = outline_pixels(outer)
    return line | outline_pixels(outer & ~line)


def describe_threshold(marks: Marks, scans: int) -> str:
    """Return what the pictures are drawn at."""
    above = "Every candidate counts" if not np.isfinite(marks.threshold) else (
        f"Candidates with a probability above {marks.threshold:.4f} count"
    )  # fmt: skip
    return (
        f"{above}: {marks.false_per_scan:.2f} false marks a scan in {count_noun(scans, 'scan')}. "
        f"The ring is {RING_MM:g} mm wider than the nodule; a false mark or unknown nodule counts as "
        f"{UNKNOWN_DIAMETER_MM:g} mm."
    )
