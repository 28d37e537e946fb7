"""Runs along x and their components: scipy as the oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from slicemill.ct import runs as module
from slicemill.ct.runs import connect_runs, fill_runs, find_runs, voxel_coordinates

shapes = st.tuples(st.integers(1, 14), st.integers(1, 20), st.integers(1, 24))
masks = st.builds(
    lambda shape, density, seed: np.random.default_rng(seed).random(shape) < density,
    shapes,
    st.floats(0, 1),
    st.integers(0, 10_000),
)


def numbered(mask, connectivity):
    """Components as an array, numbered from 1."""
    runs = find_runs(mask)
    numbers, count = connect_runs(runs, connectivity)
    out = np.zeros(mask.shape, int)
    for part, where in voxel_coordinates(runs):
        out[where] = 1 + np.repeat(numbers[part], runs[part].voxels)
    return out, count


@given(masks, st.sampled_from([6, 26]))
def test_components_and_their_order_are_those_of_scipy(mask, connectivity):
    expected, number = ndimage.label(mask, structure=np.ones((3, 3, 3)) if connectivity == 26 else None)
    found, count = numbered(mask, connectivity)
    assert count == number
    assert np.array_equal(found, expected)


@given(masks, st.sampled_from([6, 26]), st.sampled_from([1, 7, 60]))
def test_block_sizes_do_not_change_the_components(mask, connectivity, least):
    whole = numbered(mask, connectivity)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PLANE_BYTES", "BLOCK_RUNS", "BLOCK_VOXELS"):
            patch.setattr(module, name, least)
        found, count = numbered(mask, connectivity)
    assert count == whole[1]
    assert np.array_equal(found, whole[0])


@given(masks)
def test_runs_hold_every_voxel_once_and_are_as_few_as_can_be(mask):
    runs = find_runs(mask)
    back = np.zeros(mask.shape, np.uint8)
    for _, where in voxel_coordinates(runs):
        np.add.at(back, where, 1)
    assert np.array_equal(back, mask.astype(np.uint8))
    assert len(runs) == np.count_nonzero(np.diff(np.pad(mask, ((0, 0), (0, 0), (1, 0))).astype(np.int8), axis=2) == 1)
    again = np.zeros(mask.shape, bool)
    fill_runs(again, runs, 1)
    assert np.array_equal(again, mask)


def test_runs_of_several_values_are_joined_and_a_crop_of_any_layout_is_taken():
    label = np.array([[[0, 1, 2, 3, 1]]], np.uint8)
    runs = find_runs(label, [1, 2])
    assert (runs.start.tolist(), runs.stop.tolist()) == ([1, 4], [3, 5])
    wide = np.zeros((4, 9, 8), np.uint8)
    wide[1:3, 2:6, 3:5] = 7
    for view in (wide[1:, 1:, 2:], np.asfortranarray(wide)[1:, 1:, 2:], wide[::-1]):
        back = np.zeros_like(view)
        fill_runs(back, find_runs(view, [7]), 7)
        assert np.array_equal(back, view)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0)])
def test_an_empty_mask_has_no_runs(shape):
    assert len(find_runs(np.zeros(shape, bool))) == 0
    assert connect_runs(find_runs(np.zeros((2, 3, 3), bool)))[1] == 0


def test_components_of_noise_take_bytes_in_proportion_to_the_voxels():
    import tracemalloc

    mask = np.random.default_rng(0).random((512, 64, 64)) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_RUNS", 2**12)  # as small a part of this mask as the block is of a scan
        patch.setattr(module, "PLANE_BYTES", 2**16)
        tracemalloc.start()
        connect_runs(find_runs(mask))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 7 * mask.size
