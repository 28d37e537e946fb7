"""Comparison of the labels of two runtimes, with one rule for ties, for the parity checks of `train` and `infer`.

A pixel is a tie if the other label's logit is nearly the best one. Either label is right there. After a short training,
all of the air can be ties.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VALUES = 256
"""Values that a label may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDifferences:
    """Pixels in which two runtimes label differently."""

    pixels: int
    """All pixels."""
    differing: int
    """Pixels with another label, ties excluded."""
    ties: int = 0
    """Ties with another label."""

    @property
    def share(self) -> float:
        """Return the share of pixels with another label, ties excluded."""
        return self.differing / self.pixels


def compare_labels(
    label: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.uint8],
    logits: npt.NDArray[Any] | None,
    values: npt.NDArray[Any],
    tie: float,
) -> LabelDifferences:
    """Compare the labels of a runtime with those of a reference.

    Parameters
    ----------
    label, expected
        uint8[b, y, x], label values of the runtime and of the reference.
    logits
        float[b, k, y, x] of the reference; None where they are unknown, and nothing is a tie.
    values
        int[k], label value of each class.
    tie
        A logit ties with the best one within this part of its slice's largest best logit.
    """
    other = label != expected
    count = int(np.count_nonzero(other))
    ties = 0 if logits is None or not count else int(np.count_nonzero(other & find_ties(label, logits, values, tie)))
    return LabelDifferences(pixels=label.size, differing=count - ties, ties=ties)


def find_ties(
    label: npt.NDArray[np.uint8], logits: npt.NDArray[Any], values: npt.NDArray[Any], tie: float
) -> npt.NDArray[np.bool_]:
    """Return a mask bool[b, y, x] of pixels whose label ties with the best class; a value of no class never ties."""
    classes = np.full(VALUES, -1, dtype=np.int64)
    classes[values] = np.arange(len(values))
    chosen = classes[label]
    wide = logits.astype(np.float32)
    best = wide.max(axis=1)
    gap = best - np.take_along_axis(wide, np.maximum(chosen, 0)[:, None], axis=1)[:, 0]
    tied: npt.NDArray[np.bool_] = (chosen >= 0) & (gap <= tie * np.abs(best).max(axis=(1, 2), keepdims=True))
    return tied
