"""Each lesion of a segmentation with its own mask."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from slicemill.ct.labels import Labels
from slicemill.ct.lesions import (
    Floats,
    Lesion,
    Mask,
    bounding_box,
    check_parts,
    label_components,
    measure_lesion,
    measure_parts,
)


def isolate_lesions(label: npt.NDArray[np.uint8], labels: Labels, affine_lps: Floats) -> Iterator[tuple[Lesion, Mask]]:
    """Yield each lesion and its mask bool[z, y, x] in the lesion's box, the largest first; none without a tumor label.

    Parameters
    ----------
    label
        uint8[z, y, x], values of the labels.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.

    Raises
    ------
    LabelError
        There are more lesions than `slicemill.ct.lesions.MAX_PARTS`.
    """
    if labels.tumor is None:
        return
    tumor = np.asarray(label == labels.tumor_value())
    box = bounding_box(tumor)
    if box is None:
        return
    corner = (box[0].start, box[1].start, box[2].start)
    numbers = label_components(tumor[box])
    check_parts(int(numbers.max()))
    parts = measure_parts(numbers, corner)
    order = sorted(range(len(parts)), key=lambda index: (-parts[index].voxels, parts[index].box))
    for lesion_id, index in enumerate(order, start=1):
        lesion = measure_lesion(lesion_id, [parts[index]], affine_lps)
        sides = zip(lesion.bbox_zyx[:3], lesion.bbox_zyx[3:], corner, strict=True)
        yield lesion, numbers[tuple(slice(low - start, high - start) for low, high, start in sides)] == index + 1
