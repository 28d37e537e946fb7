"""DICOM SEG: what is written, read back by other programs."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from slicemill.common.errors import LabelError, ScanError
from slicemill.ct.formats.dicom_objects.maker import UNKNOWN_MAKER, Maker
from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries, describe_source, make_uid
from slicemill.ct.labels import LITS_LABELS, make_labels
from tests.ct.dicom_objects.series import IN_PLANE, PATIENT, SAGITTAL, make_label, make_series, write_series

MAKER = Maker(name="liver.onnx", sha256="ab" * 32)


def write(folder: Path, series: SourceSeries, label: np.ndarray, **options: object) -> Path:
    scan = SegmentedScan(label=label, labels=LITS_LABELS, image=np.full(label.shape, 40, np.int16))
    write_results(folder / "case", series, scan, MAKER, DicomOptions(**{"seg": True, **options}))
    return folder / "case.seg.dcm"


def points_of(label: np.ndarray, affine_lps: np.ndarray, value: int) -> set[tuple[float, ...]]:
    """Return the positions in LPS mm of the voxels with a value."""
    zyx = np.argwhere(label == value)
    return {tuple(point) for point in (zyx[:, ::-1] @ affine_lps[:3, :3].T + affine_lps[:3, 3]).round(2).tolist()}


def points_of_segment(seg: pydicom.Dataset, number: int) -> set[tuple[float, ...]]:
    """Return the positions in LPS mm of the pixels of a segment, from the frames' own positions."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found: set[tuple[float, ...]] = set()
    for frame, groups in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if "SegmentIdentificationSequence" in groups:
            inside = frame != 0
            if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
                continue
        else:
            inside = frame == number
        row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(one) for one in shared.PixelMeasuresSequence[0].PixelSpacing)
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        ji = np.argwhere(inside)
        found |= {tuple(p) for p in (ji[:, :1] * down * column + ji[:, 1:] * right * row + origin).round(2).tolist()}
    return found


@pytest.mark.parametrize(("directions", "kind"), [*product([*IN_PLANE, SAGITTAL], ["binary", "labelmap"])])
def test_voxels_lie_where_the_mask_has_them(directions: tuple, kind: str, tmp_path: Path) -> None:
    series = make_series(directions)
    label = make_label(series.grid.stored_shape)
    seg = pydicom.dcmread(write(tmp_path, series, label, seg_type=kind))
    for value in (1, 2):
        assert points_of_segment(seg, value) == points_of(label, series.grid.affine_lps, value)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("shear_mm", [0.0, 0.6])
def test_highdicom_reads_the_mask_back_by_source_files(kind: str, shear_mm: float, tmp_path: Path) -> None:
    series = make_series(IN_PLANE[3], shear_mm=shear_mm)
    label = make_label(series.grid.stored_shape)
    seg = highdicom.seg.segread(write(tmp_path, series, label, seg_type=kind))
    uids = [header.SOPInstanceUID for header in series.headers]
    pixels = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(pixels, series.to_frames(label))


DCMQI = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


@pytest.mark.skipif(DCMQI is None, reason="dcmqi is not installed")
@pytest.mark.parametrize("directions", IN_PLANE)
def test_dcmqi_reads_the_mask_back(directions: tuple, tmp_path: Path) -> None:
    import SimpleITK

    series = make_series(directions)
    label = make_label(series.grid.stored_shape)
    path = write(tmp_path, series, label)
    command = [str(DCMQI), "--inputDICOM", str(path), "--outputDirectory", str(tmp_path / "itk"), "-t", "nrrd"]
    (tmp_path / "itk").mkdir()
    subprocess.run(command, check=True, capture_output=True)
    for value in (1, 2):
        image = SimpleITK.ReadImage(str(tmp_path / "itk" / f"{value}.nrrd"))
        found = {
            tuple(np.round(image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]), 2).tolist())
            for index in np.argwhere(SimpleITK.GetArrayFromImage(image))
        }
        assert found == points_of(label, series.grid.affine_lps, value)


def test_each_frame_refers_to_the_file_it_lies_on_and_empty_frames_are_left_out(tmp_path: Path) -> None:
    series = make_series(IN_PLANE[1])
    label = make_label(series.grid.stored_shape)
    seg = pydicom.dcmread(write(tmp_path, series, label))
    of_uid = {header.SOPInstanceUID: header for header in series.headers}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        position = of_uid[source.ReferencedSOPInstanceUID].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == position
    assert seg.NumberOfFrames == sum((label == value).any(axis=(1, 2)).sum() for value in (1, 2))


def test_it_says_what_it_is_and_carries_patient_and_study(tmp_path: Path) -> None:
    series = make_series()
    path = write(tmp_path, series, make_label(series.grid.stored_shape))
    seg = pydicom.dcmread(path)
    assert path.read_bytes()[:128] == bytes(128)
    assert {keyword: str(seg[keyword].value) for keyword in PATIENT} == PATIENT
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("1.2.3", "1.2.3.5")
    assert seg.SeriesInstanceUID != "1.2.3.4"
    assert (seg.SeriesNumber, seg.SeriesDescription) == (9001, "slicemill research, not for diagnosis")
    assert seg.ContentLabel == "RESEARCH"
    organ, tumor = seg.SegmentSequence
    assert (organ.SegmentLabel, tumor.SegmentLabel) == ("liver without tumors", "tumor")
    assert organ.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert tumor.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert tumor.AnatomicRegionSequence[0].CodeValue == "10200004"
    assert {one.CodingSchemeDesignator for one in organ.SegmentedPropertyCategoryCodeSequence} == {"SCT"}
    algorithm = tumor.SegmentationAlgorithmIdentificationSequence[0]
    assert (tumor.SegmentAlgorithmType, algorithm.AlgorithmName) == ("AUTOMATIC", "liver.onnx")
    assert "ab" * 32 in algorithm.AlgorithmParameters


def test_a_mask_of_unknown_origin_is_not_called_automatic(tmp_path: Path) -> None:
    series = make_series()
    scan = SegmentedScan(label=make_label(series.grid.stored_shape), labels=LITS_LABELS)
    write_results(tmp_path / "case", series, scan, UNKNOWN_MAKER, DicomOptions(seg=True))
    seg = pydicom.dcmread(tmp_path / "case.seg.dcm")
    assert {one.SegmentAlgorithmType for one in seg.SegmentSequence} == {"SEMIAUTOMATIC"}


def test_each_lesion_may_be_a_segment(tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    seg = pydicom.dcmread(write(tmp_path, series, label, per_lesion=True))
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["liver without tumors", "tumor 1", "tumor 2"]
    assert len({one.TrackingUID for one in list(seg.SegmentSequence)[1:]}) == 2
    parts = [points_of_segment(seg, number) for number in (2, 3)]
    assert parts[0] | parts[1] == points_of(label, series.grid.affine_lps, 2)
    assert len(parts[0]) > len(parts[1]) == 1


def test_values_with_gaps_become_consecutive_segments(tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape) * np.uint8(90)
    scan = SegmentedScan(label=label, labels=make_labels({"left kidney": 90, "blob": 180}))
    warnings = write_results(tmp_path / "case", series, scan, MAKER, DicomOptions(seg=True))
    seg = pydicom.dcmread(tmp_path / "case.seg.dcm")
    assert points_of_segment(seg, 2) == points_of(label, series.grid.affine_lps, 180)
    kidney, blob = seg.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert blob.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    assert "blob" in warnings[0]
    assert "kidney" not in warnings[0]


def test_an_empty_mask_is_written(tmp_path: Path) -> None:
    series = make_series()
    label = np.zeros(series.grid.stored_shape, dtype=np.uint8)
    write_results(
        tmp_path / "case",
        series,
        SegmentedScan(label=label, labels=LITS_LABELS),
        MAKER,
        DicomOptions(seg=True, sr=True, rtstruct=True),
    )
    seg = pydicom.dcmread(tmp_path / "case.seg.dcm")
    assert not seg.pixel_array.any()
    assert pydicom.dcmread(tmp_path / "case.sr.dcm").Modality == "SR"
    assert "ContourSequence" not in pydicom.dcmread(tmp_path / "case.rtstruct.dcm").ROIContourSequence[0]


def test_the_same_result_has_the_same_uid_and_another_has_another(tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    first, again = (pydicom.dcmread(write(tmp_path, series, label)).SOPInstanceUID for _ in range(2))
    label[1, 2, 3] = 1
    assert first == again != pydicom.dcmread(write(tmp_path, series, label)).SOPInstanceUID
    assert highdicom.UID(make_uid("any")).is_valid


def test_files_in_another_order_are_refused() -> None:
    series = make_series()
    with pytest.raises(ScanError, match="4 of 4 steps run the other way"):
        replace(series, headers=series.headers[::-1], planes=series.planes[::-1])
    with pytest.raises(ScanError, match="4 files for 5 slices"):
        replace(series, headers=series.headers[1:])


def test_too_many_lesions_are_refused(tmp_path: Path) -> None:
    series = make_series(shape=(3, 60, 60))
    label = np.zeros((3, 60, 60), dtype=np.uint8)
    label[1, ::2, ::2] = 2
    with pytest.raises(LabelError, match="at most 255 segments"):
        write(tmp_path, series, label, per_lesion=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keyword", ["StudyID", "PatientBirthDate", "PatientSex", "StudyTime", "AccessionNumber"])
def test_a_series_without_an_optional_text_is_no_problem(keyword: str, tmp_path: Path) -> None:
    series = make_series()
    for header in series.headers:
        delattr(header, keyword)
    series = replace(series)
    label = make_label(series.grid.stored_shape)
    write(tmp_path, series, label, sr=True, rtstruct=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_header_is_one_line_without_its_value(tmp_path: Path) -> None:
    series = make_series()
    for header in series.headers:
        header.PatientSex = "MARKER"
    label = make_label(series.grid.stored_shape)
    with pytest.raises(ScanError, match="break a rule of DICOM") as caught:
        write(tmp_path, series, label)
    assert "MARKER" not in str(caught.value)


def test_nothing_of_a_patient_is_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: object) -> None:
    series = make_series()
    for header in series.headers:
        header.PatientName = "MARKERWITHOUTCARET"
    write(tmp_path, series, make_label(series.grid.stored_shape), sr=True, rtstruct=True)
    assert "MARKER" not in "".join(capfd.readouterr()) + caplog.text  # type: ignore[attr-defined]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("directions", [IN_PLANE[0], IN_PLANE[5], SAGITTAL])
def test_dciodvfy_finds_no_error(directions: tuple, tmp_path: Path) -> None:
    series = make_series(directions)
    write(tmp_path, series, make_label(series.grid.stored_shape), sr=True, rtstruct=True)
    for path in sorted(tmp_path.iterdir()):
        result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert [line for line in result.stderr.splitlines() if line.startswith("Error")] == [], path.name


@pytest.mark.parametrize("directions", [*IN_PLANE, SAGITTAL])
def test_files_that_were_written_give_the_same_series(directions: tuple, tmp_path: Path) -> None:
    from slicemill.ct.formats.dicom.lookup import open_series

    series = make_series(directions)
    label = make_label(series.grid.stored_shape)
    write_series(series, tmp_path / "ct", label.astype(np.int16))
    again = describe_source(open_series(tmp_path / "ct"))
    assert [one.SOPInstanceUID for one in again.headers] == [one.SOPInstanceUID for one in series.headers]
    assert np.allclose(again.planes, series.planes)
    seg = pydicom.dcmread(write(tmp_path, again, label))
    assert points_of_segment(seg, 2) == points_of(label, series.grid.affine_lps, 2)


STANDARD = Path.home() / "dicom-validator"


@pytest.mark.skipif(not STANDARD.exists(), reason="dicom-validator has no copy of the standard, which it downloads")
def test_dicom_validator_finds_no_error(tmp_path: Path) -> None:
    series = make_series()
    write(tmp_path, series, make_label(series.grid.stored_shape), sr=True, rtstruct=True)
    command = [str(Path(sys.executable).parent / "validate_iods"), "--standard-path", str(STANDARD), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
