"""Buffer pool: memory is reused only when nothing refers to it, and never more is held than was in use."""

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.infer.run import buffers as module
from slicemill.infer.run.buffers import LEAST_BYTES, BufferPool


def address(array):
    return array.ctypes.data


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch):
    monkeypatch.setattr(module, "LEAST_BYTES", 0)


def test_a_free_buffer_is_reused_and_one_with_a_view_is_not():
    pool = BufferPool()
    first = pool.empty((4, 8, 8), np.int16)
    where = address(first)
    view = first[2:, ::2, ::-1]
    del first
    gc.collect()
    other = pool.empty((4, 8, 8), np.int16)
    assert address(other) != where, "a view of it is left"
    del view
    assert address(pool.empty((4, 8, 8), np.int16)) == where
    assert address(other) != where


@pytest.mark.parametrize(("size", "again"), [(1000, True), (801, True), (799, False), (1001, False)])
def test_a_buffer_is_reused_only_for_an_array_that_nearly_fills_it(size, again):
    pool = BufferPool()
    where = address(pool.empty((1000,), np.uint8))
    fresh = pool.empty((size,), np.uint8)
    assert fresh.shape == (size,)
    assert (address(fresh) == where) == again
    assert pool._free == [], "no other free buffer is kept"


def test_small_arrays_are_allocated_by_numpy(monkeypatch):
    monkeypatch.setattr(module, "LEAST_BYTES", LEAST_BYTES)
    pool = BufferPool()
    assert pool.empty((LEAST_BYTES - 1,), np.uint8).flags.owndata
    assert not pool.empty((LEAST_BYTES,), np.uint8).flags.owndata
    assert len(pool._free) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(900, 1100), st.booleans()), max_size=60))
def test_no_two_arrays_in_use_share_memory(steps):
    pool, held = BufferPool(), {}
    for number, (key, size, whole) in enumerate(steps):
        array = pool.empty((size,), np.int32)
        array[:] = number
        held[key] = (number, array if whole else array[::7][1:])
        del array
        assert all((kept == own).all() for own, kept in held.values())


def test_threads_do_not_share_a_buffer():
    pool, wrong = BufferPool(), []

    def work(number):
        for _ in range(300):
            array = pool.empty((5000,), np.uint8)
            array[:] = number
            if (array != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
