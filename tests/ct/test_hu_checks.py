"""Warnings about HU that are no CT's."""

import contextlib

import numpy as np
import pytest

from slicemill.common.errors import ScanError
from slicemill.ct.hu_checks import DistinctValues, HuRange, hu_range, rounding_warnings


@pytest.mark.parametrize(
    ("low", "high", "warning"),
    [
        (-1024, 3071, None),
        (-200, 300, None),
        (0, 255, "HU range 0..255 does not look like a CT"),
        (-3, 60, "HU range -3..60 does not look like a CT"),
        (0, 2500, "no HU below 0 (range 0..2500): the values may lack the intercept of -1024, or the scan is no CT"),
    ],
)
def test_a_range_that_is_no_cts_is_named(low, high, warning):
    volume = np.full((3, 4, 5), low, np.int16)
    volume[1, 2, 3] = high
    assert hu_range(volume).warnings() == ([warning] if warning else [])


def test_padding_does_not_hide_a_range_and_is_a_note():
    volume = np.full((2, 4, 4), -3024, np.int16)
    volume[0, 1:3, 1:3] = 0, 255
    found = hu_range(volume)
    assert found == HuRange(low=0, high=255, padding=28)
    assert found.warnings() == ["HU range 0..255 does not look like a CT"]
    assert found.notes() == ["28 voxels below -1024 HU are taken as padding and left out of HU statistics"]


def test_a_scan_of_padding_alone_is_named():
    assert hu_range(np.full((2, 2, 2), -2000, np.int16)).warnings() == [
        "every voxel is padding below air: this does not look like a CT"
    ]


def test_rounding_is_a_warning_only_where_it_changed_something():
    assert rounding_warnings(0.0) == []
    assert rounding_warnings(0.25) == ["HU were rounded to integers, by at most 0.25"]


@pytest.mark.parametrize(
    ("values", "is_scan"),
    [
        ([0, 1], False),
        ([0, 255], False),
        (range(29), False),
        (range(118), True),
        ([0], True),
        ([5, 20], True),
        ([-1000, 0, 1], True),
        ([-3024, 0, 1], True),
        ([0, 1, 300], True),
    ],
)
def test_a_volume_of_0_and_a_few_small_values_is_a_segmentation(values, is_scan):
    volume = np.resize(np.array(list(values), np.int16), (4, 6, 8))
    found = DistinctValues()
    for section in volume:
        found.add(section, HuRange.of_slice(section))
    with contextlib.nullcontext() if is_scan else pytest.raises(ScanError, match="looks like a segmentation"):
        found.check_is_scan("x.nii")
