"""The mean HU of lesions, read a few slices at a time, is scipy's over the whole scan."""

import numpy as np
import pytest
from scipy import ndimage

from slicemill.ct.lesion_hu import measure_mean_hu
from slicemill.ct.lesions import LesionTracker


@pytest.mark.parametrize("depth", [1, 3, 16])
@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_the_mean_of_each_lesion_is_scipys(depth, upward, share, rng):
    tumor = rng.random((23, 17, 19)) < share
    tumor[:, -1, -1] = True  # a run that ends with the array
    image = rng.integers(-32768, 32767, tumor.shape, dtype=np.int16, endpoint=True)
    tracker = LesionTracker(keeps_runs=True)
    starts = range(0, len(tumor), depth)
    for z in starts if upward else reversed(starts):
        tracker.add(z, tumor[z : z + depth])
    lesions = tracker.lesions(np.eye(4))
    means = measure_mean_hu(*tracker.locate(), lambda start, stop: image[start:stop], len(image))
    labels, count = ndimage.label(tumor, np.ones((3, 3, 3)))
    assert len(lesions) == len(means) == count
    for lesion, mean in zip(lesions, means, strict=True):
        inside = np.zeros(tumor.shape, dtype=bool)
        inside[tuple(slice(low, high) for low, high in zip(lesion.bbox_zyx[:3], lesion.bbox_zyx[3:], strict=True))] = (
            True
        )
        numbers, sizes = np.unique(labels[inside & tumor], return_counts=True)
        candidates = [
            number
            for number, size in zip(numbers, sizes, strict=True)
            if size == lesion.voxels == np.count_nonzero(labels == number)
        ]
        assert any(np.isclose(image[labels == number].mean(dtype=np.float64), mean) for number in candidates)


def test_without_lesions_there_is_no_mean():
    tracker = LesionTracker(keeps_runs=True)
    tracker.add(0, np.zeros((2, 3, 3), dtype=bool))
    assert measure_mean_hu(*tracker.locate(), lambda start, stop: np.zeros((stop - start, 3, 3), np.int16), 2).size == 0
