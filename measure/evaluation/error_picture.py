"""A picture of a case's errors: slices with true positives, false positives and false negatives."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.common.terminal import format_cell
from slicemill.ct.overlap import count_overlap
from slicemill.ct.pictures import Panel, draw_errors, make_montage, pick_evenly, render_gray

Mask = npt.NDArray[np.bool_]
SLICES = 6


def draw_error_picture(image: npt.NDArray[np.int16], truth: Mask, predicted: Mask, title: str) -> Image.Image:
    """Draw slices of int16[z, y, x], HU, next to copies with the errors, including the slice with most errors."""
    errors_per_slice = (truth ^ predicted).reshape(len(truth), -1).sum(axis=1)
    filled = np.flatnonzero((truth | predicted).reshape(len(truth), -1).any(axis=1)).tolist()
    chosen = {*pick_evenly(filled or range(len(truth)), SLICES - 1), int(errors_per_slice.argmax())}
    tiles = [
        Panel(
            picture=np.concatenate(
                [render_gray(image[z]), draw_errors(render_gray(image[z]), truth[z], predicted[z])], axis=1
            ),
            caption=f"z={z}  Dice {format_cell(count_overlap(truth[z], predicted[z]).dice)}",
        )
        for z in sorted(chosen)
    ]
    legend = "green: true positive, red: false positive, orange: false negative"
    return make_montage(tiles, min(3, len(tiles)), f"{title}   {legend}")
