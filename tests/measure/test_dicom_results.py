"""`measure --dicom-seg`, `--dicom-sr`, `--rtstruct`: DICOM results of masks that exist beside a DICOM scan."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from slicemill.common.files import read_json
from slicemill.ct.formats.dicom_objects.options import ENDINGS
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.geometry import Grid
from tests.ct.dicom_objects.series import IN_PLANE, SAGITTAL, make_label, make_series, write_series
from tests.ct.dicom_objects.test_segmentation import points_of, points_of_segment
from tests.infer.commands import run_command

LABELS = ["--labels", "liver=1,tumor=2"]


def write_case(folder: Path, directions: tuple = IN_PLANE[6], *, turned: bool = False) -> tuple:
    """Write a series and a mask of it; return label, its affine and the mask."""
    series = make_series(directions)
    label = make_label(series.grid.stored_shape)
    hu = np.random.default_rng(1).integers(0, 90, label.shape, dtype=np.int16)
    write_series(series, folder / "scans" / "p1", hu)
    grid = series.grid
    if turned:  # the same voxels in a file whose second and third axis run the other way
        flip = np.diag([1.0, -1.0, -1.0, 1.0])
        flip[1, 3], flip[2, 3] = grid.shape[1] - 1, grid.shape[2] - 1
        grid = Grid(shape=grid.shape, affine=grid.affine @ flip)
    mask = folder / "masks" / "p1.nii.gz"
    write_volume(mask, make_header(grid), np.uint8, grid.to_file(label))
    return label, series.grid.affine_lps, mask


def names(out: Path) -> set[str]:
    return {path.name for path in out.rglob("*") if path.name.endswith(ENDINGS)}


@pytest.mark.parametrize("directions", [IN_PLANE[0], IN_PLANE[6], SAGITTAL])
@pytest.mark.parametrize("turned", [False, True])
def test_results_lie_where_the_mask_lies(directions: tuple, turned: bool, tmp_path: Path) -> None:
    label, affine, _ = write_case(tmp_path, directions, turned=turned)
    words = ["measure", tmp_path / "masks", "--image", tmp_path / "scans", "--out", tmp_path / "out", *LABELS]
    result = run_command(*words, "--dicom-seg")
    assert result.exit_code == 0, result.output
    seg = pydicom.dcmread(tmp_path / "out" / "p1.seg.dcm")
    for value in (1, 2):
        assert points_of_segment(seg, value) == points_of(label, affine, value)
    assert {one.SegmentAlgorithmType for one in seg.SegmentSequence} == {"SEMIAUTOMATIC"}


def test_the_report_has_the_figures_of_the_record(tmp_path: Path) -> None:
    _, _, mask = write_case(tmp_path)
    out = tmp_path / "out"
    result = run_command("measure", mask, "--image", tmp_path / "scans" / "p1", "--out", out, *LABELS, "--dicom-sr")
    assert result.exit_code == 0, result.output
    lesions = read_json(out / "p1.json")["lesions"]
    content = highdicom.sr.srread(out / "p1.sr.dcm").content
    for lesion, group in zip(lesions, content.get_volumetric_roi_measurement_groups(), strict=True):
        values = {
            (one.name.meaning, getattr(one.derivation, "meaning", "")): one.value for one in group.get_measurements()
        }
        assert values["Volume", ""] == pytest.approx(lesion["volume_mm3"], abs=1e-3)
        assert values["Attenuation Coefficient", "Mean"] == pytest.approx(lesion["hu"]["mean"], abs=1e-3)
    drawn = [one for one in content.get_image_measurement_groups() if one.tracking_identifier != "all lesions"]
    for lesion, group in zip(lesions, drawn, strict=True):
        values = {one.name.meaning: one.value for one in group.get_measurements()}
        assert values["Long Axis"] == pytest.approx(lesion["max_axial_diameter_mm"], abs=1e-3)
        assert values["Short Axis"] == pytest.approx(lesion["perpendicular_mm"], abs=1e-3)


def test_a_rerun_writes_what_is_added_and_removes_what_is_not_requested(tmp_path: Path) -> None:
    write_case(tmp_path)
    out = tmp_path / "out"
    words = ["measure", tmp_path / "masks", "--image", tmp_path / "scans", "--out", out, *LABELS]
    assert "1 done" in run_command(*words).output
    assert "1 skipped" in run_command(*words).output
    assert "1 done" in run_command(*words, "--dicom-seg").output
    assert "1 skipped" in run_command(*words, "--dicom-seg").output
    assert names(out) == {"p1.seg.dcm"}
    assert "1 done" in run_command(*words, "--rtstruct").output
    assert names(out) == {"p1.rtstruct.dcm"}


def test_a_scan_in_another_format_is_refused_before_anything_runs(tmp_path: Path) -> None:
    _, _, mask = write_case(tmp_path)
    out = tmp_path / "out"
    result = run_command("measure", mask, "--out", out, *LABELS, "--dicom-seg")
    assert result.exit_code == 1
    assert "p1.nii.gz: a DICOM result refers to the DICOM files" in result.output
    result = run_command("measure", mask, "--image", mask, "--out", out, *LABELS, "--dicom-seg")
    assert result.exit_code == 1
    assert "is no DICOM" in result.output
    assert not out.exists()


def test_nothing_of_a_patient_is_anywhere_else(tmp_path: Path) -> None:
    write_case(tmp_path)
    out = tmp_path / "out"
    words = ["measure", tmp_path / "masks", "--image", tmp_path / "scans", "--out", out, *LABELS]
    result = run_command(*words, "--dicom-seg", "--dicom-sr", "--rtstruct")
    others = [path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.name.endswith(ENDINGS)]
    assert b"MARKER" not in b"".join([*others, result.output.encode()]).upper()
    assert names(out) == {"p1.seg.dcm", "p1.sr.dcm", "p1.rtstruct.dcm"}
