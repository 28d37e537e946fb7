"""The volumes next to a mask: each label as 0 and 1, and probability maps."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.labels import Labels
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.outputs import volume_names
from slicemill.infer.slices.assembly import Segmentation


@dataclass(frozen=True, slots=True)
class ExtraVolume:
    """A volume that is written next to a mask."""

    name: str
    """End of the file's name."""
    volume: npt.NDArray[np.uint8]
    """uint8[z, y, x]."""
    slope: float
    """Value of one step of the stored integers, for the NIfTI header."""


def make_extra_volumes(labels: Labels, segmentation: Segmentation, options: InferOptions) -> Iterator[ExtraVolume]:
    """Yield the volumes to write next to the mask of a segmentation."""
    names = volume_names(labels, options)
    if options.separate:
        for name, value in zip(names, labels.values.values(), strict=False):
            yield ExtraVolume(name, (segmentation.label == value).view(np.uint8), 1.0)
    if segmentation.probability is not None:
        for name, volume in zip(names[-len(segmentation.probability) :], segmentation.probability, strict=True):
            yield ExtraVolume(name, volume, 1 / 255)
