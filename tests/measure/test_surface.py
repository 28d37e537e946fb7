import math

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from slicemill.measure.evaluation.surface import mark_surface, surface_distances

SPACING = (2.5, 0.8, 0.7)


def ball(shape, center, radii, spacing=SPACING):
    grid = np.meshgrid(*(np.arange(count) * step for count, step in zip(shape, spacing, strict=True)), indexing="ij")
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center, radii, strict=True)) <= 1


def by_hand(prediction, reference, spacing):
    """All pairs of surface voxels, the surface by scipy's erosion with 18 neighbors."""
    points = []
    for mask in (prediction, reference):
        edge = mask ^ ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 2))
        points.append(np.argwhere(edge) * np.array(spacing))
    apart = cdist(*points)
    return apart.min(axis=1), apart.min(axis=0)


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 7)] * 3), st.floats(0.2, 0.95))
@settings(max_examples=60, deadline=None)
def test_a_surface_is_the_mask_without_its_erosion_by_18_neighbors(seed, shape, share):
    mask = np.random.default_rng(seed).random(shape) < share
    assert np.array_equal(
        mark_surface(mask), mask ^ ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 2))
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.9), st.floats(0.02, 0.9))
@settings(max_examples=30, deadline=None)
def test_distances_are_those_of_all_pairs(seed, share, other):
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random((5, 6, 7)) < share, rng.random((5, 6, 7)) < other
    if not (prediction.any() and reference.any()):
        return
    found = surface_distances(prediction, reference, SPACING)
    forth, back = by_hand(prediction, reference, SPACING)
    np.testing.assert_allclose(found.to_reference, forth, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.to_prediction, back, rtol=0, atol=1e-9)
    both = np.concatenate([forth, back])
    assert found.assd == pytest.approx((forth.sum() + back.sum()) / (len(forth) + len(back)), abs=1e-9)
    assert found.rmsd == pytest.approx(math.sqrt((both**2).sum() / len(both)), abs=1e-9)
    assert found.mssd == pytest.approx(max(forth.max(), back.max()), abs=1e-9)
    assert found.hd95 == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), abs=1e-9)
    within = (np.count_nonzero(forth <= 2) + np.count_nonzero(back <= 2)) / len(both)
    assert found.surface_dice(2.0) == pytest.approx(within)


def test_the_values_are_those_of_whole_distance_transforms_to_a_millionth_of_a_millimetre():
    shape = (40, 90, 100)
    prediction, reference = ball(shape, (50, 36, 35), (20, 14, 17)), ball(shape, (53, 37, 33), (18, 16, 17))
    structure = ndimage.generate_binary_structure(3, 2)
    edges = [mask ^ ndimage.binary_erosion(mask, structure) for mask in (prediction, reference)]
    forth = ndimage.distance_transform_edt(~edges[1], sampling=SPACING)[edges[0]]
    back = ndimage.distance_transform_edt(~edges[0], sampling=SPACING)[edges[1]]
    found = surface_distances(prediction, reference, SPACING)
    assert np.abs(found.to_reference - forth).max() < 1e-6
    assert np.abs(found.to_prediction - back).max() < 1e-6


def test_the_maximum_is_simpleitks_hausdorff_distance():
    shape = (30, 60, 60)
    one, other = ball(shape, (35, 24, 20), (14, 12, 12)), ball(shape, (40, 22, 24), (14, 12, 12))
    images = [SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (one, other)]
    for image in images:
        image.SetSpacing(SPACING[::-1])
    measure = SimpleITK.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    assert surface_distances(one, other, SPACING).mssd == pytest.approx(measure.GetHausdorffDistance(), abs=1e-4)


def test_a_plane_moved_by_two_slices_is_two_slices_away_everywhere():
    one, other = np.zeros((2, 8, 9, 9), dtype=bool)
    one[2], other[4] = True, True
    found = surface_distances(one, other, (3.0, 1.0, 1.0))
    assert (found.assd, found.rmsd, found.mssd, found.hd95) == (6.0, 6.0, 6.0, 6.0)
    assert (found.surface_dice(5.9), found.surface_dice(6.0)) == (0.0, 1.0), "a tolerance reaches as far as it says"


def test_where_a_mask_is_empty_there_is_no_distance():
    empty, full = np.zeros((2, 3, 3), bool), np.ones((2, 3, 3), bool)
    for pair in ((empty, full), (full, empty), (empty, empty)):
        found = surface_distances(*pair, SPACING)
        assert all(math.isnan(value) for value in (found.assd, found.rmsd, found.mssd, found.hd95))
        assert math.isnan(found.surface_dice(1.0))


def test_a_mask_at_the_edge_of_the_picture_has_its_surface_there():
    assert mark_surface(np.ones((3, 3, 3), bool)).sum() == 26


def test_the_benchmark_of_distances_agrees_with_transforms_and_fits_its_table():
    from slicemill.bench.records.readme import format_record
    from slicemill.bench.stages.measure import run

    record = run(slices=40, side=64, lesions=3, rounds=1, by_medpy=4)
    assert record["objects"] == len(record["seconds_medpy_an_object"]) == 4
    assert record["largest_difference_mm"] < 1e-6
    assert "64x64x40 voxels, a liver and 3 lesions" in format_record(record)


def test_what_lies_at_the_tolerance_counts_however_its_grid_is_tilted():
    from slicemill.ct.geometry import Grid

    one, other = np.zeros((2, 9, 9, 9), bool)
    one[2, 4, 4] = other[4, 4, 4] = True
    for degrees in range(1, 20):
        matrix = np.eye(4, dtype=np.float32)
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        matrix[:3, :3] = [[-c, 0, s], [0, -1, 0], [s, 0, c]]
        found = surface_distances(one, other, Grid(shape=(9, 9, 9), affine=matrix.astype(float)).spacing_mm)
        assert (found.surface_dice(2.0), found.surface_dice(1.999)) == (1.0, 0.0)
