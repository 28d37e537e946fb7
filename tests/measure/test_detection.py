"""Lesions matched by hand: each rule, and each oddity that the mode `official` keeps."""

import itertools

import numpy as np
import pytest

from slicemill.ct.geometry import Grid
from slicemill.measure.evaluation.detection import (
    SharedVoxels,
    SizeCounts,
    count_by_size,
    count_shared_voxels,
    match_lesions,
    number_components,
)

GRID = Grid(shape=(6, 5, 4), affine=np.diag([-1.0, -1.0, 1.0, 1.0]))


def row(*runs, length=60):
    """A row of voxels: each run (first, last) a lesion of its own, uint32[1, 1, x]."""
    line = np.zeros((1, 1, length), np.uint32)
    for number, (first, last) in enumerate(runs, start=1):
        line[..., first : last + 1] = number
    return line


def found(prediction, reference, threshold, mode):
    result = match_lesions(count_shared_voxels(prediction, reference), threshold, mode)
    return result.true_positive, result.predictions - result.true_positive, result.references - result.true_positive


@pytest.mark.parametrize("mode", ["corrected", "official"])
def test_a_lesion_is_detected_above_the_threshold_and_not_at_it(mode):
    truth, half, more = row((0, 9)), row((0, 4)), row((0, 5))
    assert found(half, truth, 0.5, mode) == (0, 1, 1), "an overlap of exactly 0.5 is no detection"
    assert found(more, truth, 0.5, mode) == (1, 0, 0)
    assert found(half, truth, 0.0, mode) == (1, 0, 0)
    assert found(row((20, 25)), truth, 0.0, mode) == (0, 1, 1)


def test_a_diagonal_touch_is_one_lesion_in_corrected_and_two_in_official():
    mask = np.zeros(GRID.stored_shape, bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert number_components(mask, GRID, "corrected").max() == 1
    assert number_components(mask, GRID, "official").max() == 2


def test_official_numbers_follow_the_files_own_order():
    mask = np.zeros(GRID.stored_shape, bool)
    mask[0, 0, 5] = mask[3, 4, 0] = True
    numbers = number_components(mask, GRID, "official")
    assert (numbers[3, 4, 0], numbers[0, 0, 5]) == (1, 2), "the file's first axis, x, is the slowest"


def test_official_defect_an_unrelated_false_positive_turns_a_miss_into_a_hit():
    truth = row((20, 24))
    large = row((20, 59))
    assert count_shared_voxels(large, truth).iou(((1,), (1,))) == 0.125
    with_another = row((0, 2), (20, 59))
    assert found(large, truth, 0.5, "official") == (0, 1, 1)
    assert found(with_another, truth, 0.5, "official") == (1, 1, 0)
    assert found(with_another, truth, 0.5, "corrected") == (0, 2, 1)


def test_official_defect_a_prediction_that_covers_two_references_scores_one_of_two():
    truth, both = row((0, 9), (11, 20)), row((0, 20))
    assert found(both, truth, 0.5, "official") == (1, 0, 1)
    assert found(both, truth, 0.0, "corrected") == (1, 0, 1), "one prediction is one detection"


def test_official_defect_hits_may_be_minus_one():
    assert found(row((0, 59)), row((0, 1), (50, 51)), 0.5, "official")[0] == -1
    assert found(row((0, 59)), row((0, 1), (50, 51)), 0.5, "corrected")[0] == 0


def test_two_predictions_on_one_reference_are_one_hit_and_one_false():
    truth, halves = row((0, 9)), row((0, 4), (6, 9))
    assert found(halves, truth, 0.5, "official") == (1, 1, 0), "together they overlap by 0.9"
    assert found(halves, truth, 0.5, "corrected") == (0, 2, 1), "each alone overlaps by 0.5 at most"
    assert found(halves, truth, 0.0, "corrected") == (1, 1, 0)


@pytest.mark.parametrize("mode", ["corrected", "official"])
def test_a_reference_without_lesions_does_not_stop_the_scores(mode):
    assert found(row((0, 4), (8, 9)), row(), 0.0, mode) == (0, 2, 0)
    assert found(row(), row(), 0.5, mode) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["corrected", "official"])
def test_more_than_255_lesions_are_all_counted(mode):
    many = row(*((2 * n, 2 * n) for n in range(300)), length=600)
    assert found(many, many, 0.5, mode) == (300, 0, 0)


def test_corrected_matching_has_the_most_pairs_and_of_those_the_largest_overlap():
    rng = np.random.default_rng(5)
    for _ in range(40):
        shared = {(p, r): int(rng.integers(1, 9)) for p in (1, 2, 3) for r in (1, 2, 3) if rng.random() < 0.5}
        overlaps = SharedVoxels(predictions=(30, 31, 32), references=(30, 33, 35), shared=shared)
        best = max(
            (
                (len(chosen), sum(overlaps.iou(((p,), (r,))) for p, r in chosen))
                for order in itertools.permutations((1, 2, 3))
                if (chosen := [(p, r) for p, r in zip((1, 2, 3), order, strict=True) if (p, r) in shared])
            ),
            default=(0, 0.0),
        )
        result = match_lesions(overlaps, 0.0, "corrected")
        total = sum(overlaps.iou(group) for group in result.groups)
        assert (result.true_positive, total) == (best[0], pytest.approx(best[1]))


def test_sizes_count_hits_by_the_reference_and_false_ones_by_themselves():
    matching = match_lesions(count_shared_voxels(row((0, 9), (30, 33)), row((0, 9), (40, 41))), 0.5, "corrected")
    assert count_by_size([matching], [((25.0, 12.0), (25.0, 4.0))]) == {
        "small": SizeCounts(found=0, references=1, false=0, f1=0.0),
        "medium": SizeCounts(found=0, references=0, false=1, f1=0.0),
        "large": SizeCounts(found=1, references=1, false=0, f1=1.0),
    }
