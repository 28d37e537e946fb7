"""Bulk runs of many small scans: equal masks for all options, failures with reasons, several runs at once."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slicemill.common.errors import ConfigError, ProviderError, ReadError, UsageError
from slicemill.common.failures import explain_failure
from slicemill.common.files import read_lines
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import BulkRun
from slicemill.infer.run.pipeline import infer as segment_all
from slicemill.infer.runtime import providers
from tests.contents import content

HERE = Path(__file__).parents[2]
SPACING = (3.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Ten scans of 1 to 9 slices; some larger and some smaller than the model's."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    for number in range(10):
        shape = (1 + number % 9, (64, 50, 90)[number % 3], 64)
        write_nifti(folder / f"scan-{number}.nii.gz", rng.integers(-200, 300, shape, dtype=np.int16), SPACING)
    return folder


def run(model, inputs, out, **options):
    opened = model if not isinstance(model, Path) else open_model(model, "cpu")
    return segment_all(opened, gather(inputs)[0], out, InferOptions(**options))


def masks(folder):
    return {path.name: content(path) for path in sorted(folder.rglob("*.nii.gz"))}


def test_the_size_of_a_batch_and_the_number_of_threads_change_no_label(model, scans, tmp_path):
    run(model, [scans], tmp_path / "one", batch=1, readers=1, writers=1)
    for name, options in (("seven", {"batch": 7}), ("large", {"batch": 500, "readers": 3, "writers": 3})):
        assert run(model, [scans], tmp_path / name, **options).count("done") == 10
        assert masks(tmp_path / name) == masks(tmp_path / "one")


def test_the_summary_has_every_stage_and_every_scan(model, scans, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.nii.gz").write_bytes(b"no scan")
    run(model, [scans, tmp_path / "more"], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scans"] == {"done": 10, "skipped": 0, "failed": 1}
    assert sum(row["share"] for row in summary["stages"].values()) == pytest.approx(1, abs=0.01)
    assert all(summary["stages"][stage]["seconds"] > 0 for stage in ("decode", "device", "scatter", "report", "write"))
    assert 0 < summary["device_busy"] <= 1
    assert summary["peak_mib"] > 50


def test_an_unreadable_scan_fails_alone_and_is_retried_only_on_request(model, scans, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "scans")
    (folder / "scan-4.nii.gz").write_bytes((folder / "scan-4.nii.gz").read_bytes()[:-900])
    first = run(model, [folder], tmp_path / "out")
    assert (first.count("done"), first.count("failed")) == (9, 1)
    assert not (tmp_path / "out" / "scan-4.nii.gz").exists()
    before = len(read_lines(tmp_path / "out" / "ledger.jsonl"))
    again = run(model, [folder], tmp_path / "out")
    assert (again.count("skipped"), again.count("failed")) == (9, 1)
    assert "failed before; use --retry-failed to try again" in next(
        o.reason for o in again.outcomes if o.status == "failed"
    )
    assert len(read_lines(tmp_path / "out" / "ledger.jsonl")) == before
    assert run(model, [folder], tmp_path / "out", retry_failed=True).count("failed") == 1
    assert len(read_lines(tmp_path / "out" / "ledger.jsonl")) == before + 1
    shutil.copy(scans / "scan-4.nii.gz", folder / "scan-4.nii.gz")
    assert run(model, [folder], tmp_path / "out").count("done") == 1


def test_a_scan_that_failed_with_its_device_is_retried_by_the_next_run(model, scans, tmp_path):
    opened, options = open_model(model, "cpu"), InferOptions()
    jobs, _ = gather([scans])
    first = BulkRun(opened, options, RunLedger(tmp_path / "out", opened, options))
    first.fail(jobs[0], ProviderError("cpu: the device failed (CUDA error 700)."))
    assert first.outcomes[jobs[0].name].reason == f"{jobs[0].path}: cpu: the device failed (CUDA error 700)."
    assert run(model, [scans], tmp_path / "out").count("done") == 10
    run(model, [scans], tmp_path / "whole")
    assert masks(tmp_path / "out") == masks(tmp_path / "whole")


def test_a_run_that_ends_early_has_every_scan_in_its_summary_and_the_next_run_does_the_rest(model, scans, tmp_path):
    opened = open_model(model, "cpu")

    class Broken:
        """Each of its sessions fails."""

        def io_binding(self):
            raise RuntimeError("CUDA error 700")

    opened.session = Broken()
    opened.rebuild = lambda: setattr(opened, "session", Broken())
    with pytest.raises(ProviderError, match="failed again after its session was rebuilt"):
        run(opened, [scans], tmp_path / "out", batch=2, readers=1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(summary["scans"].values()) == 10
    assert summary["scans"]["failed"] == 10
    assert len({row["name"] for row in summary["outcomes"]}) == 10
    assert run(model, [scans], tmp_path / "out").count("done") == 10


def test_a_reason_names_the_file_once():
    def reason(error):
        return explain_failure(error, Path("in/a.nii")).reason

    shard = "in/store/a/c/0, slice 3"
    assert reason(ReadError("needs more memory.")) == "in/a.nii: needs more memory."
    assert reason(ReadError("is damaged.", where="in/a.nii")) == "in/a.nii: is damaged."
    assert reason(ReadError("is damaged.", where=shard)) == f"{shard}: is damaged."
    assert reason(ReadError("differs from in/a.nii.")) == "in/a.nii: differs from in/a.nii."
    assert reason(ProviderError("cpu: the device failed.")) == "in/a.nii: cpu: the device failed."
    assert reason(OSError(28, "No space left on device", "out/a.nii")) == "out/a.nii: No space left on device."
    assert reason(MemoryError()).startswith("in/a.nii: not enough memory")


def test_a_memory_limit_below_the_model_itself_is_one_clear_error(model, scans, tmp_path):
    with pytest.raises(ConfigError, match="--max-memory 0.001: the model alone takes"):
        run(model, [scans], tmp_path, max_memory_gb=0.001)


@pytest.mark.parametrize("amount", [-1, float("inf"), float("nan"), 1e300])
def test_an_impossible_memory_limit_is_refused(amount):
    with pytest.raises(ConfigError, match=rf"--max-memory {re.escape(f'{amount:g}')}: must be 0 to"):
        InferOptions(max_memory_gb=amount)


def test_negative_settings_are_refused():
    with pytest.raises(ConfigError, match="--readers -1: must not be negative"):
        InferOptions(readers=-1)


def test_a_scan_that_another_run_has_claimed_is_skipped(model, scans, tmp_path):
    opened = open_model(model, "cpu")
    jobs, _ = gather([scans])
    with RunLedger(tmp_path, opened, InferOptions()).claim(jobs[3]):
        summary = run(opened, [scans], tmp_path)
    left = next(outcome for outcome in summary.outcomes if outcome.name == jobs[3].name)
    assert (left.status, left.reason) == ("skipped", "another run has claimed it")
    assert summary.count("done") == 9


def test_two_processes_segment_each_scan_once(model, scans, tmp_path):
    words = [sys.executable, "-m", "slicemill", "infer", str(model), str(scans), "--out", str(tmp_path)]
    runs = [subprocess.Popen(words, cwd=HERE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    done = [line["name"] for line in read_lines(tmp_path / "ledger.jsonl") if line["status"] == "done"]
    assert sorted(done) == [f"scan-{number}.nii.gz" for number in range(10)]


def test_invalid_device_numbers_are_refused(model):
    for devices in ((), (0, 0), (-1,)):
        with pytest.raises(ConfigError, match="expected numbers of GPUs, each once, like 0,1"):
            InferOptions(devices=devices)
    with pytest.raises(UsageError, match="--device 1: the CPU has only device 0"):
        open_model(model, "cpu", 1)


def test_auto_does_not_replace_missing_gpus_by_the_cpu_when_devices_are_named(model, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "explain_missing_cuda", lambda: "no NVIDIA driver found")
    with pytest.raises(ProviderError, match="--device 1: auto would use the CPU, .* no NVIDIA driver found"):
        open_model(model, "auto", 1)
    opened = open_model(model, "auto")
    with pytest.raises(ProviderError, match=r"--device 0,1: cpu runs on one device, .*no NVIDIA driver found"):
        run(opened, [scans], tmp_path / "out", devices=(0, 1))
    assert not list(tmp_path.rglob("summary.json"))
