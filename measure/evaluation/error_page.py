"""The page of a case's errors: prediction and reference on the slices in which either has the region."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.files import write_bytes
from slicemill.common.html import render
from slicemill.common.terminal import format_cell
from slicemill.ct.page_slices import SlicedMask, list_parts, make_page_slices
from slicemill.measure.evaluation.region import measure_region
from slicemill.measure.evaluation.score import CaseScores, Rules
from slicemill.measure.inputs.masks import PairMasks

MEASURES = ("dice", "precision", "recall", "hd95_mm", "error_ml")
DECIMALS = 3


@dataclass(frozen=True, kw_only=True)
class ErrorCase:
    """A case that was scored, with its scan."""

    scores: CaseScores
    masks: PairMasks
    rules: Rules
    image: npt.NDArray[np.int16]
    """int16[z, y, x], HU, on the grid of the masks."""
    region: str
    """Name of the region whose errors are shown."""


def write_error_page(path: Path, case: ErrorCase, viewer_mb: float) -> None:
    """Write the page, with at most `viewer_mb` MiB of slices; nothing if not even one fits."""
    masks, labels = case.masks, case.rules.labels
    values = labels.regions()[case.region]
    either = np.isin(masks.truth, values) | np.isin(masks.predicted, values)
    slices = make_page_slices(
        case.image,
        [SlicedMask(name="prediction", label=masks.predicted), SlicedMask(name="reference", label=masks.truth)],
        labels,
        masks.grid.spacing_mm,
        list_parts(either, case.region, masks.grid.affine_lps),
        viewer_mb,
    )
    if slices is None:
        return
    measured = {name: measure_region(case.scores, name, case.rules.mode) for name in labels.regions()}
    page = render(
        "measure/evaluation/error_page.html",
        title=f"{case.scores.case_id}: errors",
        case_id=case.scores.case_id,
        region=case.region,
        header=["region", *MEASURES],
        rows=[
            [name, *(format_cell(round(getattr(one, measure), DECIMALS)) for measure in MEASURES)]
            for name, one in measured.items()
        ],
        slices=slices,
    )
    write_bytes(path, page)
