"""Components, holes and distances: scipy as the oracle, on salt and pepper as on blobs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from slicemill.common.errors import ModelError
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.infer.lesion_features import ScanVolumes
from slicemill.infer.postprocess import (
    dilate,
    drop_far_tumors,
    drop_lesions,
    extent,
    fill_holes,
    keep_largest_organ,
    postprocess,
)
from slicemill.infer.run.options import WORKING_BYTES
from slicemill.store.model_card import PostprocessRules, parse_postprocess_rules

ALL = np.ones((3, 3, 3))
shapes = st.tuples(st.integers(1, 14), st.integers(1, 20), st.integers(1, 24))


def blobs(shape, seed, smooth=1.5, values=(0, 1, 2)):
    """Random labels of some size, with specks."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), smooth)
    field = field / max(float(field.std()), 1e-9)
    label = np.digitize(field, np.linspace(0, 1.4, len(values) - 1)).astype(np.uint8)
    label[rng.random(shape) < 0.01] = len(values) - 1
    return np.array(values, np.uint8)[label]


def as_scipy(label, organ, tumor, least):
    """The naive way: label, sums, and a loop over components."""
    label = label.copy()
    found, count = ndimage.label(np.isin(label, [organ, tumor]), structure=ALL)
    if count:
        sizes = ndimage.sum_labels(np.ones(label.shape), found, range(1, count + 1))
        label[(found > 0) & (found != 1 + int(np.argmax(sizes)))] = 0
    found, count = ndimage.label(label == tumor, structure=ALL)
    sizes = ndimage.sum_labels(np.ones(label.shape), found, range(1, count + 1))
    small = 1 + np.flatnonzero(np.asarray(sizes) < least)
    label[np.isin(found, small)] = organ
    return label


@given(shapes, st.integers(0, 10_000), st.sampled_from([0.4, 1.5, 3.0]), st.sampled_from([0.0, 3.0, 20.0]))
def test_the_largest_organ_and_small_tumors_are_those_of_scipy(shape, seed, smooth, least):
    label = blobs(shape, seed, smooth)
    expected = as_scipy(label, 1, 2, least)
    grid = Grid(shape=shape[::-1], affine=np.diag([-10.0, -10.0, 10.0, 1.0]))
    postprocess(label, LITS_LABELS, PostprocessRules(largest_organ=True, min_lesion_ml=least), grid)
    assert np.array_equal(label, expected)


@given(shapes, st.integers(0, 10_000))
def test_holes_are_those_of_scipy_and_other_labels_stay(shape, seed):
    labels = make_labels({"liver": 1, "tumor": 2, "spleen": 7}, organ="liver")
    label = blobs(shape, seed, 1.0, (0, 1, 2, 7))
    organ = np.isin(label, [1, 2])
    expected = np.where(ndimage.binary_fill_holes(organ) & (label == 0), 1, label)
    fill_holes(label, labels)
    assert np.array_equal(label, expected)


@given(
    shapes, st.integers(0, 10_000), st.floats(0, 12), st.tuples(st.floats(0.7, 6), st.floats(0.7, 3), st.floats(0.7, 3))
)
def test_tumor_far_from_the_organ_goes_by_true_distance(shape, seed, reach, spacing):
    label = blobs(shape, seed, 0.7)
    organ = label == 1
    distance = ndimage.distance_transform_edt(~organ, sampling=spacing) if organ.any() else np.full(shape, np.inf)
    at_the_edge = np.abs(distance - reach) < 1e-6
    assert np.array_equal(dilate(organ, reach, spacing)[~at_the_edge], (distance <= reach)[~at_the_edge])
    before = label.copy()
    drop_far_tumors(label, LITS_LABELS, reach, spacing)
    expected = np.where((before == 2) & (distance > reach), 0, before)
    assert np.array_equal(label[~at_the_edge], expected[~at_the_edge])


def grid_of(label):
    """The grid of a label of voxels of 1 mm."""
    return Grid(shape=label.shape[::-1], affine=np.eye(4))


@given(shapes, st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_unsure_lesions_go_by_their_mean_probability(shape, seed, least):
    label = blobs(shape, seed, 1.0)
    probability = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    found, count = ndimage.label(label == 2, structure=ALL)
    means = np.asarray(ndimage.mean(probability.astype(float), found, range(1, count + 1))) if count else np.array([])
    expected = np.where(np.isin(found, 1 + np.flatnonzero(means < least * 255)), 1, label)
    rules = PostprocessRules(min_lesion_probability=least)
    drop_lesions(label, LITS_LABELS, rules, grid_of(label), ScanVolumes(label=label, probability=probability))
    assert np.array_equal(label, expected)


def test_only_the_largest_organ_stays_with_its_tumors():
    label = np.zeros((3, 8, 8), np.uint8)
    label[:, 1:5, 1:5] = 1
    label[1, 2, 2] = 2
    label[0, 7, 7] = 1
    label[2, 7, 0] = 2
    expected = label.copy()
    expected[0, 7, 7] = expected[2, 7, 0] = 0
    keep_largest_organ(label, LITS_LABELS)
    assert np.array_equal(label, expected)


def test_other_labels_are_left_alone():
    labels = make_labels({"liver": 1, "tumor": 2, "spleen": 3}, organ="liver")
    label = np.array([[[1, 1, 1, 0, 3, 0, 1]]], np.uint8)
    keep_largest_organ(label, labels)
    assert label.tolist() == [[[1, 1, 1, 0, 3, 0, 0]]]


def test_small_tumors_become_organ_or_background():
    label = np.array([[[1, 2, 1, 1, 2, 2, 2]]], np.uint8)
    rules = PostprocessRules(min_lesion_ml=0.002)
    drop_lesions(label, LITS_LABELS, rules, grid_of(label), ScanVolumes(label=label))
    assert label.tolist() == [[[1, 1, 1, 1, 2, 2, 2]]]
    alone = np.array([[[0, 1, 0, 0, 1, 1, 1]]], np.uint8)
    drop_lesions(alone, make_labels({"tumor": 1}), rules, grid_of(alone), ScanVolumes(label=alone))
    assert alone.tolist() == [[[0, 0, 0, 0, 1, 1, 1]]]


def test_nothing_there_is_nothing_done():
    empty = np.zeros((4, 5, 6), np.uint8)
    rules = PostprocessRules(largest_organ=True, fill_holes=True, tumor_reach_mm=5.0, min_lesion_ml=1.0)
    postprocess(empty, LITS_LABELS, rules, Grid(shape=(6, 5, 4), affine=np.eye(4)))
    assert not empty.any()
    assert extent(empty) is None
    empty[1, 2, 3] = empty[2, 4, 1] = 9
    assert extent(empty) == (slice(1, 3), slice(2, 5), slice(1, 4))


def test_rules_that_are_not_known_or_cannot_be_are_refused():
    assert parse_postprocess_rules({"largest_organ": True, "min_lesion_ml": 0.5}) == PostprocessRules(
        largest_organ=True, min_lesion_ml=0.5
    )
    assert parse_postprocess_rules(PostprocessRules(tumor_reach_mm=3.0).as_json()) == PostprocessRules(
        tumor_reach_mm=3.0
    )
    with pytest.raises(ModelError, match=r"rules that this version does not know \(smooth\)"):
        parse_postprocess_rules({"smooth": True})
    for document, rule in (
        ({"min_lesion_ml": -1}, r"Expected `float` >= 0.0 - at `\$.min_lesion_ml`"),
        ({"min_lesion_ml": "much"}, r"Expected `float`, got `str` - at `\$.min_lesion_ml`"),
        ({"tumor_reach_mm": math.nan}, r"Expected `float` >= 0.0 - at `\$.tumor_reach_mm`"),
        ({"tumor_reach_mm": math.inf}, r"Expected `float` <= .* - at `\$.tumor_reach_mm`"),
        ({"fill_holes": 1}, r"Expected `bool`, got `int` - at `\$.fill_holes`"),
        (["fill_holes"], "Expected `object`, got `array`"),
    ):
        with pytest.raises(ModelError, match=f"its post-processing rules are invalid: {rule}"):
            parse_postprocess_rules(document)


@pytest.mark.parametrize(
    "rules", [{"largest_organ": True}, {"fill_holes": True}, {"min_lesion_ml": 0.1, "min_lesion_probability": 0.6}]
)
def test_noise_takes_no_more_memory_than_a_scan_is_given(rules, monkeypatch):
    import tracemalloc

    from slicemill.ct import runs as module

    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (512, 64, 64)).astype(np.uint8)
    probability = rng.integers(0, 256, label.shape).astype(np.uint8)
    monkeypatch.setattr(module, "BLOCK_RUNS", 2**12)  # as small a part of this scan as the blocks are of a whole one
    monkeypatch.setattr(module, "PLANE_BYTES", 2**16)
    monkeypatch.setattr(module, "BLOCK_VOXELS", 2**14)
    tracemalloc.start()
    postprocess(label, LITS_LABELS, PostprocessRules(**rules), Grid(shape=(64, 64, 512), affine=np.eye(4)), probability)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < WORKING_BYTES * label.size
