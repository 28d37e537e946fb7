"""The queue of scans: full batches at once, short ones when nothing can fill them, memory within its limit."""

import threading
import time

import numpy as np
import pytest

from slicemill.common.errors import ScanError
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices import scan_queue
from slicemill.infer.slices.scan_queue import LINGER_SECONDS, ScanQueue, Stopped
from tests.infer.fakes import planned


def scan(slices):
    return planned(np.zeros((slices, 4, 4), np.int16))


def test_a_full_batch_is_returned_at_once_and_a_short_one_when_nothing_can_fill_it():
    queue = ScanQueue(Capacity(4, 4), 100)
    with queue.reader():
        with queue.busy():
            queue.add(scan(6))
            assert len(queue.take().units) == 4
            taken = []
            thread = threading.Thread(target=lambda: taken.append(queue.take()))
            thread.start()
            time.sleep(3 * LINGER_SECONDS)
            assert not taken, "a reader is at work: more may come"
        thread.join(5)
        assert len(taken[0].units) == 2
    assert queue.take() is None


def test_the_last_slices_are_divided_among_the_lanes():
    queue = ScanQueue(Capacity(8, 8), 100, sharers=2)
    with queue.reader(), queue.busy():
        queue.add(scan(9))
        assert len(queue.take().units) == 8, "a reader is at work: more may come"
        queue.add(scan(10))
    sizes = []
    while (batch := queue.take()) is not None:
        sizes.append(len(batch.units))
    assert sizes == [6, 3, 1, 1]


def test_what_nothing_can_fill_does_not_linger(monkeypatch):
    monkeypatch.setattr(scan_queue, "LINGER_SECONDS", 1000)
    queue = ScanQueue(Capacity(8, 8), 100, sharers=2)
    queue.add(scan(6))
    taken = []
    lane = threading.Thread(target=lambda: taken.extend(queue.take() for _ in range(3)), daemon=True)
    lane.start()
    lane.join(30)
    assert [len(batch.units) for batch in taken] == [3, 2, 1]


def test_what_is_left_is_not_divided_below_an_eighth_of_a_batch():
    queue = ScanQueue(Capacity(16, 16), 100, sharers=16)
    queue.add(scan(6))
    assert [len(queue.take().units) for _ in range(3)] == [2, 2, 2]


def test_a_reader_that_waits_for_memory_does_not_keep_a_short_batch_waiting():
    queue = ScanQueue(Capacity(4, 4), 100)
    with queue.reader(), queue.busy():
        queue.reserve_memory(80)
        queue.add(scan(1))
        taken = []
        lane = threading.Thread(target=lambda: taken.append(queue.take()))
        lane.start()
        waiting = threading.Thread(target=lambda: queue.reserve_memory(50))
        queue._count_busy(1)
        waiting.start()
        queue._count_busy(-1)
        lane.join(5)
        assert len(taken[0].units) == 1
        assert waiting.is_alive()
        queue.release(80)
        waiting.join(5)
        assert queue.reserved_bytes == 50


def test_waiting_readers_are_released_at_the_end():
    queue = ScanQueue(Capacity(4, 4), 100)
    caught = []

    def read():
        with queue.reader(), queue.busy():
            queue.reserve_memory(80)
            try:
                queue.reserve_memory(80)
            except Stopped as stopped:
                caught.append(stopped)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    queue.stop()
    thread.join(5)
    assert caught
    assert queue.take() is None


def test_more_memory_than_the_limit_is_refused():
    with pytest.raises(ScanError, match="needs about 0.00 GiB of memory, more than"):
        ScanQueue(Capacity(4, 4), 100).reserve_memory(101)


def test_a_scan_is_complete_when_its_last_unit_is_in():
    assert [scan(3).count_labeled(count) for count in (1, 3)] == [False, True]
