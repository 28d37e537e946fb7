"""DICOM RTSTRUCT: outlines that fill back to the very same pixels."""

from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest

from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.outlines import fill_outlines
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries
from slicemill.ct.labels import LITS_LABELS
from tests.ct.dicom_objects.series import IN_PLANE, PATIENT, SAGITTAL, make_label, make_series
from tests.ct.dicom_objects.test_segmentation import MAKER


def write(folder: Path, series: SourceSeries, label: np.ndarray, holes: str = "keyhole") -> pydicom.Dataset:
    scan = SegmentedScan(label=label, labels=LITS_LABELS)
    write_results(folder / "case", series, scan, MAKER, DicomOptions(rtstruct=True, holes=holes))
    return pydicom.dcmread(folder / "case.rtstruct.dcm")


def fill(structures: pydicom.Dataset, number: int, series: SourceSeries) -> np.ndarray:
    """Return bool[k, j, i] of a structure, from mm alone; the plane of a contour is the nearest one."""
    ni, nj, nk = series.grid.shape
    inside = np.zeros((nk, nj, ni), dtype=bool)
    (roi,) = [one for one in structures.ROIContourSequence if one.ReferencedROINumber == number]
    for contour in roi.ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        normal = np.cross(series.planes[0, 0], series.planes[0, 1])
        k = int(np.abs((series.planes[:, 2] - points[0]) @ normal).argmin())
        image = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        assert image == series.headers[k].SOPInstanceUID
        axes = series.planes[k, :2]
        pixels = (points - series.planes[k, 2]) @ np.linalg.pinv(axes)
        inside[k] ^= fill_outlines([pixels], (nj, ni))
    return inside


@pytest.mark.parametrize(("directions", "holes"), [*product([*IN_PLANE, SAGITTAL], ["keyhole", "xor"])])
def test_outlines_fill_back_to_the_very_same_pixels(directions: tuple, holes: str, tmp_path: Path) -> None:
    series = make_series(directions, shear_mm=0.4)
    label = make_label(series.grid.stored_shape)
    label[2, 4, 3] = 0  # a hole
    structures = write(tmp_path, series, label, holes)
    for value in (1, 2):
        assert np.array_equal(fill(structures, value, series), series.to_frames(label == value))


@pytest.mark.slow
def test_noise_fills_back_to_the_very_same_pixels(tmp_path: Path) -> None:
    series = make_series(IN_PLANE[7], (3, 40, 50))
    label = np.random.default_rng(0).choice([0, 1, 2], size=series.grid.stored_shape).astype(np.uint8)
    structures = write(tmp_path, series, label)
    for value in (1, 2):
        assert np.array_equal(fill(structures, value, series), series.to_frames(label == value))


def test_it_says_what_it_is_and_carries_patient_and_study(tmp_path: Path) -> None:
    series = make_series()
    structures = write(tmp_path, series, make_label(series.grid.stored_shape))
    assert {keyword: str(structures[keyword].value) for keyword in PATIENT} == PATIENT
    assert structures.SeriesDescription == "slicemill research, not for diagnosis"
    assert (structures.StructureSetLabel, structures.ApprovalStatus) == ("RESEARCH", "UNAPPROVED")
    names = [one.ROIName for one in structures.StructureSetROISequence]
    assert names == ["liver without tumors", "tumor"]
    assert {one.ROIGenerationAlgorithm for one in structures.StructureSetROISequence} == {"AUTOMATIC"}
    data = next(iter(structures.ROIContourSequence)).ContourSequence[0].ContourData
    assert all(len(str(number).rpartition(".")[2]) <= 3 for number in data)
    (frame,) = structures.ReferencedFrameOfReferenceSequence
    (of_series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert of_series.SeriesInstanceUID == "1.2.3.4"
    assert len(of_series.ContourImageSequence) == len(series.headers)


def test_a_contour_may_be_longer_than_64_kib(tmp_path: Path) -> None:
    series = make_series(shape=(2, 160, 160))
    label = np.zeros((2, 160, 160), dtype=np.uint8)
    label[0] = np.indices((160, 160)).sum(axis=0) % 2
    label[0, ::2] = 1  # holes of one pixel: more corners than 64 KiB hold
    structures = write(tmp_path, series, label)
    data = structures.ROIContourSequence[0].ContourSequence[0].ContourData
    assert sum(len(str(number)) + 1 for number in data) > 65536
    assert np.array_equal(fill(structures, 1, series), series.to_frames(label == 1))
