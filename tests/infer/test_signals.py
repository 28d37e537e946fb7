"""Ctrl-C and SIGTERM end a run in order: one line, the exit status of the signal, no abort, and nothing lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from slicemill.common.files import read_lines
from slicemill.ct.phantom import write_nifti

HERE = Path(__file__).parents[2]
SCANS = 60
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(7)
    for number in range(SCANS):
        voxels = rng.integers(-200, 300, (24, 96, 96), dtype=np.int16)
        write_nifti(folder / f"scan-{number}.nii", voxels, (3.0, 1.0, 1.0))
    return folder


def stop(model, scans, out, number, seconds):
    """Start a run, send it a signal some time after its first scan, and return its exit status and errors."""
    # a background process of a shell ignores Ctrl-C, and so do its children
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import slicemill.cli as c; c.main()"
    )
    words = ["infer", str(model), str(scans), "--out", str(out), "--provider", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (out / "ledger.jsonl").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_ends_a_run_with_one_line_and_its_status(model, scans, tmp_path, number):
    status, errors = stop(model, scans, tmp_path, number, 0.1)
    assert status == STATUS[number], errors
    assert errors.count("\n") == 1
    assert "Run the same command again to continue" in errors
    assert 0 < len([line for line in read_lines(tmp_path / "ledger.jsonl") if line["status"] == "done"]) < SCANS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_signal_of_twelve_aborts_the_process(model, scans, tmp_path):
    wrong = []
    for times in range(12):
        number = (signal.SIGINT, signal.SIGTERM)[times % 2]
        status, errors = stop(model, scans, tmp_path / str(times), number, 0.05 * times)
        if status not in (0, STATUS[number]) or errors.count("\n") > 1:
            wrong.append((times, number, status, errors))
    assert wrong == []
