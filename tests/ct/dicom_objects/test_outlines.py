"""Outlines along pixel edges, and the pixels inside them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slicemill.ct.formats.dicom_objects.outlines import fill_outlines, trace_outlines

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.booleans())


@given(mask=MASKS, holes=st.sampled_from(["keyhole", "xor"]))
def test_outlines_fill_back_to_the_same_pixels(mask: np.ndarray, holes: str) -> None:
    assert np.array_equal(fill_outlines(trace_outlines(mask, holes), mask.shape), mask)


@given(mask=MASKS)
def test_each_part_is_one_polygon_with_keyholes(mask: np.ndarray) -> None:
    from scipy.ndimage import label

    polygons = trace_outlines(mask, "keyhole")
    assert len(polygons) == label(mask)[1]
    filled = [fill_outlines([polygon], mask.shape) for polygon in polygons]
    assert np.array_equal(np.sum(filled, axis=0, initial=0, dtype=int) if filled else 0 * mask, mask.astype(int))


@given(mask=MASKS)
def test_pixels_are_those_of_another_program(mask: np.ndarray) -> None:
    from matplotlib.path import Path

    j, i = np.indices(mask.shape)
    centers = np.stack([i.ravel(), j.ravel()], axis=1)
    inside = np.zeros(mask.size, dtype=bool)
    for polygon in trace_outlines(mask, "xor"):
        inside ^= Path(np.concatenate([polygon, polygon[:1]])).contains_points(centers)
    assert np.array_equal(inside.reshape(mask.shape), mask)


def test_a_ring_by_hand() -> None:
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    outer, hole = trace_outlines(ring, "xor")
    assert outer.tolist() == [[-0.5, -0.5], [2.5, -0.5], [2.5, 2.5], [-0.5, 2.5]]
    assert sorted(hole.tolist()) == [[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]
    (one,) = trace_outlines(ring, "keyhole")
    x, y = one.T
    assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == 8  # the line to the hole encloses nothing


@pytest.mark.parametrize("shift", [-0.0005, 0.0005])
def test_rounding_to_three_decimals_changes_no_pixel(shift: float) -> None:
    mask = np.random.default_rng(0).random((40, 40)) < 0.6
    assert np.array_equal(fill_outlines([one + shift for one in trace_outlines(mask)], mask.shape), mask)


def test_a_slanted_polygon_has_the_pixels_whose_centers_are_inside() -> None:
    triangle = np.array([[-0.25, -0.25], [4.5, -0.25], [-0.25, 4.5]])
    assert fill_outlines([triangle], (5, 5)).sum(axis=1).tolist() == [5, 4, 3, 2, 1]
