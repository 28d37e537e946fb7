"""A Dask cluster: workers share the scans, and another worker does what a killed one leaves."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from slicemill.common import cluster as connection
from slicemill.common.errors import ConfigError
from slicemill.common.files import read_lines
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import open_model
from slicemill.infer.run.cluster import BY_LEDGER, LedgerFollower, infer_on, merge_summaries
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import CLAIMED_ELSEWHERE, infer
from slicemill.infer.run.summary import ScanOutcome, Summary
from slicemill.infer.run.timing import StageTime
from tests.contents import content

HERE = Path(__file__).parents[2]
SCANS = 24


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler and two workers, each a process; yields the address and the workers."""
    log = tmp_path / "scheduler.log"
    module = [sys.executable, "-m"]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with log.open("w") as stream:
        scheduler = subprocess.Popen(
            [*module, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
            stderr=stream,
            stdout=stream,
        )
        address, deadline = None, time.time() + 60
        while address is None and time.time() < deadline:
            time.sleep(0.1)
            found = re.search(r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)", log.read_text())
            address = found and found[1]
        assert address, log.read_text()
        words = [*module, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        workers = [
            subprocess.Popen(words, stdout=stream, stderr=stream, cwd=tmp_path, env=environment) for _ in range(2)
        ]
        yield address, workers
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


def done_lines(out):
    return [line["name"] for line in read_lines(out / "ledger.jsonl") if line["status"] == "done"]


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_segment_every_scan_once(cluster, model, tmp_path):
    address, workers = cluster
    deadline = time.time() + 60
    while (tmp_path / "scheduler.log").read_text().count("Registered to") < 2 and time.time() < deadline:
        time.sleep(0.1)
    scans, out = tmp_path / "scans", tmp_path / "out"
    rng = np.random.default_rng(5)
    for number in range(SCANS):
        voxels = rng.integers(-200, 300, (40, 64, 64), dtype=np.int16)
        write_nifti(scans / f"scan-{number}.nii.gz", voxels, (3.0, 1.0, 1.0))
    (scans / "bad.nii").write_bytes(b"no scan")
    words = ["infer", str(model), str(scans), "--out", str(out), "--scheduler", address, "--provider", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "slicemill", *words], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(done_lines(out)) < 4 and process.poll() is None:
        time.sleep(0.005)
    at_kill = len(done_lines(out))
    workers[0].kill()
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors
    assert at_kill < SCANS, "the kill came too late to prove anything"
    assert f"{SCANS + 1} scans: {SCANS} done, 0 skipped (done before), 1 failed" in output
    assert Counter(done_lines(out)) == Counter(f"scan-{number}.nii.gz" for number in range(SCANS))
    infer(open_model(model, "cpu"), gather([scans])[0], tmp_path / "alone")
    for path in (tmp_path / "alone").glob("*.nii.gz"):
        assert content(out / path.name) == content(path)
    assert not list(out.rglob("*.part*"))
    cores = len(os.sched_getaffinity(0))
    logged = rf"worker tcp://127.0.0.1:(\d+): cpu \({cores} cores?\), \d+ slices a batch, \d at a time: "
    assert len(set(re.findall(logged, output))) == 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scans"] == {"done": SCANS, "skipped": 0, "failed": 1}
    assert summary["provider"] == "cpu"
    assert summary["slices"] == SCANS * 40, "those of the worker that was killed, too"


def test_no_scheduler_is_one_clear_error(model, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "RESPONSE_SECONDS", 1)
    opened = open_model(model, "cpu")
    with pytest.raises(ConfigError, match=r"--scheduler tcp://127.0.0.1:9: cannot connect to the Dask scheduler"):
        infer_on(
            "tcp://127.0.0.1:9", opened, "cpu", gather([collection])[0], RunLedger(tmp_path, opened, InferOptions())
        )


def outcome(name, status, reason=""):
    return ScanOutcome(name=name, status=status, reason=reason, slices=3 if status == "done" else 0)


def summary(*outcomes):
    stages = {"device": StageTime(seconds=2.0, share=1.0)}
    return Summary(outcomes=outcomes, seconds=4.0, provider="cpu", stages=stages, device_busy=0.5)


def test_the_most_informative_outcome_of_a_scan_counts():
    jobs = [Job(name=name, path=Path(name)) for name in "abcdef"]
    one = summary(
        outcome("a", "done"), outcome("b", "skipped", CLAIMED_ELSEWHERE), outcome("c", "skipped", "done before")
    )
    other = summary(outcome("a", "skipped", "done before"), outcome("b", "failed", "bad"), outcome("c", "done"))
    late = summary(outcome("f", "skipped", "done before"))
    known = {"d": outcome("d", "skipped", "done before")}
    by_ledger = {name: outcome(name, status) for name, status in (("a", "done"), ("b", "failed"), ("f", "done"))}
    merged = merge_summaries(jobs, known, by_ledger, [one, other, late], 5.0)
    assert [(one.name, one.status) for one in merged.outcomes] == [
        ("a", "done"), ("b", "failed"), ("c", "done"), ("d", "skipped"), ("e", "failed"), ("f", "done")]  # fmt: skip
    assert [one.reason for one in merged.outcomes] == [
        "", "bad", "", "done before", "the run ended before this scan was reached", BY_LEDGER]  # fmt: skip
    assert merged.slices == 9, "of a, c and f"
    assert merged.stages == {"device": StageTime(seconds=6.0, share=1.0)}
    assert merged.device_busy == 0.5


def test_the_ledger_is_read_as_it_grows(model, collection, tmp_path):
    """Lines of other models, other scans and begun scans do not count, nor torn lines; a scan's last line does."""
    opened = open_model(model, "cpu")
    jobs = gather([collection])[0]
    writer, reader = RunLedger(tmp_path, opened, InferOptions()), RunLedger(tmp_path, opened, InferOptions())
    seen = LedgerFollower(jobs[:3])
    assert seen.update(reader) == 0
    writer.append(jobs[0], outcome(jobs[0].name, "done"), begun=True)
    assert seen.update(reader) == 0
    writer.append(jobs[0], outcome(jobs[0].name, "done"))
    writer.append(jobs[1], outcome(jobs[1].name, "failed", "bad"))
    writer.append(jobs[3], outcome(jobs[3].name, "done"))
    RunLedger(tmp_path, opened, InferOptions(separate=True)).append(jobs[2], outcome(jobs[2].name, "done"))
    assert seen.update(reader) == 2
    assert " slices/s, 1 failed" in str(seen)
    line = (tmp_path / "ledger.jsonl").read_bytes().splitlines()[1]
    with (tmp_path / "ledger.jsonl").open("ab") as stream:
        stream.write(line[:40])
        stream.flush()
        assert seen.update(reader) == 0
        stream.write(b"\n")
    writer.append(jobs[1], outcome(jobs[1].name, "done"))
    assert seen.update(reader) == 0, "it had ended before"
    assert {name: (one.status, one.slices) for name, one in seen.outcomes.items()} == {
        jobs[0].name: ("done", 3), jobs[1].name: ("done", 3)}  # fmt: skip
