"""Warnings of scans that may be no CT: in reports, ledgers, summaries, on the terminal; refused with --strict."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest

import slicemill
from slicemill.common.errors import ScanError
from slicemill.common.files import read_lines
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job, load_scan
from slicemill.infer.network.model import open_model
from slicemill.infer.runtime.onnx_file import read_metadata
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.model_card import METADATA_KEY
from slicemill.store.reader import open_store
from slicemill.store.split import read_split
from tests.infer.commands import run_command
from tests.infer.networks import change_training_scans

NO_CT = "HU range 0..255 does not look like a CT"
SPACING = (3.0, 0.9, 0.8)


@pytest.fixture
def plain(model, tmp_path):
    """The model without it: noise is unlike any scan."""
    return change_training_scans(model, tmp_path / "tiny.onnx")


@pytest.fixture
def scans(tmp_path, rng):
    """A CT, and a brain MR of 0 to 255."""
    folder = tmp_path / "scans"
    write_nifti(folder / "chest.nii.gz", rng.integers(-1000, 1500, (3, 64, 64), dtype=np.int16), SPACING)
    mr = rng.integers(0, 256, (3, 64, 64), dtype=np.int16)
    mr[0, 0, :2] = 0, 255
    write_nifti(folder / "head.nii.gz", mr, SPACING)
    return folder


def test_a_scan_that_is_no_ct_is_told_everywhere(plain, scans, tmp_path):
    out = tmp_path / "out"
    result = run_command("infer", plain, scans, "--out", out, "--provider", "cpu")
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
    again = run_command("infer", plain, scans, "--out", out, "--provider", "cpu")
    assert "2 skipped" in again.output
    assert f"warning: head.nii.gz: {NO_CT}" in again.output, "also where nothing is left to do"


def test_strict_refuses_it_and_a_run_without_strict_takes_it(plain, scans, tmp_path):
    words = ("infer", plain, scans, "--out", tmp_path / "out", "--provider", "cpu")
    result = run_command(*words, "--strict")
    assert result.exit_code == 1
    assert "1 done, 0 skipped (done before), 1 failed" in result.output
    assert f"head.nii.gz: --strict refuses a scan with warnings: {NO_CT}." in result.output
    assert not (tmp_path / "out" / "head.nii.gz").exists()
    assert run_command(*words).exit_code == 0
    assert (tmp_path / "out" / "head.nii.gz").exists()


def test_the_python_api_has_the_warnings_and_refuses_too(plain, scans):
    result = slicemill.segment(scans / "head.nii.gz", plain, provider="cpu")
    assert result.report.warnings == (NO_CT,)
    with pytest.raises(ScanError, match="refuses a scan with warnings"):
        slicemill.segment(scans / "head.nii.gz", plain, provider="cpu", strict=True)


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


def test_a_model_says_what_its_training_scans_were_like(model, trained, stored):
    scans = open_model(model, "cpu").info.training_scans
    store = open_store(stored)
    cases = [store[case_id] for case_id in read_split(trained / "split.json", store.case_ids).train]
    assert scans.cases == len(cases)
    apart = [case.info.spacing_mm[0] for case in cases]
    assert scans.slice_spacing_mm == (round(min(apart), 3), round(max(apart), 3))
    assert "training_scans" not in read_metadata(model.read_bytes(), METADATA_KEY), "the card is what others read"
    result = run_command("info", model)
    assert f"; {len(cases)} scans were looked at" in result.output


def test_a_scan_unlike_those_of_the_training_is_told_and_refused_by_strict(model, collection, tmp_path):
    image = nib.load(min(collection.rglob("volume-*")))
    voxels = np.asarray(image.dataobj)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), image.affine), tmp_path / "scans" / "like.nii")
    unlike = nib.Nifti1Image((voxels + 400).astype(np.int16), image.affine @ np.diag([1, 1, 30.0, 1]))
    nib.save(unlike, tmp_path / "scans" / "unlike.nii")
    words = ("infer", model, tmp_path / "scans", "--provider", "cpu", "--out")
    result = run_command(*words, tmp_path / "out")
    (warning,) = json.loads((tmp_path / "out" / "unlike.json").read_text())["warnings"]
    assert warning.startswith("outside of what the model was trained on: its slices are ")
    assert re.search(r"50 % of its body are below \d+ HU", warning)
    assert f"warning: unlike.nii: {warning}" in result.output
    assert json.loads((tmp_path / "out" / "like.json").read_text())["warnings"] == []
    strict = run_command(*words, tmp_path / "strict", "--strict")
    assert "unlike.nii: --strict refuses a scan with warnings: outside of what the model was trained" in strict.output
    assert (tmp_path / "strict" / "like.nii").exists()
    for one in (unlike, tmp_path / "scans" / "unlike.nii"):
        assert slicemill.segment(one, model, provider="cpu").report.warnings == (warning,)
