"""The watch folder: scans are segmented once they are complete."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slicemill.common.errors import ConfigError
from slicemill.infer.network.model import open_model
from slicemill.infer.run import watch as module
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.watch import WatchFolder, watch
from tests.infer.commands import run_command

HERE = Path(__file__).parents[2]


@pytest.fixture
def watched(tmp_path):
    logged = []
    return WatchFolder(folder=tmp_path, settle_seconds=5.0, log=logged.append), logged


def names(jobs):
    return [job.name for job in jobs]


def test_a_file_becomes_a_job_when_it_has_settled(watched, tmp_path):
    state, _ = watched
    scan = tmp_path / "p1" / "ct-1.nii"
    scan.parent.mkdir()
    scan.write_bytes(b"")
    assert state.find_ready(0) == state.find_ready(9) == [], "an empty file is still to be written"
    scan.write_bytes(b"half")
    assert state.find_ready(10) == state.find_ready(14) == []
    scan.write_bytes(b"half and half")
    assert state.find_ready(16) == state.find_ready(20) == []
    assert names(state.find_ready(21)) == ["p1/ct-1.nii"]
    assert state.find_ready(99) == [], "once is enough"


def test_a_file_that_changes_later_becomes_a_job_again_once_the_first_has_ended(watched, tmp_path):
    state, _ = watched
    (tmp_path / "a.nii").write_bytes(b"one")
    state.find_ready(0)
    assert names(state.find_ready(5)) == ["a.nii"]
    state.is_in_progress = lambda name: name == "a.nii"
    (tmp_path / "a.nii").write_bytes(b"other")
    assert state.find_ready(6) == state.find_ready(20) == []
    state.is_in_progress = lambda _: False
    assert names(state.find_ready(21)) == ["a.nii"]


def test_other_files_are_left_out_and_reported_once(watched, tmp_path):
    state, logged = watched
    for name in ("ct_seg.nii", "x.dcm", ".hidden.nii", "b.nii", "b.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" if name == "x.dcm" else b"bytes")
    state.find_ready(0)
    assert names(state.find_ready(9)) == ["b.nii"]
    assert sorted(line.split(": ")[1].rpartition("/")[2] for line in logged) == sorted(
        ["b.nii.gz", "ct_seg.nii", tmp_path.name]  # the folder of the series
    )


def test_a_name_is_free_again_when_its_scan_is_gone_and_has_ended(watched, tmp_path):
    state, logged = watched
    (tmp_path / "a.nii").write_bytes(b"one")
    state.find_ready(0)
    assert names(state.find_ready(9)) == ["a.nii"]
    (tmp_path / "a.nii").unlink()
    (tmp_path / "a.nii.gz").write_bytes(b"other")
    state.is_in_progress = lambda name: name == "a.nii"
    assert state.find_ready(10) == state.find_ready(20) == []
    state.is_in_progress = lambda _: False
    state.find_ready(21)
    assert names(state.find_ready(30)) == ["a.nii.gz"]
    assert len(logged) == 1


def test_after_a_restart_the_outputs_of_scans_that_are_gone_are_not_replaced(
    model, collection, tmp_path, monkeypatch, capsys
):
    folder, out = tmp_path / "inbox", tmp_path / "out"
    opened = open_model(model, "cpu")
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)

    def arrives(name):
        """Watch with a scan of this name in the folder until its job has ended."""
        folder.mkdir(exist_ok=True)
        shutil.copy(collection / "volume-0.nii", folder / name)
        looks = iter(range(4))
        ended = watch(
            opened, folder, RunLedger(out, opened, InferOptions(separate=True)), lambda: next(looks, None) is None, 0.0
        )
        (folder / name).unlink()
        return [(outcome.name, outcome.status) for outcome in ended.outcomes]

    assert arrives("a_tumor.nii") == [("a_tumor.nii", "done")]
    before = (out / "a_tumor.nii").read_bytes()
    (out / ".a_tumor.nii.01234567.part.nii").write_bytes(b"of a run that was killed")
    assert arrives("a.nii") == []
    assert "would overwrite a file of" in capsys.readouterr().out
    assert (out / "a_tumor.nii").read_bytes() == before
    assert not list(out.glob(".*.part*"))
    assert arrives("a_tumor.nii") == [("a_tumor.nii", "done")], "another scan of the same name is a scan that changed"


def test_masks_must_not_arrive_as_scans(model, tmp_path):
    opened = open_model(model, "cpu")
    with pytest.raises(ConfigError, match="is inside it, so masks would be taken for scans"):
        watch(opened, tmp_path, RunLedger(tmp_path / "out", opened, InferOptions()), lambda: True)
    with pytest.raises(ConfigError, match="there is no such folder"):
        watch(opened, tmp_path / "none", RunLedger(tmp_path / "out", opened, InferOptions()), lambda: True)


def test_a_watch_folder_takes_no_pictures(model, tmp_path):
    words = ["infer", model, "--watch", tmp_path, "--window=-200,300", "--out", tmp_path / "out"]
    done = run_command(*words)
    assert done.exit_code == 2
    assert "--watch cannot be combined" in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_watch_folder_is_processed_as_it_fills_and_ends_cleanly_on_a_signal(number, model, collection, tmp_path):
    folder, out = tmp_path / "inbox", tmp_path / "out"
    folder.mkdir()
    shutil.copy(collection / "volume-0.nii", folder)
    words = ["infer", str(model), "--watch", str(folder), "--settle", "0.5", "--out", str(out), "--provider", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "slicemill", *words], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def until(there):
        deadline = time.time() + 90
        while not there() and process.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        assert there(), process.communicate(timeout=5)

    until((out / "volume-0.nii").exists)
    with (folder / "volume-4.nii.gz").open("wb") as slow:
        content = (collection / "volume-4.nii.gz").read_bytes()
        slow.write(content[:2000])
        slow.flush()
        shutil.copy(collection / "volume-1.nii.gz", folder / "arriving.part")
        (folder / "arriving.part").rename(folder / "volume-1.nii.gz")
        (folder / "bad.nii").write_bytes(b"no scan")
        for start in range(2000, len(content), -(-len(content) // 20)):
            slow.write(content[start : start + -(-len(content) // 20)])
            slow.flush()
            os.fsync(slow.fileno())
            time.sleep(0.1)
    until(lambda: (out / "volume-1.nii.gz").exists() and (out / "volume-4.nii.gz").exists())
    process.send_signal(number)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "done: volume-4.nii.gz: " in shown
    assert "failed: bad.nii: " in shown
    assert "4 scans: 3 done, 0 skipped (done before), 1 failed" in shown
    assert json.loads((out / "summary.json").read_text())["scans"] == {"done": 3, "skipped": 0, "failed": 1}
    assert not list(out.rglob("*.part*"))
