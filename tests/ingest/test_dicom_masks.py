"""Masks in DICOM in ingest: SEG and RTSTRUCT by what they refer to, series of structures by folder."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from slicemill.common.files import read_lines
from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.labels import LITS_LABELS
from slicemill.store.reader import open_store
from tests.ct.dicom_objects.series import IN_PLANE, make_label, make_series, write_series
from tests.ct.dicom_objects.test_segmentation import MAKER
from tests.infer.commands import run_command

pytestmark = pytest.mark.usefixtures("one_worker")

LABELS = ["--labels", "liver=1,tumor=2"]


def write_patient(folder: Path, name: str, kind: str, number: int) -> np.ndarray:
    """Write a series into a folder and a mask that refers to it into another; return the mask, uint8[z, y, x]."""
    series = make_series(IN_PLANE[number], (5, 16, 18))
    for header in series.headers:
        header.SeriesInstanceUID = f"1.2.3.4.{number}"
        header.SOPInstanceUID = f"1.2.3.4.{number}.{header.InstanceNumber}"
        header.FrameOfReferenceUID = f"1.2.3.5.{number}"
    label = make_label(series.grid.stored_shape)
    hu = np.random.default_rng(number).integers(-200, 200, label.shape, dtype=np.int16)
    write_series(series, folder / name, hu)
    options = DicomOptions(
        seg=kind != "rtstruct", rtstruct=kind == "rtstruct", seg_type="labelmap" if kind == "labelmap" else "binary"
    )
    scan = SegmentedScan(label=label, labels=LITS_LABELS)
    write_results(folder / "results" / f"any-{9 - number}", series, scan, MAKER, options)
    return label


@pytest.mark.parametrize("kind", ["binary", "labelmap", "rtstruct"])
def test_masks_are_paired_by_what_they_refer_to(kind: str, tmp_path: Path) -> None:
    labels = {f"p{number}": write_patient(tmp_path / "data", f"p{number}", kind, number) for number in (1, 2, 3)}
    result = run_command("ingest", tmp_path / "data", tmp_path / "store", *LABELS, "--workers", "1")
    assert result.exit_code == 0, result.output
    store = open_store(tmp_path / "store")
    assert sorted(store.case_ids) == sorted(labels)
    for case_id, label in labels.items():
        assert np.array_equal(store[case_id].label[:], label)
        assert store[case_id].info.mask.name.startswith("results/any-")
    again = run_command("ingest", tmp_path / "data", tmp_path / "store", *LABELS, "--rehash", "--workers", "1")
    assert "3 unchanged" in again.output, again.output


def test_nothing_of_a_patient_is_in_the_store(tmp_path: Path) -> None:
    for number, kind in ((1, "binary"), (2, "rtstruct")):
        write_patient(tmp_path / "data", f"p{number}", kind, number)
    result = run_command("ingest", tmp_path / "data", tmp_path / "store", *LABELS, "--workers", "1")
    stored = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert b"MARKER" not in b"".join([*stored, result.output.encode()]).upper()


def test_a_mask_that_refers_to_no_series_is_left_out_by_name(tmp_path: Path) -> None:
    write_patient(tmp_path / "data", "p1", "binary", 1)
    write_patient(tmp_path / "other", "p2", "binary", 2)
    (tmp_path / "other/results/any-7.seg.dcm").rename(tmp_path / "data/results/alone.seg.dcm")
    result = run_command("ingest", tmp_path / "data", tmp_path / "store", *LABELS, "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "alone.seg.dcm: a mask in DICOM that refers to no series here" in result.output.replace("\n", "")


def test_two_masks_of_one_series_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    label = write_patient(tmp_path / "data", "p1", "binary", 1)
    write_patient(tmp_path / "data", "p1", "rtstruct", 1)
    words = ["ingest", tmp_path / "data", tmp_path / "store", *LABELS, "--workers", "1"]
    result = run_command(*words)
    assert result.exit_code == 1
    assert "2 masks refer to this series" in result.output
    result = run_command(*words, "--mask", "*.seg.dcm")
    assert result.exit_code == 0, result.output
    assert np.array_equal(open_store(tmp_path / "store")["p1"].label[:], label)


def test_a_mask_of_another_place_fails_its_case(tmp_path: Path) -> None:
    write_patient(tmp_path / "data", "p1", "binary", 1)
    path = tmp_path / "data/results/any-8.seg.dcm"
    seg = pydicom.dcmread(path)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 0.7
    seg.save_as(path)
    result = run_command("ingest", tmp_path / "data", tmp_path / "store", *LABELS, "--workers", "1")
    assert result.exit_code == 1
    assert "0.7 mm away" in read_lines(tmp_path / "store" / "failures.jsonl")[0]["reason"]


def test_series_of_structures_are_masks_by_their_folders(tmp_path: Path) -> None:
    """As 3D-IRCADb ships them: PATIENT_DICOM, and MASKS_DICOM with a folder for each structure."""
    labels = {}
    for number in (1, 2):
        series = make_series(IN_PLANE[0], (5, 16, 18))
        for header in series.headers:
            header.SeriesInstanceUID = f"1.2.3.4.{number}"
            header.SOPInstanceUID = f"1.2.3.4.{number}.{header.InstanceNumber}"
        label = labels[number] = make_label(series.grid.stored_shape)
        folder = tmp_path / "data" / f"3Dircadb1.{number}"
        write_series(series, folder / "PATIENT_DICOM", np.full(label.shape, 20, np.int16) + label)
        write_series(series, folder / "LABELLED_DICOM", label.astype(np.int16))
        for name, value in (("liver", 1), ("livertumor", 2), ("bone", 3)):
            write_series(series, folder / "MASKS_DICOM" / name, (label == value).astype(np.int16) * 255)
    words = ["--labels", "liver=1,livertumor=2", "--workers", "1"]
    result = run_command("ingest", tmp_path / "data", tmp_path / "store", *words)
    assert result.exit_code == 0, result.output
    store = open_store(tmp_path / "store")
    assert len(store.case_ids) == 2
    for case_id in store.case_ids:
        number = int(case_id.split(".")[1][0])
        assert np.array_equal(store[case_id].label[:], labels[number])
