"""DICOM SR: the measured lesions, read back."""

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.geometry import voxel_ml
from slicemill.ct.labels import LITS_LABELS
from tests.ct.dicom_objects.series import IN_PLANE, SAGITTAL, make_label, make_series
from tests.ct.dicom_objects.test_segmentation import MAKER


def write(folder: Path, directions: tuple) -> tuple:
    """Write a report; return it, the SEG, the label, the scan and the series."""
    series = make_series(directions)
    label = make_label(series.grid.stored_shape)
    image = np.random.default_rng(0).integers(-100, 200, label.shape, dtype=np.int16)
    scan = SegmentedScan(label=label, labels=LITS_LABELS, image=image, probability=(label * 100).astype(np.uint8))
    write_results(folder / "case", series, scan, MAKER, DicomOptions(sr=True))
    report = highdicom.sr.srread(folder / "case.sr.dcm")
    return report, pydicom.dcmread(folder / "case.seg.dcm"), label, image, series


@pytest.mark.parametrize("directions", [*IN_PLANE, SAGITTAL])
def test_each_lesion_has_its_figures_and_refers_to_its_segment(directions: tuple, tmp_path: Path) -> None:
    report, seg, label, image, series = write(tmp_path, directions)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["tumor 1", "tumor 2"]
    segments = {one.TrackingUID: one.SegmentNumber for one in seg.SegmentSequence if "TrackingUID" in one}
    single = label == 2
    single[1:3, 2:4, 3:6] = False
    for group, mask in zip(groups, ((label == 2) & ~single, single), strict=True):
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert reference.referenced_segment_numbers[0] == segments[group.tracking_uid]
        values = {
            (one.name.meaning, getattr(one.derivation, "meaning", "")): one.value for one in group.get_measurements()
        }
        expected = mask.sum() * voxel_ml(series.grid.affine_lps) * 1000
        assert values["Volume", ""] == pytest.approx(expected, abs=1e-3)
        assert values["Attenuation Coefficient", "Mean"] == pytest.approx(image[mask].mean(), abs=1e-3)
        assert values["Attenuation Coefficient", "Standard Deviation"] == pytest.approx(image[mask].std(), abs=1e-3)
        assert values["Mean probability of tumor by the network", "Mean"] == pytest.approx(200 / 255, abs=1e-4)


@pytest.mark.parametrize("directions", [*IN_PLANE, SAGITTAL])
def test_the_ends_of_the_axes_are_as_far_apart_as_the_axes_are_long(directions: tuple, tmp_path: Path) -> None:
    report, _, label, _, series = write(tmp_path, directions)
    groups = report.content.get_image_measurement_groups()
    drawn = [group for group in groups if group.tracking_identifier != "all lesions"]
    assert len(drawn) == 2
    headers = {header.SOPInstanceUID: header for header in series.headers}
    inside = series.grid.affine_lps
    lesion = (np.argwhere(label == 2)[:, ::-1] @ inside[:3, :3].T + inside[:3, 3]).round(6)
    for group in drawn:
        for one in group.get_measurements():
            (coordinates,) = one.referenced_coordinates
            points = np.asarray(coordinates.value, dtype=float)
            if "ContentSequence" in coordinates:  # on a source slice
                image = coordinates.ContentSequence[0].ReferencedSOPSequence[0]
                header = headers[image.ReferencedSOPInstanceUID]
                row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
                down, right = (float(number) for number in header.PixelSpacing)
                pixels = points - 0.5
                origin = np.array(header.ImagePositionPatient, dtype=float)
                points = origin + pixels[:, :1] * right * row + pixels[:, 1:] * down * column
            assert np.linalg.norm(points[1] - points[0]) == pytest.approx(one.value, abs=1e-3)
            # each end is half a pixel from a voxel of a lesion
            assert max(np.abs(lesion - point).sum(axis=1).min() for point in points) <= max(series.grid.spacing_mm[1:])


def test_a_report_without_lesions_says_so(tmp_path: Path) -> None:
    series = make_series()
    scan = SegmentedScan(label=np.zeros(series.grid.stored_shape, np.uint8), labels=LITS_LABELS)
    write_results(tmp_path / "case", series, scan, MAKER, DicomOptions(sr=True))
    content = highdicom.sr.srread(tmp_path / "case.sr.dcm").content
    (group,) = content.get_image_measurement_groups()
    assert {one.name.meaning: one.value for one in group.get_measurements()} == {"Number of lesions": 0, "Volume": 0}
    assert content.get_volumetric_roi_measurement_groups() == []


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("directions", [IN_PLANE[2], SAGITTAL])
def test_dcmtk_reads_the_report(directions: tuple, tmp_path: Path) -> None:
    write(tmp_path, directions)
    result = subprocess.run(["dsrdump", str(tmp_path / "case.sr.dcm")], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.count("Long Axis") == 2


def test_it_is_marked_as_unverified_research(tmp_path: Path) -> None:
    report, seg, *_ = write(tmp_path, IN_PLANE[0])
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert report.SeriesDescription == "slicemill research, not for diagnosis"
    assert (report.PatientID, report.StudyInstanceUID) == ("MARKER-ID", "1.2.3")
    referenced = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for one in study.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    assert seg.SOPInstanceUID in referenced
    assert codes.DCM.ImagingMeasurementReport.value == report.ConceptNameCodeSequence[0].CodeValue
