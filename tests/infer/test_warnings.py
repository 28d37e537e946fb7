"""Warnings of scans that may be no CT: in reports, ledgers, summaries, on the terminal; refused with --strict."""

import csv
import json

import numpy as np
import pytest

import slicemill
from slicemill.common.errors import ScanError
from slicemill.common.files import read_lines
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job, load_scan
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from tests.infer.commands import run_command

NO_CT = "HU range 0..255 does not look like a CT"
SPACING = (3.0, 0.9, 0.8)


@pytest.fixture
def scans(tmp_path, rng):
    """A CT, and a brain MR of 0 to 255."""
    folder = tmp_path / "scans"
    write_nifti(folder / "chest.nii.gz", rng.integers(-1000, 1500, (3, 64, 64), dtype=np.int16), SPACING)
    mr = rng.integers(0, 256, (3, 64, 64), dtype=np.int16)
    mr[0, 0, :2] = 0, 255
    write_nifti(folder / "head.nii.gz", mr, SPACING)
    return folder


def test_a_scan_that_is_no_ct_is_told_everywhere(model, scans, tmp_path):
    out = tmp_path / "out"
    result = run_command("infer", model, scans, "--out", out, "--provider", "cpu")
    assert result.exit_code == 0
    assert f"warning: head.nii.gz: {NO_CT}" in result.output
    assert "warning: chest.nii.gz" not in result.output
    assert json.loads((out / "head.json").read_text())["warnings"] == [NO_CT]
    assert json.loads((out / "chest.json").read_text())["warnings"] == []
    outcomes = {one["name"]: one for one in json.loads((out / "summary.json").read_text())["outcomes"]}
    assert (outcomes["head.nii.gz"]["warnings"], outcomes["chest.nii.gz"]["warnings"]) == (NO_CT, "")
    with (out / "summary.csv").open(newline="") as stream:
        assert {row["name"]: row["warnings"] for row in csv.DictReader(stream)}["head.nii.gz"] == NO_CT
    done = {line["name"]: line for line in read_lines(out / "ledger.jsonl") if line["status"] == "done"}
    assert done["head.nii.gz"]["warnings"] == NO_CT
    assert "warnings" not in done["chest.nii.gz"]
    again = run_command("infer", model, scans, "--out", out, "--provider", "cpu")
    assert "2 skipped" in again.output
    assert f"warning: head.nii.gz: {NO_CT}" in again.output, "also where nothing is left to do"


def test_strict_refuses_it_and_a_run_without_strict_takes_it(model, scans, tmp_path):
    words = ("infer", model, scans, "--out", tmp_path / "out", "--provider", "cpu")
    result = run_command(*words, "--strict")
    assert result.exit_code == 1
    assert "1 done, 0 skipped (done before), 1 failed" in result.output
    assert f"head.nii.gz: --strict refuses a scan with warnings: {NO_CT}." in result.output
    assert not (tmp_path / "out" / "head.nii.gz").exists()
    assert run_command(*words).exit_code == 0
    assert (tmp_path / "out" / "head.nii.gz").exists()


def test_the_python_api_has_the_warnings_and_refuses_too(model, scans):
    result = slicemill.segment(scans / "head.nii.gz", model, provider="cpu")
    assert result.report.warnings == (NO_CT,)
    with pytest.raises(ScanError, match="refuses a scan with warnings"):
        slicemill.segment(scans / "head.nii.gz", model, provider="cpu", strict=True)


@pytest.mark.parametrize(
    ("change", "spacing"),
    [
        (np.abs, SPACING),
        (lambda voxels: (voxels / 3).astype(np.float32), SPACING),
        (lambda voxels: voxels, (1.0, 1.0, 1.0)),
        (lambda voxels: voxels[:1], SPACING),
    ],
)
def test_the_warnings_of_infer_are_those_of_ingest_for_a_file_and_a_stored_case(change, spacing, tmp_path, rng):
    voxels = rng.integers(-1000, 1500, (3, 20, 24), dtype=np.int16)
    write_nifti(tmp_path / "a" / "ct.nii", change(voxels), spacing)
    report = ingest(discover(tmp_path / "a"), tmp_path / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
    (expected,) = (outcome.warnings for outcome in report.outcomes)
    assert len(expected) == 1
    assert load_scan(Job(name="a", path=tmp_path / "a" / "ct.nii")).warnings == expected
    (job,), _ = gather([tmp_path / "store"])
    assert load_scan(job).warnings == expected


def test_a_stored_cases_warnings_about_its_mask_are_not_the_scans(tmp_path, rng):
    voxels = rng.integers(-1000, 1500, (3, 20, 24), dtype=np.int16)
    voxels[0, 0] = -3024
    write_nifti(tmp_path / "a" / "volume-1.nii", voxels, SPACING)
    write_nifti(tmp_path / "a" / "segmentation-1.nii", np.zeros((3, 20, 24), np.uint8), SPACING)
    ingest(discover(tmp_path / "a"), tmp_path / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
    assert len(open_store(tmp_path / "store")["volume-1"].info.warnings) == 2
    (job,), _ = gather([tmp_path / "store"])
    assert load_scan(job, strict=True).warnings == ()
