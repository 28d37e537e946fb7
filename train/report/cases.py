"""The validation cases after training, by the weights that were kept: a table, and the worst and the best as pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from slicemill.common.files import write_csv
from slicemill.common.progress import progress
from slicemill.common.terminal import format_cell
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import mean_of
from slicemill.ct.pictures import Color, Tile, draw_labels, gray, label_colors, montage, save_png
from slicemill.ct.window import Window
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Case
from slicemill.train.run.setup import BEST_CASES, CASES, WORST_CASES, Setup
from slicemill.train.run.validate import Overlaps, overlaps, predict_case, reference_of

Row = dict[str, Any]
Label = npt.NDArray[np.uint8]
Colors = list[tuple[list[int], Color]]

SHOWN = 3
"""Cases in each of the two pictures."""
IGNORED_COLOR: Color = (140, 140, 140)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A case as it may stand in a picture."""

    score: float
    """Mean Dice of its regions."""
    tiles: list[Tile]


def write_cases(run: Path, setup: Setup, network: nn.Module) -> dict[str, Overlaps]:
    """Segment the validation cases and write ``cases.csv``, the worst first, ``worst.png`` and ``best.png``.

    Cases in which neither reference nor prediction has a label have no Dice and stand last; there is nothing to see. No
    case stands in both pictures, unless it is the only one.

    Returns
    -------
    dict
        Overlaps by case id.
    """
    network.eval()
    found: dict[str, Overlaps] = {}
    rows: list[Row] = []
    shown: list[Shown] = []
    with progress("report", len(setup.split.validation), "cases") as advance:
        for case_id in setup.split.validation:
            case = setup.store[case_id]
            reference, predicted = reference_of(case), predict_case(case, network, setup)
            found[case_id] = overlaps(reference, predicted, setup.labels, setup.ignored)
            rows.append(case_row(case.info, found[case_id]))
            if rows[-1]["dice"] is not None:
                volumes = (reference, setup.labels.table()[predicted])
                shown.append(
                    Shown(score=rows[-1]["dice"], tiles=case_tiles(case, volumes, setup, scores(found[case_id])))
                )
                shown.sort(key=lambda one: one.score)
                del shown[SHOWN:-SHOWN]
            advance(1, "")
    write_csv(run / CASES, worst_first(rows))
    count = min(SHOWN, max(1, len(shown) // 2))
    for name, cases in ((WORST_CASES, shown[:count]), (BEST_CASES, shown[-count:][::-1])):
        tiles = [tile for one in cases for tile in one.tiles]
        if tiles:
            save_png(run / name, montage(tiles, 3))
    return found


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of cases by rising Dice, those without one last."""
    return sorted(rows, key=lambda row: math.inf if row["dice"] is None else row["dice"])


def case_row(info: CaseInfo, found: Overlaps) -> Row:
    """Return a case as a row of the table; no Dice where neither mask has the region. An error is prediction - reference."""
    row: Row = {
        "case_id": info.case_id,
        "patient_id": info.patient_id,
        "slices": info.shape[0],
        "dice": _null(mean_of([counts.dice for counts in found.values()])),
    }
    for name, counts in found.items():
        reference = (counts.true_positive + counts.false_negative) * info.voxel_ml
        predicted = (counts.true_positive + counts.false_positive) * info.voxel_ml
        row |= {
            f"dice_{name}": _null(counts.dice),
            f"reference_{name}_ml": round(reference, 4),
            f"predicted_{name}_ml": round(predicted, 4),
            f"error_{name}_ml": round(predicted - reference, 4),
        }
    return row


def scores(found: Overlaps) -> str:
    """Return the Dice of each region, as a caption.

    >>> from slicemill.ct.overlap import Overlap
    >>> scores({"liver": Overlap(2, 1, 1), "tumor": Overlap()})
    'liver 0.667, tumor -'
    """
    return ", ".join(f"{name} {format_cell(counts.dice)}" for name, counts in found.items())


def case_tiles(case: Case, volumes: tuple[Label, Label], setup: Setup, caption: str) -> list[Tile]:
    """Return image, reference and prediction of the telling slices of a case.

    Parameters
    ----------
    volumes
        Reference and prediction, both uint8[z, y, x], label values.
    caption
        Of the prediction.
    """
    window = Window(setup.config.window_low, setup.config.window_high)
    colors: Colors = label_colors(setup.labels)
    if setup.ignored is not None:
        colors.append(([setup.ignored], IGNORED_COLOR))
    tiles = []
    for z, why in telling_slices(*volumes, setup.labels, setup.ignored).items():
        picture = gray(case.image[z], window)
        captions = (f"z={z}, {why}: {case.info.case_id}", "reference", f"prediction: {caption}")
        pictures = (picture, *(draw_labels(picture, volume[z], colors) for volume in volumes))
        tiles += [Tile(picture=one, caption=words) for one, words in zip(pictures, captions, strict=True)]
    return tiles


def telling_slices(reference: Label, answer: Label, labels: Labels, ignored: int | None = None) -> Mapping[int, str]:
    """Return the slice with most tumor (else most label, in the reference or else in the answer) and that with most error.

    Both are uint8[z, y, x], label values. The result says of each slice why it was chosen; one slice may be both.

    >>> reference, answer = np.zeros((2, 3, 1, 4), dtype=np.uint8)
    >>> reference[1, 0, :3] = answer[1, 0, :3] = answer[2, 0, :2] = 1
    >>> telling_slices(reference, answer, Labels(values={"liver": 1}))
    {1: 'most label', 2: 'most error'}
    """
    known = reference if ignored is None else np.where(reference == ignored, 0, reference)
    tumor = labels.tumor_value()
    chosen: dict[int, str] = {}
    for mask, why in ((known == tumor, "most tumor"), (known != 0, "most label"), (answer != 0, "most label")):
        if not chosen and mask.any():
            chosen[_fullest(mask)] = why
    wrong = known != answer
    if ignored is not None:
        wrong &= reference != ignored
    if wrong.any():
        z = _fullest(wrong)
        chosen[z] = f"{chosen[z]} and error" if z in chosen else "most error"
    return chosen


def _fullest(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax([np.count_nonzero(section) for section in mask]))


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
