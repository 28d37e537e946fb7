import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slicemill.common.errors import StoreError
from slicemill.common.locks import try_claim, wait_for_claim

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


def test_a_claim_is_had_by_one_and_given_back(tmp_path):
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


@pytest.mark.slow
def test_many_processes_never_hold_a_claim_together(tmp_path):
    ledger = tmp_path / "count"
    ledger.write_text("0")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(count, [(tmp_path, ledger)] * 200, chunksize=1)
    assert ledger.read_text() == "200"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match="has no locks"), try_claim(tmp_path, "volume-1"):
        pass
