"""The range in z: the labels after post-processing are those of the complete scan, with fewer slices labeled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import ProviderError
from slicemill.ct.labels import Labels
from slicemill.infer.postprocess import keep_largest_organ
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.z_range import RangeRule, RangeSearch, explain_no_range, make_range_rule
from tests.infer.fakes import SIDE, FakeModel, FakeRun

LITS = Labels({"liver": 1, "tumor": 2}, organ="liver", tumor="tumor")


def search(truth, stride):
    """Label what a search asks for; return the labels, kept as the rules say, and the slices that were labeled."""
    label = np.full_like(truth, 77)  # what lies in memory before a network writes to it
    found = RangeSearch(RangeRule(values=(1, 2), stride=stride), label)
    asked = []
    while slices := found.next_slices():
        assert not set(slices) & set(asked), "no slice is labeled twice"
        assert slices == sorted(slices)
        label[slices] = truth[slices]
        asked += slices
    assert sorted([*asked, *found.unlabeled]) == list(range(len(truth)))
    label[found.unlabeled] = 0
    return keep(label), asked


def keep(label):
    label = label.copy()
    keep_largest_organ(label, LITS)
    return label


def scan(depth, *boxes, side=12):
    """Labels of a scan: boxes (first slice, last slice, side of the square in each slice, label)."""
    label = np.zeros((depth, side, side), np.uint8)
    for index, (first, last, width, value) in enumerate(boxes):
        corner = 0 if index % 2 == 0 else side - width
        label[first : last + 1, corner : corner + width, corner : corner + width] = value
    return label


@pytest.mark.parametrize("depth", [75, 200, 600])
def test_an_organ_in_a_third_of_a_scan_takes_about_half_of_its_slices(depth):
    first, last = depth // 3, 2 * depth // 3
    truth = scan(depth, (first, last, 8, 1))
    truth[first + 2 : first + 4, 2, 2] = 2
    label, asked = search(truth, depth // 12)
    assert np.array_equal(label, keep(truth))
    assert len(asked) <= 0.55 * depth


@pytest.mark.parametrize(
    "truth",
    [
        scan(40),
        scan(1),
        scan(1, (0, 0, 5, 1)),
        scan(2, (1, 1, 5, 1)),
        scan(40, (0, 39, 8, 1)),
        scan(40, (0, 14, 6, 1)),
        scan(40, (25, 39, 6, 1)),
        scan(60, (0, 20, 6, 1), (39, 59, 6, 1)),
        scan(60, (0, 20, 6, 2), (35, 59, 6, 2)),
        scan(60, (2, 22, 7, 1), (30, 52, 6, 1)),
        scan(60, (2, 22, 6, 1), (30, 52, 7, 1)),
        scan(60, (11, 13, 9, 1)),
        scan(61, (11, 18, 9, 1), (40, 60, 3, 1)),
    ],
)
@pytest.mark.parametrize("stride", [1, 2, 5, 9])
def test_labels_are_those_of_the_complete_scan(truth, stride):
    label, _ = search(truth, stride)
    assert np.array_equal(label, keep(truth))


@given(st.integers(0, 2**32 - 1), st.integers(30, 600), st.integers(2, 12))
def test_labels_of_random_boxes_are_those_of_the_complete_scan(seed, depth, stride):
    """An organ of at least two strides, and other things that are smaller than it, anywhere, and noise."""
    rng = np.random.default_rng(seed)
    height = min(depth, int(rng.integers(2 * stride, max(2 * stride + 1, depth // 2))))
    first = int(rng.integers(0, depth - height + 1))
    truth = scan(depth, (first, first + height - 1, 7, int(rng.integers(1, 3))))
    for _ in range(int(rng.integers(0, 6))):
        start, tall, width = int(rng.integers(0, depth)), int(rng.integers(1, height + 1)), int(rng.integers(1, 5))
        truth[start : start + tall, 8 : 8 + width, 8 : 8 + width] = int(rng.integers(1, 3))
    if rng.random() < 0.3:
        truth[(truth == 0) & (rng.random(truth.shape) < 0.002)] = 1
    label, _ = search(truth, stride)
    assert np.array_equal(label, keep(truth))


def test_noise_in_every_slice_labels_every_slice():
    truth = scan(80)
    truth[:, 3, 3] = 1
    _, asked = search(truth, 10)
    assert len(asked) == 80


def test_a_false_organ_elsewhere_costs_its_samples_only():
    truth = scan(200, (20, 90, 9, 1), (150, 162, 3, 1))
    label, asked = search(truth, 10)
    assert np.array_equal(label, keep(truth))
    assert {150, 160} <= set(asked)
    assert not {151, 152, 161} & set(asked)


def test_a_scan_without_organ_is_labeled_completely():
    _, asked = search(scan(120), 20)
    assert len(asked) == 120


def test_a_model_whose_labels_need_every_slice_is_named_with_the_reason():
    assert explain_no_range(LITS, largest_organ=True) == ""
    assert "largest organ" in explain_no_range(LITS, largest_organ=False)
    assert "no organ" in explain_no_range(Labels({"tumor": 1}, tumor="tumor"), largest_organ=True)
    many = Labels({"liver": 1, "tumor": 2, "spleen": 3}, organ="liver", tumor="tumor")
    assert "besides" in explain_no_range(many, largest_organ=True)
    assert make_range_rule(LITS, 5.0) == RangeRule(values=(1, 2), stride=5)


RULE = RangeRule(values=(1, 2), stride=5)


def organs(*depths):
    """Scans of SIDE pixels with an organ in the middle third."""
    volumes = []
    for depth in depths:
        volume = np.zeros((depth, SIDE, SIDE), np.int16)
        volume[depth // 3 : 2 * depth // 3, 1:3, 1:3] = 1
        volumes.append(volume)
    return volumes


@pytest.mark.parametrize(("labels", "readers", "writers"), [(1, 1, 1), (7, 2, 2), (500, 3, 3)])
def test_a_run_labels_the_range_of_every_scan(labels, readers, writers):
    depths = [60, 90, 3, 1, 75, 120]
    model = FakeModel()
    run = FakeRun(
        organs(*depths), [model], range_rule=RULE, capacity=Capacity(labels, labels), readers=readers, writers=writers
    ).run()
    assert len(run.labels) == len(depths)
    assert run.correct
    assert sum(model.batches) < 0.65 * sum(depths)


def test_batches_stay_full_across_scans_while_each_waits_for_its_answers():
    model = FakeModel()
    FakeRun(organs(*[90] * 20), [model], range_rule=RULE, capacity=Capacity(10, 10), readers=4).run()
    assert np.mean(model.batches) > 7


@pytest.mark.parametrize("fails_at", range(1, 12))
def test_a_device_that_fails_in_any_batch_of_a_search_fails_those_scans_and_the_run_ends(fails_at):
    run = FakeRun(organs(*[60] * 4), [FakeModel(fails_at=[fails_at])], range_rule=RULE, readers=2).run()
    assert len(run.labels) + len(run.errors) == 4
    assert run.errors
    assert run.correct
    assert all(isinstance(error, ProviderError) for error in run.errors.values())
