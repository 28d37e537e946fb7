import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slicemill.common.parallel import map_isolated

ROOT = Path(__file__).parents[2]
NAPS = """
import signal, sys, time
from pathlib import Path
from slicemill.common.parallel import map_isolated

from slicemill.common.files import atomic_write

def nap(place):
    Path(place).touch()
    with atomic_write(Path(place + ".json")) as aside:
        aside.write_text("half")
        time.sleep(100)
    return place

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    list(map_isolated(nap, sys.argv[1:], 2, str))
"""


def test_items_keep_their_places_in_one_process_and_in_several():
    assert (
        sorted(map_isolated(abs, [-3, 4, -5], 1, abs))
        == sorted(map_isolated(abs, [-3, 4, -5], 2, abs))
        == [(0, 3), (1, 4), (2, 5)]
    )


def die_at_seven(number):
    if number == 7:
        os._exit(1)
    return str(number)


def test_only_the_item_that_a_process_died_of_fails():
    found = sorted(map_isolated(die_at_seven, [1, 7, 2, 7, 3], 2, lambda number: f"died of {number}"))
    assert found == [(0, "1"), (1, "died of 7"), (2, "2"), (3, "died of 7"), (4, "3")]


def count_threads(_):
    """Return how many threads numpy's OpenBLAS has started."""
    assert "numpy" not in sys.modules, "too late for OpenBLAS"
    before = sum(1 for _ in Path("/proc/self/task").iterdir())
    import numpy as np

    np.ones((900, 900)) @ np.ones((900, 900))
    return sum(1 for _ in Path("/proc/self/task").iterdir()) - before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="OpenBLAS starts no threads on one core")
def test_workers_divide_the_cores_among_their_threads():
    further = len(os.sched_getaffinity(0)) // 2 - 1
    found = [result for _, result in map_isolated(count_threads, [1, 2], 2, count_threads)]
    assert all(count <= further for count in found), found


def start_naps(folder, script, places):
    """Start a script in a process group of its own, and return its process once two workers write."""
    (folder / "naps.py").write_text(script)
    child = subprocess.Popen(
        [sys.executable, str(folder / "naps.py"), *map(str, places)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while sum(1 for _ in folder.glob(".*.part*")) < 2:
        assert child.poll() is None
        time.sleep(0.1)
    return child


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_ctrl_c_ends_the_cases_in_hand_and_begins_no_other(send, tmp_path):
    places = [tmp_path / name for name in "abcdefg"]
    child = start_naps(tmp_path, NAPS, places)
    send(child.pid, signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT, error
    assert error.decode().count("Traceback") == 1, "of the process that was interrupted, and of no worker"
    assert sum(place.exists() for place in places) == 2
    assert list(tmp_path.glob(".*")) == list(tmp_path.glob("*.json")) == [], "nothing half written is left"
    assert gone(child.pid), "no worker is left"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_main_process(number, tmp_path):
    script = NAPS.replace(
        "    list(map_isolated", "    with raise_on_stop_signals():\n        list(map_isolated"
    ).replace("def nap", "from slicemill.common.signals import raise_on_stop_signals\n\ndef nap")
    child = start_naps(tmp_path, script, [tmp_path / name for name in "abcd"])
    child.send_signal(number)
    child.communicate(timeout=60)
    assert gone(child.pid), "no worker is left"
    assert list(tmp_path.glob(".*.part*")) == [], "nothing half written is left"


def gone(group: int) -> bool:
    """Return whether all processes of a group end within 10 seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
