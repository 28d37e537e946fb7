"""Agreement of labels that should be equal: Dice of two masks, and of all labels of two segmentations."""

from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.ct.labels import Labels


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return 2 |A and B| / (|A| + |B|), or 1 if both are empty (Dice 1945).

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / both if both else 1.0


def dice_losses(label: npt.NDArray[Any], expected: npt.NDArray[Any], labels: Labels) -> dict[str, float]:
    """Return 1 - Dice by the name of each label value."""
    return {name: round(1 - dice(label == value, expected == value), 6) for name, value in labels.values.items()}


def differing_share(label: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return the share of pixels whose labels differ."""
    return float(np.count_nonzero(label != expected)) / expected.size
