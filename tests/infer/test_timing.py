"""The time of a run by stage."""

import threading
import time

import pytest

from slicemill.infer.run.timing import StageTime, Stopwatch, share_times


def test_seconds_of_stages_are_shared_and_rounded():
    assert share_times({"read": 1.0, "write": 3.0000004}) == {
        "read": StageTime(seconds=1.0, share=0.25),
        "write": StageTime(seconds=3.0, share=0.75),
    }


def test_the_stopwatch_adds_up_threads():
    watch = Stopwatch()

    def work():
        with watch.timed("decode"):
            time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.add("write", 0.15)
    times = watch.stage_times()
    assert times["decode"].seconds >= 0.15
    assert times["decode"].share == pytest.approx(times["decode"].seconds / (times["decode"].seconds + 0.15), abs=1e-3)


def test_a_device_is_busy_once_however_many_lanes_compute_on_it():
    """Two lanes of GPU 0 for 0.2 s at once, and one of GPU 1 for 0.1 s."""
    watch, together = Stopwatch(), threading.Barrier(3)

    def compute(device, seconds):
        together.wait(5)
        with watch.computing(device):
            time.sleep(seconds)

    threads = [threading.Thread(target=compute, args=given) for given in ((0, 0.2), (0, 0.2), (1, 0.1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.seconds("device") >= 0.5
    assert 0.3 <= watch.busy_seconds <= 2 * watch.elapsed
    assert watch.busy_seconds < watch.seconds("device") - 0.1


def test_a_device_that_fails_is_no_longer_busy():
    watch = Stopwatch()
    for _ in range(2):
        with pytest.raises(RuntimeError), watch.computing(0):
            raise RuntimeError
    busy = watch.busy_seconds
    time.sleep(0.02)
    assert watch.busy_seconds == busy < 0.02
