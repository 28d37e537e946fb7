"""Arrays of a store are indexed like numpy arrays, and read only the slices that an index needs."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from slicemill.common.errors import NoCaseError
from slicemill.store.indexing import select
from slicemill.store.reader import open_store

VOLUME = np.arange(7 * 5 * 4).reshape(7, 5, 4)
LISTS = st.lists(st.integers(-7, 6), max_size=5)


def take(key):
    selection = select(key, len(VOLUME))
    return VOLUME[list(selection.slices)][selection.inner]


@given(basic_indices(VOLUME.shape, allow_newaxis=True, allow_ellipsis=True))
def test_basic_indices_are_those_of_numpy(key):
    assert np.array_equal(take(key), VOLUME[key])


@given(LISTS, st.sampled_from([(), (1,), (slice(None), 2), (slice(1, 3),), (..., 1)]))
def test_lists_of_slices_are_those_of_numpy(chosen, rest):
    key = (np.array(chosen, dtype=int), *rest)
    assert np.array_equal(take(key), VOLUME[key])


@pytest.mark.parametrize(
    "key",
    [
        VOLUME > 30,
        VOLUME[:, 0, 0] > 30,
        (2, slice(None), [0, 1]),
        (slice(None), [0, 1, 4], [1, 1, 3]),
        ([3, 1, 1], [0, 1, 4], [1, 1, 3]),
        np.array([[1, 2], [0, 6]]),
        (np.int64(3), np.uint8(1)),
        True,
        (..., 1, 2, 3),
        (1, 2, 3, ...),
    ],
)
def test_other_indices_are_those_of_numpy(key):
    assert np.array_equal(take(key), VOLUME[key])


def test_only_the_slices_of_an_index_are_read():
    assert list(select((2, 1, 1), 7).slices) == [2]
    assert list(select(slice(-2, None), 7).slices) == [5, 6]
    assert list(select([6, 0, 6], 7).slices) == [0, 6]


@pytest.mark.parametrize("key", [7, -8, (0, 5), (0, 0, 0, 0), [0, 7], [0.5], np.ones(3, bool), "image"])
def test_what_numpy_refuses_is_refused(key):
    with pytest.raises((IndexError, TypeError)):
        VOLUME[key]
    with pytest.raises((IndexError, TypeError)):
        take(key)


def test_a_stored_array_is_numpys(stored):
    case = open_store(stored)["volume-1"]
    image, voxels = case.image, np.asarray(case.image)
    assert voxels.shape == image.shape
    assert (image.ndim, image.size, image.nbytes) == (3, voxels.size, voxels.nbytes)
    assert voxels.dtype == np.int16
    for key in (0, -1, (slice(None), 10, 10), (5, slice(3, 9)), ([1, 4], ..., 3), (slice(None, None, 7), 2, slice(4))):
        assert np.array_equal(image[key], voxels[key])
    assert np.asarray(image, dtype=np.float32).dtype == np.float32
    assert np.mean(image) == voxels.mean()
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # before, copy=False meant "copy if you must"
        with pytest.raises(ValueError, match=r"<image int16\[.*of case volume-1> must be read"):
            np.array(image, copy=False)
    with pytest.raises(IndexError, match="slice 1000 of"):
        image[1000]


def test_a_store_is_a_mapping_of_ids_to_cases(stored):
    store = open_store(stored)
    ids = [f"volume-{number}" for number in range(6)]
    assert list(store) == list(store.keys()) == ids
    assert len(store) == 6
    assert "volume-2" in store
    assert "volume-99" not in store
    assert ["a"] not in [*store]
    assert [case.case_id for case in store.values()] == ids
    assert dict(store.items())["volume-2"] is store["volume-2"]
    assert store.get("volume-99") is None
    with pytest.raises(KeyError):
        store["volume-99"]
    with pytest.raises(NoCaseError, match=r"has no case 'volume-99'; `slicemill store manifest"):
        store["volume-99"]


def test_a_case_has_affine_spacing_and_lesions(stored):
    case = open_store(stored)["volume-1"]
    assert np.array_equal(case.affine, case.info.affine_lps)
    assert np.allclose(np.linalg.norm(case.affine[:3, :3], axis=0)[::-1], case.spacing_mm)
    assert case.lesions == case.info.lesions
    assert case.lesions


def test_representations_say_what_it_is(stored):
    store = open_store(stored)
    assert repr(store) == f"<slice store {stored}: 6 cases>"
    assert repr(store["volume-1"]).startswith("<case volume-1: ")
    assert repr(store["volume-1"]).endswith("mm (z, y, x); liver, tumor>")
    assert repr(store["volume-1"].label).startswith("<label uint8[")


def test_stores_cases_and_arrays_go_to_other_processes(stored):
    store = open_store(stored)
    for one in (store["volume-1"].image, pickle.loads(pickle.dumps(store["volume-1"].image))):  # noqa: S301 (our own)
        assert np.array_equal(one[3], store["volume-1"].image[3])
    assert pickle.loads(pickle.dumps(store)).case_ids == store.case_ids  # noqa: S301
    assert pickle.loads(pickle.dumps(store["volume-1"])).case_id == "volume-1"  # noqa: S301
