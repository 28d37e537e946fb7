"""What needs the whole scan: the largest organ component, and tumors too small to keep."""

import cc3d
import numpy as np
import numpy.typing as npt

from store.labels import Labels
from store.lesions import bounding_box, components

Label = npt.NDArray[np.uint8]


def keep_largest_organ(label: Label, labels: Labels) -> None:
    """Clear, in place, every voxel of the organ and its tumors outside the largest 26-connected component of both."""
    values = labels.organ_values()
    mask = np.isin(label, values)
    box = bounding_box(mask)
    if box is None:
        return
    found = components(mask[box])
    sizes = np.bincount(found[found > 0])
    if len(sizes) > 2:
        stray = (found > 0) & (found != sizes.argmax())
        label[box][stray] = 0


def drop_small_tumors(label: Label, labels: Labels, voxel_ml: float, min_ml: float) -> None:
    """Turn, in place, tumors smaller than `min_ml` into organ (background where there is no organ label)."""
    tumor = labels.tumor_value()
    if tumor is None or min_ml <= 0:
        return
    mask = label == tumor
    box = bounding_box(mask)
    if box is None:
        return
    found = components(mask[box])
    sizes = cc3d.statistics(found)["voxel_counts"]
    small = sizes * voxel_ml < min_ml
    small[0] = False
    label[box][small[found]] = labels.values[labels.organ] if labels.organ else 0


def postprocess(label: Label, labels: Labels, voxel_ml: float, *, largest_organ: bool, min_lesion_ml: float) -> None:
    """Apply what a model's metadata asks for to `label`: uint8[z, y, x], in place."""
    if largest_organ:
        keep_largest_organ(label, labels)
    drop_small_tumors(label, labels, voxel_ml, min_lesion_ml)
