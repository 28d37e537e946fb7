"""The validation cases, segmented by the best weights: a table, and pictures of the worst and the best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from slicemill.common.files import write_csv
from slicemill.common.progress import progress
from slicemill.common.terminal import format_cell
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import mean_without_nan
from slicemill.ct.page_options import VIEWER_MB
from slicemill.ct.page_slices import PageSlices, SlicedMask, list_parts, make_page_slices
from slicemill.ct.pictures import Color, Panel, draw_labels, label_colors, make_montage, render_gray, save_png
from slicemill.ct.window import Window
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Case
from slicemill.train.run.metrics import none_if_nan
from slicemill.train.run.setup import BEST_CASES, CASES, WORST_CASES, Setup
from slicemill.train.run.validate import Overlaps, count_overlaps, predict_case, read_reference

LabelVolume = npt.NDArray[np.uint8]
"""uint8[z, y, x], label values."""
Colors = list[tuple[list[int], Color]]

SHOWN = 3
"""Cases in each of the two pictures."""
IGNORED_COLOR: Color = (140, 140, 140)


@dataclass(frozen=True, kw_only=True)
class RegionScore:
    """The scores of one region in one case."""

    dice: float | None
    """None if neither mask has the region."""
    reference_ml: float
    """Volume in the reference, ml."""
    predicted_ml: float
    """Volume in the prediction, ml."""
    error_ml: float
    """Predicted - reference volume, ml."""


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """The scores of one case."""

    case_id: str
    patient_id: str
    slices: int
    """Number of slices."""
    dice: float | None
    """Mean Dice of the regions; None if no region has one."""
    regions: Mapping[str, RegionScore]
    """Scores by region."""

    def as_row(self) -> dict[str, str | int | float | None]:
        """Return the scores as a row of ``cases.csv``."""
        row: dict[str, str | int | float | None] = {
            "case_id": self.case_id,
            "patient_id": self.patient_id,
            "slices": self.slices,
            "dice": self.dice,
        }
        for name, score in self.regions.items():
            row |= {
                f"dice_{name}": score.dice,
                f"reference_{name}_ml": score.reference_ml,
                f"predicted_{name}_ml": score.predicted_ml,
                f"error_{name}_ml": score.error_ml,
            }
        return row


@dataclass(frozen=True, kw_only=True)
class CasePicture:
    """A candidate for one of the two pictures."""

    case_id: str
    dice: float
    """Mean Dice of the regions."""
    tiles: list[Panel]
    slices: PageSlices | None
    """For the page's viewer, of the worst cases so far; None of others."""


@dataclass(frozen=True, kw_only=True)
class WrittenCases:
    """The validation cases after the report's pictures were written."""

    overlaps: dict[str, Overlaps]
    """By case id."""
    worst: tuple[tuple[str, PageSlices], ...]
    """Ids and slices of the worst cases, the worst first."""


def write_cases(run: Path, setup: Setup, network: nn.Module) -> WrittenCases:
    """Segment the validation cases and write ``cases.csv``, the worst first, ``worst.png`` and ``best.png``.

    Cases without a label in reference and prediction have no Dice: they are listed last and are in no picture. No case
    is in both pictures, unless it is the only one.
    """
    network.eval()
    by_case: dict[str, Overlaps] = {}
    scores: list[CaseScores] = []
    candidates: list[CasePicture] = []
    with progress("report", len(setup.split.validation), "cases") as advance:
        for case_id in setup.split.validation:
            case = setup.store[case_id]
            reference, predicted = read_reference(case), predict_case(case, network, setup)
            overlaps = by_case[case_id] = count_overlaps(reference, predicted, setup.labels, setup.ignored)
            score = score_case(case.info, overlaps)
            scores.append(score)
            if score.dice is not None:
                answer = setup.labels.table()[predicted]
                worse = sum(one.dice <= score.dice for one in candidates)
                slices = pack_slices(case, reference, answer, setup) if worse < SHOWN else None
                tiles = draw_case(case, reference, answer, setup, format_dice(overlaps))
                candidates.append(CasePicture(case_id=case_id, dice=score.dice, tiles=tiles, slices=slices))
                # Keep only the pictures that may be shown: the first and the last few by Dice.
                candidates.sort(key=lambda candidate: candidate.dice)
                del candidates[SHOWN:-SHOWN]
            advance(1, "")
    write_csv(run / CASES, [score.as_row() for score in sort_worst_first(scores)])
    count = min(SHOWN, max(1, len(candidates) // 2))
    for name, cases in ((WORST_CASES, candidates[:count]), (BEST_CASES, candidates[-count:][::-1])):
        tiles = [tile for one in cases for tile in one.tiles]
        if tiles:
            save_png(run / name, make_montage(tiles, 3))
    worst = tuple((one.case_id, one.slices) for one in candidates[:count] if one.slices is not None)
    return WrittenCases(overlaps=by_case, worst=worst)


def pack_slices(case: Case, reference: LabelVolume, predicted: LabelVolume, setup: Setup) -> PageSlices | None:
    """Return the slices with tumor, or the first label, in reference or prediction; None if not even one fits."""
    regions = setup.labels.regions()
    name = setup.labels.tumor or next(iter(regions))
    either = np.isin(reference, regions[name]) | np.isin(predicted, regions[name])
    return make_page_slices(
        case.image[:],
        [SlicedMask(name="prediction", label=predicted), SlicedMask(name="reference", label=reference)],
        setup.labels,
        case.spacing_mm,
        list_parts(either, name, case.affine),
        VIEWER_MB / SHOWN,
    )


def sort_worst_first(scores: Sequence[CaseScores]) -> list[CaseScores]:
    """Return cases by rising Dice, those without Dice last."""
    return sorted(scores, key=lambda score: math.inf if score.dice is None else score.dice)


def score_case(info: CaseInfo, overlaps: Overlaps) -> CaseScores:
    """Return Dice and volumes of a case from the overlaps of its regions."""
    regions = {}
    for name, overlap in overlaps.items():
        reference, predicted = overlap.reference * info.voxel_ml, overlap.predicted * info.voxel_ml
        regions[name] = RegionScore(
            dice=none_if_nan(overlap.dice),
            reference_ml=round(reference, 4),
            predicted_ml=round(predicted, 4),
            error_ml=round(predicted - reference, 4),
        )
    return CaseScores(
        case_id=info.case_id,
        patient_id=info.patient_id,
        slices=info.shape[0],
        dice=none_if_nan(mean_without_nan([overlap.dice for overlap in overlaps.values()])),
        regions=regions,
    )


def format_dice(overlaps: Overlaps) -> str:
    """Return the Dice of each region, as a caption.

    >>> from slicemill.ct.overlap import Overlap
    >>> format_dice({"liver": Overlap(2, 1, 1), "tumor": Overlap()})
    'liver 0.667, tumor -'
    """
    return ", ".join(f"{name} {format_cell(overlap.dice)}" for name, overlap in overlaps.items())


def draw_case(case: Case, reference: LabelVolume, predicted: LabelVolume, setup: Setup, caption: str) -> list[Panel]:
    """Return image, reference and prediction of the key slices of a case; `caption` is that of the prediction."""
    window = Window(setup.config.window_low, setup.config.window_high)
    colors: Colors = label_colors(setup.labels)
    if setup.ignored is not None:
        colors.append(([setup.ignored], IGNORED_COLOR))
    tiles = []
    for z, reason in choose_key_slices(reference, predicted, setup.labels, setup.ignored).items():
        image = render_gray(case.image[z], window)
        tiles += [
            Panel(picture=image, caption=f"z={z}, {reason}: {case.info.case_id}"),
            Panel(picture=draw_labels(image, reference[z], colors), caption="reference"),
            Panel(picture=draw_labels(image, predicted[z], colors), caption=f"prediction: {caption}"),
        ]
    return tiles


def choose_key_slices(
    reference: LabelVolume, predicted: LabelVolume, labels: Labels, ignored: int | None = None
) -> Mapping[int, str]:
    """Return the slice with most tumor and that with most error, each with the reason for its choice.

    Without tumor it is the slice with most label, in the reference, else in the prediction. Both may be one slice.

    >>> reference, predicted = np.zeros((2, 3, 1, 4), dtype=np.uint8)
    >>> reference[1, 0, :3] = predicted[1, 0, :3] = predicted[2, 0, :2] = 1
    >>> choose_key_slices(reference, predicted, Labels(values={"liver": 1}))
    {1: 'most label', 2: 'most error'}
    """
    known = reference if ignored is None else np.where(reference == ignored, 0, reference)
    tumor = labels.tumor_value()
    chosen: dict[int, str] = {}
    for mask, reason in ((known == tumor, "most tumor"), (known != 0, "most label"), (predicted != 0, "most label")):
        if not chosen and mask.any():
            chosen[_fullest_slice(mask)] = reason
    wrong = known != predicted
    if ignored is not None:
        wrong &= reference != ignored
    if wrong.any():
        z = _fullest_slice(wrong)
        chosen[z] = f"{chosen[z]} and error" if z in chosen else "most error"
    return chosen


def _fullest_slice(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax([np.count_nonzero(section) for section in mask]))
