"""Many runs, workers and kills: nothing lost, nothing done twice, byte for byte the store of an undisturbed run."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import threading
import time

import psutil
import pytest

from slicemill.common import locks
from slicemill.common.errors import LabelError
from slicemill.common.files import HashingStream, read_lines
from slicemill.common.locks import try_claim
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.phantom import write_collection
from slicemill.ingest import cluster as dask_tasks
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.ingest.plan import Task, require_params
from slicemill.ingest.stamps import locate
from slicemill.ingest.work import run_case
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table, reindex
from slicemill.store.writer import prepare_store
from tests.ingest.runs import HERE, command, contents

LITS = Params(labels=LITS_LABELS)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Sixteen phantoms, of 96 pixels."""
    folder = tmp_path_factory.mktemp("scans")
    list(write_collection(folder, cases=16, size=96, seed=4))
    return folder


@pytest.fixture(scope="module")
def serial(scans, tmp_path_factory):
    """Their store, made case after case in this process, without Dask."""
    store = tmp_path_factory.mktemp("serial") / "store"
    prepare_store(store)
    require_params(store, LITS, overwrite=False)
    for case in discover(scans).cases:
        convert_case(case, LITS, store)
    reindex(store)
    return store


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_within_a_case_change_no_byte(threads, scans, serial, tmp_path):
    prepare_store(tmp_path / "store")
    require_params(tmp_path / "store", LITS, overwrite=False)
    for case in discover(scans).cases[:4]:
        convert_case(case, LITS, tmp_path / "store", threads=threads)
    found = contents(tmp_path / "store")
    assert len(found) == 4 * 7 + 1
    assert found.items() <= contents(serial).items()


def test_an_error_in_the_middle_of_a_threaded_case_leaves_nothing(scans, tmp_path):
    case = discover(scans).cases[0]
    prepare_store(tmp_path / "store")
    before = set(threading.enumerate())
    with pytest.raises(LabelError, match="outside the labels"):
        convert_case(case, Params(labels=make_labels({"liver": 1})), tmp_path / "store", threads=3)
    assert list((tmp_path / "store" / ".partial").iterdir()) == []
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("ThreadPool")]


def in_the_middle(scans, store, address):
    """Return an ingest through a scheduler that has done two cases."""
    process = subprocess.Popen(
        command("ingest", scans, store, "--scheduler", address),
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 90
    while len(read_lines(store / "ledger.jsonl")) < 2 and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_a_scheduler_with_workers_of_which_one_is_killed_makes_the_store_of_a_serial_run(
    cluster, scans, serial, tmp_path
):
    address, workers = cluster
    store = tmp_path / "store"
    process = in_the_middle(scans, store, address)
    assert process.poll() is None, process.communicate()
    workers[0].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    # a case whose worker died after it was stored and before it said so is found unchanged by the next worker
    done, unchanged, failed = map(int, re.search(r"16 cases: (\d+) done, (\d+) unchanged, (\d+) failed", said).groups())
    assert (done + unchanged, failed) == (16, 0)
    assert contents(store) == contents(serial)
    assert len(read_table(store, "manifest")) == 16


@pytest.mark.slow
def test_a_scheduler_that_is_killed_fails_what_is_left_without_a_traceback(cluster, scans, serial, tmp_path):
    address, _ = cluster
    store = tmp_path / "store"
    process = in_the_middle(scans, store, address)
    for other in psutil.process_iter(["cmdline"]):
        if "distributed.cli.dask_scheduler" in " ".join(other.info["cmdline"] or ()):
            other.kill()
    said, wrong = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in wrong
    assert "the Dask scheduler is gone" in said
    subprocess.run(command("ingest", scans, store), cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    assert contents(store) == contents(serial)


@pytest.mark.slow
def test_two_runs_at_the_same_time_share_the_work_and_do_no_case_twice(scans, serial, tmp_path):
    store = tmp_path / "store"
    runs = [
        subprocess.Popen(
            command("ingest", scans, store, "--workers", 2),
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    done = [int(re.search(r"16 cases: (\d+) done", out)[1]) for out, _ in said]
    assert sum(done) == 16, said
    lines = [line for line in read_lines(store / "ledger.jsonl") if line["status"] == "done"]
    assert sorted(line["case_id"] for line in lines) == sorted(open_store(store).case_ids)
    assert contents(store) == contents(serial)
    assert len(read_table(store, "manifest")) == 16


@pytest.mark.slow
def test_a_case_that_another_run_has_claimed_is_waited_for(collection, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_tasks, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(locks, "QUIET_SECONDS", 0.1)
    store = tmp_path / "store"
    prepare_store(store)
    release = threading.Event()

    def hold():
        with try_claim(store, "volume-2") as ours:
            assert ours
            ready.set()
            release.wait(60)

    ready = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait(10)
    messages = []
    monkeypatch.setattr(locks, "print_message", lambda text: (messages.append(text), release.set()))
    report = ingest(discover(collection), store, LITS, IngestOptions(workers=1))
    thread.join()
    assert report.count("done") == 6
    assert contents(store) == contents(stored)
    assert read_lines(store / "ledger.jsonl")[-1]["case_id"] == "volume-2"
    assert re.match(r"waiting for process \d+ on \S+, which holds \S+/volume-2, for \d+ s", messages[0])


@pytest.mark.slow
def test_a_case_whose_claim_is_held_by_a_stopped_process_fails_by_its_name(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_tasks, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(locks, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(locks, "REPORT_SECONDS", 0.2)
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.0)
    store = tmp_path / "store"
    prepare_store(store)
    with try_claim(store, "volume-2"):  # renewed every 20 s only, so that it looks stopped
        report = ingest(discover(collection), store, LITS, IngestOptions(workers=1))
    assert (report.count("done"), report.count("failed")) == (5, 1)
    (failed,) = (outcome for outcome in report.outcomes if outcome.status == "failed")
    assert failed.case_id == "volume-2"
    assert re.search(rf"volume-2: is locked by process {os.getpid()} on .*; it is stopped", failed.reason)
    again = ingest(discover(collection), store, LITS, IngestOptions(workers=1))
    assert (again.count("done"), again.count("unchanged")) == (1, 5)


@pytest.mark.slow
def test_a_case_whose_outcome_died_with_its_worker_is_done_again(collection, stored, tmp_path, monkeypatch):
    read, once = dask_tasks.read_future, set()

    def lose(case_id, future):
        outcome = read(case_id, future)
        first = case_id not in once
        once.add(case_id)
        return (None, None) if first or case_id == "volume-1" else outcome

    monkeypatch.setattr(dask_tasks, "read_future", lose)
    monkeypatch.setattr(dask_tasks, "RETRY_SECONDS", 0.0)
    store = tmp_path / "store"
    report = ingest(discover(collection), store, LITS, IngestOptions(workers=1))
    assert (report.count("unchanged"), report.count("failed")) == (5, 1)
    (failed,) = (outcome for outcome in report.outcomes if outcome.status == "failed")
    assert "volume-1: 6 workers died" in failed.reason
    assert contents(store) == contents(stored)


@pytest.mark.slow
@pytest.mark.parametrize("age", [0.4, 1.6])
def test_workers_that_are_killed_again_and_again_leave_a_store_that_the_same_command_finishes(
    age, scans, serial, tmp_path
):
    """What the system does when memory runs out: workers die by SIGKILL, wherever they are."""
    store = tmp_path / "store"
    process = subprocess.Popen(
        command("ingest", scans, store, "--workers", 2),
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed, deadline = 0, time.time() + 8
    while process.poll() is None and time.time() < deadline:
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()) and time.time() - child.create_time() > age:
                    child.kill()
                    killed += 1
        time.sleep(0.1)
    said, wrong = process.communicate(timeout=120)
    assert killed >= 2
    assert process.returncode in (0, 1), wrong
    assert "Traceback" not in wrong
    assert contents(store).items() <= contents(serial).items()
    subprocess.run(command("ingest", scans, store), cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    assert contents(store) == contents(serial), said


@pytest.mark.slow
def test_a_disk_that_fills_up_fails_cases_and_the_same_command_finishes_them_when_there_is_room(
    scans, serial, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here; it takes root")
    store = disk / "store"
    try:
        full = subprocess.run(command("ingest", scans, store), cwd=HERE, capture_output=True, text=True, check=False)
        assert full.returncode == 1
        assert "No space left on device" in full.stdout
        assert "Traceback" not in full.stderr
        done = contents(store)
        assert 0 < len(open_store(store)) < 16
        assert done.items() <= contents(serial).items()
        assert list((store / ".partial").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        subprocess.run(command("ingest", scans, store), cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        assert contents(store) == contents(serial)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "volume-1.nii.gz: cannot be read: Input/output error"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_a_read_error_or_want_of_memory_fails_one_case_and_is_tried_again(
    error, message, collection, stored, tmp_path, monkeypatch
):
    real = HashingStream.read

    def failing(self, size=-1):
        if self.bytes_read > 20_000:
            raise error
        return real(self, size)

    store = tmp_path / "store"
    prepare_store(store)
    require_params(store, LITS, overwrite=False)
    (case,) = (case for case in discover(collection).cases if case.case_id == "volume-1")
    task = Task(case=case, place=locate(case), seen=None, megabytes=1)
    with monkeypatch.context() as patched:
        patched.setattr(HashingStream, "read", failing)
        outcome = run_case(task, LITS, store, 1)
    assert (outcome.status, outcome.passing) == ("failed", True)
    assert message in outcome.reason
    assert list((store / ".partial").iterdir()) == []
    assert run_case(task, LITS, store, 1).status == "done"
    found = contents(store)
    assert len(found) == 8
    assert found.items() <= contents(stored).items()


@pytest.mark.slow
def test_killed_twenty_times_the_store_has_only_complete_cases_and_the_same_command_finishes_it(
    scans, serial, tmp_path, rng
):
    """Most runs begin all cases again, so that cases that are being replaced are killed too."""
    store, expected = tmp_path / "store", contents(serial)
    killed, turn = 0, 0
    while killed < 20:
        turn += 1
        assert turn < 60
        words = ["--overwrite"] if turn % 4 else []
        process = subprocess.Popen(
            command("ingest", scans, store, "--workers", 2, *words),
            cwd=HERE,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        ledger = store / "ledger.jsonl"
        before, deadline = len(read_lines(ledger)), time.time() + 20
        while not turn % 5 and len(read_lines(ledger)) == before and process.poll() is None and time.time() < deadline:
            time.sleep(0.002)  # every fifth is killed just after a case was done, the others wherever they are
        time.sleep(float(rng.uniform(0, 0.1) if not turn % 5 else rng.uniform(0.6, 2.0)))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if (store / "scans.zarr" / "zarr.json").exists():
            found = contents(store)
            assert found.items() <= expected.items()
            for case_id in open_store(store).case_ids:
                assert (
                    sum(name.startswith(f"{case_id}/") for name in (key.removeprefix("scans.zarr/") for key in found))
                    == 7
                )
    subprocess.run(command("ingest", scans, store), cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    assert contents(store) == expected
    assert read_table(store, "manifest") == read_table(serial, "manifest")
    assert list((store / ".partial").iterdir()) == []
