"""Dice, precision, recall and detection, by hand and against scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from slicemill.ct.overlap import Overlap, area_under_roc, count_overlap, mean_without_nan, score_detection


def test_dice_precision_and_recall_by_hand():
    counts = count_overlap(np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool))
    assert counts == Overlap(2, 1, 1)
    assert (counts.dice, counts.precision, counts.recall) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_both_empty_is_no_number_and_is_left_out_of_the_mean():
    empty = count_overlap(np.zeros(3, bool), np.zeros(3, bool)).dice
    assert np.isnan(empty)
    assert mean_without_nan([empty, 0.5]) == 0.5
    assert np.isnan(mean_without_nan([]))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_the_area_under_the_curve_is_scipys_mann_whitney(pairs):
    truth, score = np.array([t for t, _ in pairs]), np.array([s for _, s in pairs], float)
    if truth.all() or not truth.any():
        assert np.isnan(area_under_roc(truth, score))
    else:
        expected = mannwhitneyu(score[truth], score[~truth]).statistic / truth.sum() / (~truth).sum()
        assert area_under_roc(truth, score) == pytest.approx(expected)


def test_yes_or_no_by_hand():
    found = score_detection([True, True, False, False], [True, False, True, False], [0.9, 0.4, 0.6, 0.1])
    assert (found.accuracy, found.sensitivity, found.specificity, found.auc) == (0.5, 0.5, 0.5, 0.75)
