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
