"""Labels of two runtimes: what differs, and what is a tie."""

import numpy as np
import pytest

from slicemill.store.label_differences import LabelDifferences, compare_labels

VALUES = np.array([0, 1, 7])
LOGITS = np.array([[[[5.0, 5.0, 5.0, 5.0]], [[4.96, 4.96, 4.0, 4.0]], [[1.0, 1.0, 4.96, 1.0]]]], dtype=np.float32)
"""float[1, 3, 1, 4]: background is best everywhere; organ, organ, tumor and nothing are near."""


def labels(*row):
    return np.array([[row]], dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_label_whose_logit_is_nearly_the_best_is_a_tie(dtype):
    found = compare_labels(labels(1, 0, 7, 1), labels(0, 0, 0, 0), LOGITS.astype(dtype), VALUES, 1e-2)
    assert found == LabelDifferences(pixels=4, differing=1, ties=2)
    assert found.share == 0.25


def test_the_limit_is_a_part_of_the_largest_best_logit_of_the_slice():
    assert compare_labels(labels(1, 0, 7, 1), labels(0, 0, 0, 0), LOGITS, VALUES, 1e-3).ties == 0
    one = np.concatenate([LOGITS, 100 * LOGITS])
    one[1, 0, 0, 3], one[1, 1, 0, 3] = 500, 499
    found = compare_labels(np.full((2, 1, 4), 1, np.uint8), np.zeros((2, 1, 4), np.uint8), one, VALUES, 1e-2)
    assert found == LabelDifferences(pixels=8, differing=3, ties=5)


def test_a_value_of_no_class_and_logits_that_are_no_numbers_never_tie():
    equal = np.zeros((1, 3, 1, 4), np.float32)
    assert compare_labels(labels(7, 1, 2, 77), labels(0, 0, 0, 0), equal, VALUES, 1e-2).differing == 2
    equal[:, 1, 0, 1] = np.nan
    assert compare_labels(labels(0, 1, 0, 0), labels(0, 0, 0, 0), equal, VALUES, 1e-2).differing == 1


def test_without_logits_nothing_is_a_tie():
    assert compare_labels(labels(1, 0, 7, 1), labels(0, 0, 0, 0), None, VALUES, 1.0).differing == 3
