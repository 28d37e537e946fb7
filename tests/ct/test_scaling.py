"""Stored numbers to HU and label values: one scaling for a scan, or one for each plane."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import InputError
from slicemill.ct.scan import to_hu, to_labels

TYPES = ["int8", "uint8", "int16", "uint16", "int32", "float32", ">i2", ">u2"]
NUMBERS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, -1024.0, -32768.0, 32767.0, 70000.0]), st.floats(-9, 9))


def as_float(raw, slope, inter):
    planes = [np.broadcast_to(np.asarray(number), len(raw)) for number in (slope, inter)]
    return np.stack([plane.astype(float) * one + add for plane, one, add in zip(raw, *planes, strict=True)])


@given(
    st.sampled_from(TYPES),
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_hu_equal_the_formula_in_double_or_are_refused(dtype, slopes, inters, many_slopes, many_inters, seed):
    rng = np.random.default_rng(seed)
    most = 100 if "8" in dtype else rng.choice([100, 3000, 32767])
    least = 0 if "u" in dtype else -most
    raw = rng.integers(least, most, (3, 4, 5), endpoint=True).astype(dtype)
    slope = np.array(slopes) if many_slopes else slopes[0]
    inter = np.array(inters) if many_inters else inters[0]
    wanted = as_float(raw, slope, inter)
    if np.floor(wanted.min()) < -32768 or np.ceil(wanted.max()) > 32767:
        with pytest.raises(InputError, match="HU must fit"):
            to_hu(raw, slope, inter, "x")
        return
    hu, error = to_hu(raw, slope, inter, "x")
    assert hu.dtype == np.int16
    assert np.array_equal(hu, np.rint(wanted))
    assert error == np.abs(wanted - np.rint(wanted)).max()
    before = raw.copy()
    reused, _ = to_hu(raw.copy(), slope, inter, "x", reuse=True)
    assert np.array_equal(reused, hu)
    assert np.array_equal(raw, before)  # only `reuse` may change the stored numbers


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_scaled_numbers_take_the_memory_of_stored_ones_on_request(dtype):
    raw = np.full((2, 3, 4), 1500, dtype)
    hu, _ = to_hu(raw, 1.0, -1024.0, "x", reuse=True)
    assert np.shares_memory(hu, raw)
    assert (hu == 476).all()


def test_labels_are_scaled_plane_by_plane():
    raw = np.array([[[1, 2]], [[1, 2]]], np.uint8)
    labels, error = to_labels(raw, np.array([1.0, 2.0]), np.array([0.0, 1.0]), "x")
    assert labels.tolist() == [[[1, 2]], [[3, 5]]]
    assert error == 0


def test_labels_that_leave_a_byte_in_one_plane_are_refused():
    with pytest.raises(InputError, match="found 300"):
        to_labels(np.array([[[100]], [[100]]], np.uint8), np.array([1.0, 3.0]), 0.0, "x")
