"""`infer --dicom-seg`, `--dicom-sr` and `--rtstruct`: DICOM results beside the masks of DICOM series."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pydicom
import pytest

from slicemill.common.files import read_json, read_lines
from slicemill.ct.formats.dicom_objects.options import ENDINGS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.run.dicom_results import ADDED
from tests.contents import content
from tests.ct.dicom_objects.series import IN_PLANE, PATIENT, make_series, write_series
from tests.ct.dicom_objects.test_segmentation import points_of, points_of_segment
from tests.infer.commands import run_command
from tests.infer.networks import write_model, write_threshold

HERE = Path(__file__).parents[2]
ALL = ["--dicom-seg", "--dicom-sr", "--rtstruct"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with two series, in two orientations; HU above 30 are tumor."""
    for name, directions in (("p1", IN_PLANE[3]), ("p2", IN_PLANE[5])):
        series = make_series(directions, (5, 16, 16))
        hu = np.full(series.grid.stored_shape, -50, dtype=np.int16)
        hu[1:3, 2:5, 3:9] = 90
        hu[3, 10:12, 12] = 80
        write_series(series, tmp_path / "scans" / name, hu)
    return tmp_path / "scans"


def names(out: Path) -> set[str]:
    return {path.name for path in out.rglob("*") if path.name.endswith(ENDINGS)}


def test_results_lie_where_the_mask_lies_and_refer_to_the_source(scans: Path, tmp_path: Path) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    result = run_command("infer", model, scans, "--out", out, "--provider", "cpu", *ALL)
    assert result.exit_code == 0, result.output
    for name in ("p1", "p2"):
        mask = nib.load(out / f"{name}.nii.gz")
        voxels = np.argwhere(np.asarray(mask.dataobj))
        affine = np.diag([-1, -1, 1, 1]) @ mask.affine
        expected = {tuple(p) for p in (voxels @ affine[:3, :3].T + affine[:3, 3]).round(2).tolist()}
        seg = pydicom.dcmread(out / f"{name}.seg.dcm")
        found = points_of_segment(seg, 1) | points_of_segment(seg, 2)  # two lesions, since there is a report
        assert found == expected
        assert len(seg.SegmentSequence) == 2
        assert {keyword: str(seg[keyword].value) for keyword in PATIENT} == PATIENT
        assert pydicom.dcmread(out / f"{name}.sr.dcm").PatientID == PATIENT["PatientID"]
        assert pydicom.dcmread(out / f"{name}.rtstruct.dcm").FrameOfReferenceUID == "1.2.3.5"


def test_nothing_of_a_patient_is_anywhere_else(scans: Path, tmp_path: Path) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    command = [sys.executable, "-m", "slicemill", "infer", str(model), str(scans), "--out", str(out), *ALL]
    result = subprocess.run(command, capture_output=True, cwd=HERE, check=True)
    others = [path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.name.endswith(ENDINGS)]
    everything = b"".join([*others, result.stdout, result.stderr]).upper()
    assert len(others) > 4
    assert b"MARKER" not in everything
    assert b"19010203" not in everything
    assert b"carry patient and study" in result.stdout


def count_labeled(out: Path) -> int:
    """Return the number of slices that the network labeled in the last run into a folder."""
    return int(read_json(out / "summary.json")["labeled"])


def test_a_rerun_with_an_option_added_writes_what_is_missing_without_the_network(scans: Path, tmp_path: Path) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    words = ["infer", model, scans, "--out", out, "--provider", "cpu"]
    run_command(*words)
    assert (names(out), count_labeled(out)) == (set(), 10)
    before = {path: path.stat().st_mtime_ns for path in out.glob("p*")}
    assert "2 done" in run_command(*words, "--dicom-seg").output
    assert (names(out), count_labeled(out)) == ({"p1.seg.dcm", "p2.seg.dcm"}, 0)
    assert "2 skipped" in run_command(*words, "--dicom-seg").output
    assert "2 done" in run_command(*words, "--dicom-seg", "--seg-type", "labelmap").output
    assert pydicom.dcmread(out / "p1.seg.dcm").SegmentationType == "LABELMAP"
    assert "2 done" in run_command(*words, "--rtstruct").output
    assert names(out) == {"p1.rtstruct.dcm", "p2.rtstruct.dcm"}, "results of other options are removed"
    assert read_lines(out / "ledger.jsonl")[-1]["extras"] == [".rtstruct.dcm"]
    assert count_labeled(out) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "mask, report and picture stay"
    rows = read_json(out / "summary.json")["outcomes"]
    assert {row["reason"] for row in rows} == {ADDED}
    assert all(row["answer"].startswith("tumor: yes") for row in rows)
    assert "2 done" in run_command(*words).output
    assert (names(out), count_labeled(out)) == (set(), 0)


def write_sure(path: Path) -> Path:
    """Write a model of tumor without probabilities."""
    model = onnx.load(write_model(path, {"tumor": 1}))
    card = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps({**card, "tumor": "tumor"})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_threshold, ["--dicom-seg", "--seg-per-lesion"]),
        (write_threshold, ["--dicom-seg", "--rtstruct"]),
        (write_sure, ["--dicom-sr"]),
    ],
)
def test_added_results_are_those_of_one_run(
    write: Callable[[Path], Path], words: list[str], scans: Path, tmp_path: Path
) -> None:
    model, added, whole = write(tmp_path / "net.onnx"), tmp_path / "added", tmp_path / "whole"
    run_command("infer", model, scans, "--out", added, "--provider", "cpu")
    for out in (added, whole):
        assert run_command("infer", model, scans, "--out", out, "--provider", "cpu", *words).exit_code == 0
    assert (count_labeled(added), count_labeled(whole)) == (0, 10)
    assert names(added) == names(whole)
    for name in names(whole):
        one, other = (pydicom.dcmread(out / name) for out in (added, whole))
        assert strip_own(one) == strip_own(other)


def strip_own(dataset: pydicom.Dataset) -> str:
    """Return the text of an object without what is new in each: UIDs of its own, dates and times."""
    dataset.remove_private_tags()
    text = [str(element) for element in dataset.iterall() if element.VR not in {"DA", "TM", "DT", "UI", "SQ"}]
    pixels = dataset.get("PixelData", b"")
    return "\n".join(text) + hashlib.sha256(pixels).hexdigest()


@pytest.mark.parametrize("change", ["mask", "scan", "option", "no hash"])
def test_a_mask_that_is_not_the_one_of_the_ledger_is_made_again(change: str, scans: Path, tmp_path: Path) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    words = ["infer", model, scans, "--out", out, "--provider", "cpu"]
    run_command(*words)
    ledger, path = out / "ledger.jsonl", out / "p1.nii.gz"
    before = content(path)
    more, again = [], 5
    if change == "mask":
        shutil.copy(out / "p2.nii.gz", path)
    elif change == "scan":
        os.utime(next((scans / "p1").iterdir()), (1, 1))
    elif change == "option":
        more, again = ["--separate"], 10
    else:
        ledger.write_text(re.sub(r', "mask_sha256": "\w+"', "", ledger.read_text()))
        again = 10
    assert "2 done" in run_command(*words, "--dicom-seg", *more).output
    assert count_labeled(out) == again
    assert content(path) == before


def test_a_report_with_probabilities_needs_the_network_again(scans: Path, tmp_path: Path) -> None:
    """The mean probability of a lesion is nowhere on disk; a model without probabilities needs none."""
    without = write_model(tmp_path / "without.onnx", {"liver": 1})
    for model, labeled in ((write_threshold(tmp_path / "with.onnx"), 10), (without, 0)):
        out = tmp_path / model.stem
        words = ["infer", model, scans, "--out", out, "--provider", "cpu"]
        run_command(*words)
        assert "2 done" in run_command(*words, "--dicom-sr").output
        assert count_labeled(out) == labeled


def test_a_result_of_a_killed_run_is_written_again(scans: Path, tmp_path: Path) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    words = ["infer", model, scans, "--out", out, "--provider", "cpu", "--dicom-seg"]
    run_command(*words)
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    begun = [line for line in lines if '"begun"' in line]
    ledger.write_text("".join(begun))  # killed before the masks
    for path in out.glob("*.nii.gz"):
        path.unlink()
    (out / ".p1.seg.dcm.0123abcd.part.seg.dcm").write_bytes(b"half")
    assert "2 done" in run_command(*words).output
    assert names(out) == {"p1.seg.dcm", "p2.seg.dcm"}


def test_an_input_in_another_format_is_refused_before_anything_runs(scans: Path, tmp_path: Path) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    write_nifti(scans / "other.nii.gz", np.zeros((3, 16, 16), dtype=np.int16), (1.0, 1.0, 1.0))
    result = run_command("infer", model, scans, "--out", out, "--provider", "cpu", "--dicom-seg")
    assert result.exit_code == 1
    assert "other.nii.gz: a DICOM result refers to the DICOM files of its scan" in result.output
    assert "--dicom-seg" in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--seg-type", "labelmap"], "--seg-type"),
        (["--seg-per-lesion"], "--seg-per-lesion"),
        (["--dicom-seg", "--rtstruct-holes", "xor"], "--rtstruct-holes"),
    ],
)
def test_an_option_without_its_result_is_refused(words: list[str], flag: str, scans: Path, tmp_path: Path) -> None:
    model = write_threshold(tmp_path / "net.onnx")
    result = run_command("infer", model, scans, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert flag in result.output


def test_codes_of_a_table_are_written(scans: Path, tmp_path: Path) -> None:
    model, out, table = write_threshold(tmp_path / "net.onnx"), tmp_path / "out", tmp_path / "codes.csv"
    table.write_text(
        "label,category,type,region\n"
        "tumor,SCT^49755003^Morphologically Abnormal Structure,SCT^4147007^Mass,SCT^15776009^Pancreas\n"
    )
    words = ["infer", model, scans, "--out", out, "--provider", "cpu", "--dicom-seg"]
    run_command(*words)
    assert "2 done" in run_command(*words, "--codes", table).output
    (segment,) = pydicom.dcmread(out / "p1.seg.dcm").SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Mass"
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Pancreas"
    table.write_text("label,type\ntumor,1\n")
    result = run_command(*words, "--codes", table)
    assert result.exit_code == 1
    assert "codes.csv: a table of codes has the columns" in result.output


def test_points_are_compared_in_mm() -> None:
    label = np.zeros((2, 2, 2), dtype=np.uint8)
    label[1, 0, 1] = 1
    assert points_of(label, np.diag([2.0, 3.0, 4.0, 1.0]), 1) == {(2.0, 0.0, 4.0)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_anywhere_leaves_whole_files_and_the_next_one_does_the_rest(
    scans: Path, tmp_path: Path
) -> None:
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "out"
    command = [sys.executable, "-m", "slicemill", "infer", str(model), str(scans), "--out", str(out), *ALL]
    moment = random.Random(5)  # noqa: S311 (a choice of moments, no secret)
    for _ in range(12):
        process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(read_lines(out / "ledger.jsonl"))
        while process.poll() is None and len(read_lines(out / "ledger.jsonl")) == before:
            time.sleep(0.002)
        time.sleep(moment.random() * 0.6)
        process.kill()
        process.wait()
        for path in out.rglob("*.dcm"):
            if not path.name.startswith("."):
                pydicom.dcmread(path).SOPInstanceUID  # noqa: B018 (a half file raises)
        for line in read_lines(out / "ledger.jsonl"):
            if line["status"] == "done":
                assert all((out / line["name"].replace(".nii.gz", ending)).exists() for ending in ENDINGS)
        if moment.random() < 0.5:  # begin again
            shutil.rmtree(out)
    assert subprocess.run(command, cwd=HERE, capture_output=True, check=False).returncode == 0
    assert names(out) == {f"{name}{ending}" for name in ("p1", "p2") for ending in ENDINGS}
    assert not list(out.rglob(".*.part*"))
