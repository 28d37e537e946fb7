"""Every case is accounted for, whatever happens: bad files, kills, changes, other parameters, a cluster."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slicemill.common.errors import StoreError
from slicemill.common.files import read_lines
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.phantom import write_collection
from slicemill.ingest import convert, pipeline
from slicemill.ingest.convert import voxel_warnings
from slicemill.ingest.discover import discover, set_patients
from slicemill.ingest.outcomes import FailureLine
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest, make_absolute
from slicemill.ingest.plan import Task, require_params
from slicemill.ingest.stamps import locate, stamp_case
from slicemill.ingest.work import run_case
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table, reindex
from slicemill.store.version import stored_version
from slicemill.store.writer import ShardWriter
from tests.ingest.runs import HERE, command, contents

INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from slicemill.cli import main; main()"
)
LITS = Params(labels=LITS_LABELS)

pytestmark = pytest.mark.usefixtures("one_worker")


def run(folder, store, params=LITS, **options):
    return ingest(discover(folder), store, params, IngestOptions(workers=options.pop("workers", 1), **options))


def test_the_same_command_again_does_nothing_and_a_touched_file_is_recognized_by_its_hash(copied, tmp_path):
    store = tmp_path / "store"
    assert run(copied, store).count("done") == 6
    before = contents(store)
    assert run(copied, store).count("unchanged") == 6
    os.utime(copied / "volume-2.nii")
    report = run(copied, store)
    assert (report.count("done"), report.count("unchanged")) == (0, 6)
    assert run(copied, store, rehash=True).count("unchanged") == 6
    assert contents(store) == before


def test_a_changed_scan_is_done_again_and_only_that_one(copied, tmp_path):
    store = tmp_path / "store"
    run(copied, store)
    content = bytearray((copied / "volume-2.nii").read_bytes())
    content[-1] ^= 1
    (copied / "volume-2.nii").write_bytes(content)
    report = run(copied, store)
    assert [outcome.case_id for outcome in report.outcomes if outcome.status == "done"] == ["volume-2"]
    assert open_store(store)["volume-2"].info.image.sha256 != open_store(store)["volume-0"].info.image.sha256


def test_one_bad_scan_does_not_stop_the_rest_and_is_not_tried_again_unless_asked(copied, tmp_path):
    store = tmp_path / "store"
    good = (copied / "volume-1.nii.gz").read_bytes()
    (copied / "volume-1.nii.gz").write_bytes(good[:5000])
    first = run(copied, store)
    assert (first.count("done"), first.count("failed")) == (5, 1)
    assert "volume-1.nii.gz" in first.failures[0].reason
    again = run(copied, store)
    assert (again.count("unchanged"), again.count("failed before"), again.count("failed")) == (5, 1, 0)
    assert run(copied, store, retry_failed=True).count("failed") == 1
    assert [line["case_id"] for line in read_lines(store / "failures.jsonl")] == ["volume-1", "volume-1"]
    (copied / "volume-1.nii.gz").write_bytes(good)
    assert run(copied, store).count("done") == 1
    assert len(read_table(store, "manifest")) == 6


def test_a_full_disk_is_a_failure_that_is_tried_again_and_leaves_nothing_behind(copied, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "append", full)
    case = discover(copied).cases[0]
    (tmp_path / "store").mkdir()
    outcome = run_case(Task(case=case, place=locate(case), seen=None, megabytes=1), LITS, tmp_path / "store", 1)
    assert (outcome.status, outcome.passing) == ("failed", True)
    assert outcome.reason == f"{tmp_path / 'store'}: No space left on device."
    assert list((tmp_path / "store" / ".partial").iterdir()) == []
    line = FailureLine(case_id="a", stamp=stamp_case(case, LITS, locate(case)), image="a.nii", passing=True)
    assert not line.is_final(line.stamp)
    assert replace(line, passing=False).is_final(line.stamp)
    assert not replace(line, passing=False).is_final(replace(line.stamp, patient_id="b"))


def test_tables_that_cannot_be_written_are_named_and_the_cases_are_kept(copied, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "reindex", full)
    report = run(copied, tmp_path / "store")
    assert report.count("done") == 6
    assert (
        "the tables could not be written (No space left on device); free some space, then run `slicemill store reindex"
        in report.problem
    )


def test_a_store_of_other_parameters_is_refused_with_both_shown(copied, stored):
    other = Params(labels=make_labels({"liver": 1, "lesion": 2}))
    with pytest.raises(StoreError, match=r'"tumor": 2.*"lesion": 2.*--overwrite'):
        run(copied, stored, other)


def test_a_store_has_one_profile(copied, stored):
    with pytest.raises(StoreError, match=r'"profile": "fast".*--overwrite'):
        run(copied, stored, Params(labels=LITS_LABELS, profile="fast"))


def test_a_store_that_was_begun_keeps_its_parameters_for_other_cases_too(copied, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("volume-0.nii", "segmentation-0.nii"):
        shutil.move(copied / name, few / name)
    run(few, tmp_path / "store")
    other = Params(labels=make_labels({"liver": 1, "lesion": 2}))
    with pytest.raises(StoreError, match="was created with other parameters"):
        run(copied, tmp_path / "store", other)
    assert open_store(tmp_path / "store").case_ids == ["volume-0"]


def test_a_damaged_stored_case_is_done_again_and_stops_nothing(copied, tmp_path):
    store = tmp_path / "store"
    run(copied, store)
    document = store / "scans.zarr" / "volume-1" / "zarr.json"
    good = document.read_bytes()
    document.write_bytes(b"")
    report = run(copied, store)
    assert report.count("unchanged") == 6
    assert "built without 1 unreadable cases: volume-1" in report.problem
    (copied / "volume-1.nii.gz").touch()
    report = run(copied, store)
    assert (report.count("done"), report.problem) == (1, "")
    assert document.read_bytes() == good
    document.write_bytes(b"")
    report = run(copied, store, rehash=True)
    assert (report.count("done"), report.count("unchanged"), report.problem) == (1, 5, "")
    assert document.read_bytes() == good


def test_a_file_that_changes_while_it_is_read_is_not_stored_and_the_next_run_reads_it_again(
    copied, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    assert run(copied, store).count("done") == 6
    before = contents(store)
    (case,) = (case for case in discover(copied).cases if case.case_id == "volume-0")
    data = bytearray(case.image.read_bytes())
    data[-1] ^= 1
    case.image.write_bytes(data)

    def changing(*arguments, **options):
        data[-1] ^= 2
        case.image.write_bytes(data)
        return voxel_warnings(*arguments, **options)

    place = locate(make_absolute(case))
    task = Task(case=make_absolute(case), place=place, seen=None, known=frozenset([place]), megabytes=1)
    with monkeypatch.context() as patched:
        patched.setattr(convert, "voxel_warnings", changing)
        outcome = run_case(replace(task, seen=stored_version(store, "volume-0")), LITS, store, 1)
    assert (outcome.status, outcome.passing) == ("failed", True)
    assert "the image or its mask changed during reading" in outcome.reason
    assert contents(store) == before
    assert list((store / ".partial").iterdir()) == []
    assert run(copied, store).count("done") == 1
    assert run(copied, store, rehash=True).count("unchanged") == 6


def test_another_patient_for_the_same_files_is_a_change(copied, tmp_path):
    store = tmp_path / "store"
    run(copied, store)
    report = ingest(set_patients(discover(copied), r"volume-(\d)"), store, LITS, IngestOptions(workers=1))
    assert report.count("done") == 6
    assert {row["patient_id"] for row in read_table(store, "manifest")} == set("012345")


def test_relative_paths_hold_in_a_worker_of_another_folder(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(copied)
    case = make_absolute(discover(Path()).cases[0])
    assert case.image.is_absolute()
    assert case.mask.is_absolute()
    assert case.name(case.image) == "volume-0.nii"


def test_overwrite_does_everything_again(copied, tmp_path):
    store = tmp_path / "store"
    run(copied, store)
    before = contents(store)
    report = run(copied, store, overwrite=True, workers=2)
    assert report.count("done") == 6
    assert contents(store) == before
    assert list((store / ".partial").iterdir()) == []


def test_shards_share_the_cases_and_reindex_brings_them_together(copied, tmp_path, stored):
    store = tmp_path / "store"
    counts = [run(copied, store, shard=(index, 3)).count("done") for index in range(3)]
    assert counts == [2, 2, 2]
    assert not (store / "manifest.parquet").exists()
    reindex(store)
    assert contents(store) == contents(stored)
    assert read_table(store, "manifest") == read_table(stored, "manifest")


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path):
    folder, store = tmp_path / "collection", tmp_path / "store"
    list(write_collection(folder, cases=8, size=128, seed=2))
    words = [sys.executable, "-c", INTERRUPTIBLE, "ingest", str(folder), str(store), "--workers", "1"]
    process = subprocess.Popen(
        words, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.time() + 120
    while not read_lines(store / "ledger.jsonl") and process.poll() is None and time.time() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert "Traceback" not in said
    assert said.startswith("slicemill: interrupted; what was finished is kept")
    assert process.returncode == 130
    assert len(open_store(store)) >= 1
    subprocess.run(command("ingest", folder, store), cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    assert len(open_store(store)) == 8


def test_a_store_without_cases_takes_other_labels(copied, tmp_path):
    store = tmp_path / "store"
    ingest(
        discover(copied), store, Params(labels=make_labels({"lesion": 1})), IngestOptions(workers=1, shard=(99, 100))
    )
    assert not open_store(store).case_ids
    (store / ".partial" / "volume-0.abc").mkdir(parents=True)
    with pytest.raises(StoreError, match="was created with other parameters"):
        require_params(store, LITS, overwrite=False)
    (store / ".partial" / "volume-0.abc").rmdir()
    require_params(store, LITS, overwrite=False)
    (store / "scans.zarr" / "volume-0").mkdir()
    (store / "scans.zarr" / "volume-0" / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="was created with other parameters"):
        require_params(store, Params(labels=make_labels({"lesion": 1})), overwrite=False)
