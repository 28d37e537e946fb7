"""Claims on a disk: exclusive between processes and threads, and free as soon as their holder is gone."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slicemill.common.errors import StoreError
from slicemill.common.locks import CLAIMS, try_claim, wait_for_claim

HERE = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from slicemill.common.locks import try_claim
with try_claim(Path(sys.argv[1]), "volume-1") as ours:
    print(bool(ours), flush=True)
    time.sleep(60)
"""


def holder(root):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], cwd=HERE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def count(arguments):
    root, ledger = arguments
    with wait_for_claim(root, "volume-1", every=0.001):
        number = int(ledger.read_text())
        time.sleep(0.001)
        ledger.write_text(str(number + 1))


def test_one_holder_has_a_claim_and_gives_it_back(tmp_path):
    with try_claim(tmp_path, "volume-1") as first, try_claim(tmp_path, "volume-1") as second:
        assert first
        assert second is None
        with try_claim(tmp_path, "volume-2") as other:
            assert other
    with try_claim(tmp_path, "volume-1") as again:
        assert again


def test_the_claim_of_a_killed_process_is_free_at_once_and_that_of_a_live_one_is_not(tmp_path):
    process = holder(tmp_path)
    with try_claim(tmp_path, "volume-1") as ours:
        assert not ours
    process.send_signal(signal.SIGKILL)
    process.wait()
    with try_claim(tmp_path, "volume-1") as ours:
        assert ours
    process.stdout.close()


def test_many_processes_never_hold_a_claim_together(tmp_path):
    ledger = tmp_path / "count"
    ledger.write_text("0")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(count, [(tmp_path, ledger)] * 200, chunksize=1)
    assert ledger.read_text() == "200"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_no_other_kind_of_lock_is_used(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match="has no locks"), try_claim(tmp_path, "volume-1"):
        pass
    assert [(path.name, path.read_bytes()) for path in (tmp_path / CLAIMS).iterdir()] == [("volume-1", b"")]


def test_the_lock_file_stays_and_stays_the_same(tmp_path):
    path = tmp_path / CLAIMS / "volume-1"
    numbers = set()
    for _ in range(3):
        with try_claim(tmp_path, "volume-1"):
            numbers.add(path.stat().st_ino)
        assert path.read_bytes() == b""
    assert len(numbers) == 1


def test_two_threads_never_hold_a_claim_together(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(50):
            with wait_for_claim(tmp_path, "volume-1", every=0.0005):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
