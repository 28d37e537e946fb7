"""A run folder explains itself: scores, curves, environment, cases, and the page that shows them all."""

import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as its own documentation has it)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from store.labels import make_labels
from store.metrics import overlap
from tests.conftest import TINY
from train.setup import prepare
from train.step import build
from train.validate import overlaps, pooled_dice, predict_case, validate

THREE = make_labels({"liver": 1, "tumor": 2, "spleen": 7})


@pytest.fixture(scope="module")
def several(stored, tmp_path_factory):
    """A setup with three validation cases, and a network that was not trained."""
    config = replace(TINY, validation=0.5, test=0.1)
    setup = prepare(stored, tmp_path_factory.mktemp("runs") / "several", config, None)
    assert len(setup.split.validation) == 3
    return setup, build(setup.labels, config).eval()


class TestOverlaps:
    @settings(max_examples=60, deadline=None)
    @given(
        arrays.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 7, 9, 255])),
        arrays.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3)),
    )
    def test_all_regions_at_once_count_as_each_region_by_its_masks(self, reference, predicted):
        found = overlaps(reference, predicted, THREE)
        answer = THREE.table()[predicted]
        for name, values in THREE.regions().items():
            assert found[name] == overlap(np.isin(reference, values), np.isin(answer, values))

    def test_dice_is_that_of_simpleitk(self, several):
        setup, network = several
        for case_id, found in validate(setup, network).items():
            case = setup.store[case_id]
            answer = setup.labels.table()[predict_case(case, network, setup)]
            for name, values in setup.labels.regions().items():
                measured = sitk.LabelOverlapMeasuresImageFilter()
                masks = [np.isin(volume, values).astype(np.uint8) for volume in (case.label[:], answer)]
                if masks[0].any() or masks[1].any():
                    measured.Execute(*map(sitk.GetImageFromArray, masks))
                    assert found[name].dice == pytest.approx(measured.GetDiceCoefficient(1))
                else:
                    assert math.isnan(found[name].dice)

    def test_ignored_voxels_count_neither_as_hit_nor_as_miss(self, rng):
        reference = rng.choice(np.array([0, 1, 2, 7], np.uint8), (3, 6, 6))
        predicted = rng.integers(0, 4, (3, 6, 6)).astype(np.uint8)
        somewhere = rng.random(reference.shape) < 0.3
        found = overlaps(np.where(somewhere, np.uint8(255), reference), predicted, THREE, ignored=255)
        elsewhere = [volume[~somewhere][None, None] for volume in (reference, predicted)]
        assert found == overlaps(*elsewhere, THREE)
        anything = np.where(somewhere, rng.integers(0, 4, reference.shape), predicted).astype(np.uint8)
        assert found == overlaps(np.where(somewhere, np.uint8(255), reference), anything, THREE, ignored=255)

    def test_the_global_dice_counts_the_voxels_of_all_cases_together(self, several):
        setup, network = several
        by_case = validate(setup, network)
        assert list(by_case) == list(setup.split.validation)
        masks = [(case.label[:], predict_case(case, network, setup)) for case in map(setup.store.__getitem__, by_case)]
        for name, values in setup.labels.regions().items():
            truth = np.concatenate([np.isin(reference, values).ravel() for reference, _ in masks])
            answer = np.concatenate([np.isin(setup.labels.table()[one], values).ravel() for _, one in masks])
            expected = 2 * np.sum(truth & answer) / (truth.sum() + answer.sum())
            assert pooled_dice(by_case, setup.labels)[name] == pytest.approx(expected)
