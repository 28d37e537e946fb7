"""Runs that are killed at any moment: nothing lost, nothing done twice, no half-written file."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from slicemill.common.files import read_lines
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from tests.contents import content

HERE = Path(__file__).parents[2]
SCANS, KILLS = 40, 20


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Forty scans of noise, of 4 to 12 slices."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(7)
    for number in range(SCANS):
        voxels = rng.integers(-200, 300, (4 + number % 9, 64, 64), dtype=np.int16)
        write_nifti(folder / f"p{number % 3}" / f"scan-{number}.nii.gz", voxels, (3.0, 1.0, 1.0))
    return folder


def files(out, *, aside=True):
    """All files of a run but ledger, summary and claims, unpacked; half a file raises, also one written `aside`."""
    return {
        path.relative_to(out).as_posix(): content(path)
        for path in out.rglob("*")
        if path.is_file() and ".claims" not in path.parts and path.parent != out and (aside or path.name[0] != ".")
    }


def done_lines(out):
    return [line["name"] for line in read_lines(out / "ledger.jsonl") if line["status"] == "done"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_lose_nothing_and_do_nothing_twice(model, scans, tmp_path):
    assert infer(open_model(model, "cpu"), gather([scans])[0], tmp_path / "whole").count("done") == SCANS
    whole = files(tmp_path / "whole")
    moment, kills, rounds = random.Random(3), 0, 0  # noqa: S311 (a choice of moments, no secret)
    while kills < KILLS:
        out = tmp_path / f"out-{rounds}"
        rounds += 1
        while kills < KILLS and len(done_lines(out)) < SCANS:
            words = ["infer", str(model), str(scans), "--out", str(out), "--provider", "cpu"]
            process = subprocess.Popen(
                [sys.executable, "-m", "slicemill", *words], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            before = len(read_lines(out / "ledger.jsonl"))
            while process.poll() is None and len(read_lines(out / "ledger.jsonl")) == before:
                time.sleep(0.005)
            time.sleep(moment.random() * 0.08)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            there = files(out, aside=False)
            assert there.items() <= whole.items(), "a file is there whole or not at all"
            assert all(name in there for name in done_lines(out)), "what is said to be done is there"
        last = infer(open_model(model, "cpu"), gather([scans])[0], out)
        assert last.count("done") + last.count("skipped") == SCANS
        assert Counter(done_lines(out)) == Counter(name for name in whole if name.endswith(".nii.gz"))
        assert files(out) == whole, "nothing half-written is left"


def test_unfinished_files_of_a_killed_run_are_removed_and_nothing_else(model, scans, tmp_path):
    jobs = gather([scans])[0][:2]
    opened = open_model(model, "cpu")
    infer(opened, jobs, tmp_path)
    ledger = RunLedger(tmp_path, opened, InferOptions())
    stem = jobs[0].stem.rpartition("/")[2]
    folder = tmp_path / Path(jobs[0].name).parent
    stale = [folder / f".{stem}{end}.0123abcd.part" for end in (".nii.gz", ".json", "_liver.nii.gz")]
    ours = [folder / ".notes.part", folder / ".other.nii.0123abcd.part.nii"]
    for path in [*stale, *ours]:
        path.write_bytes(b"half")
    claim = ledger.claim(jobs[0])
    ledger.remove_unfinished(jobs)
    assert all(path.exists() for path in stale), "another run has claimed it"
    claim.close()
    ledger.remove_unfinished(jobs)
    assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in ours)
