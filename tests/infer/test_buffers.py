"""Memory that is used again: never while anything still looks at it, and never more of it than was held."""

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


def test_what_is_free_again_is_used_again_and_what_is_looked_at_is_not():
    blocks = BufferPool()
    first = blocks.empty((4, 8, 8), np.int16)
    where = address(first)
    view = first[2:, ::2, ::-1]
    del first
    gc.collect()
    other = blocks.empty((4, 8, 8), np.int16)
    assert address(other) != where, "a view of it is left"
    del view
    assert address(blocks.empty((4, 8, 8), np.int16)) == where
    assert address(other) != where


@pytest.mark.parametrize(("size", "again"), [(1000, True), (801, True), (799, False), (1001, False)])
def test_a_block_is_used_for_what_nearly_fills_it_or_given_back(size, again):
    blocks = BufferPool()
    where = address(blocks.empty((1000,), np.uint8))
    fresh = blocks.empty((size,), np.uint8)
    assert fresh.shape == (size,)
    assert (address(fresh) == where) == again
    assert blocks._free == [], "nothing lies idle beside it"


def test_small_arrays_are_pythons_own(monkeypatch):
    monkeypatch.setattr(module, "LEAST_BYTES", LEAST_BYTES)
    blocks = BufferPool()
    assert blocks.empty((LEAST_BYTES - 1,), np.uint8).flags.owndata
    assert not blocks.empty((LEAST_BYTES,), np.uint8).flags.owndata
    assert len(blocks._free) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(900, 1100), st.booleans()), max_size=60))
def test_nobody_writes_into_the_array_of_another(steps):
    blocks, held = BufferPool(), {}
    for number, (key, size, whole) in enumerate(steps):
        array = blocks.empty((size,), np.int32)
        array[:] = number
        held[key] = (number, array if whole else array[::7][1:])
        del array
        assert all((kept == own).all() for own, kept in held.values())


def test_threads_do_not_share_a_block():
    blocks, wrong = BufferPool(), []

    def work(number):
        for _ in range(300):
            array = blocks.empty((5000,), np.uint8)
            array[:] = number
            if (array != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
