"""DICOM SEG and RTSTRUCT read as masks of a scan."""

import contextlib
import copy
from itertools import product
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from slicemill.common.errors import GeometryError, InputError, LabelError, ScanError
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object, open_mask, read_references
from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS, Labels, make_labels
from slicemill.ct.scan import ScanReader
from tests.conftest import REAL
from tests.ct.dicom_objects.series import IN_PLANE, SAGITTAL, make_label, make_series, write_series
from tests.ct.dicom_objects.test_segmentation import MAKER

KINDS = ["binary", "labelmap", "rtstruct"]


def write(folder: Path, kind: str, series: SourceSeries, label: np.ndarray, labels: Labels = LITS_LABELS) -> Path:
    is_rt = kind == "rtstruct"
    options = DicomOptions(seg=not is_rt, rtstruct=is_rt, seg_type="binary" if is_rt else kind, per_lesion=False)
    write_results(folder / "m", series, SegmentedScan(label=label, labels=labels), MAKER, options)
    return folder / ("m.rtstruct.dcm" if is_rt else "m.seg.dcm")


def read(path: Path, grid: Grid, labels: Labels | None = LITS_LABELS, **options: object) -> np.ndarray:
    with ScanReader(path, "mask", source=open_mask(path, grid, None, labels, **options)) as reader:
        voxels = reader.read()
        assert len(reader.finish()) == 64
        return voxels


@pytest.mark.parametrize(("kind", "directions"), [*product(KINDS, [*IN_PLANE, SAGITTAL])])
def test_what_was_written_is_read_back(kind: str, directions: tuple, tmp_path: Path) -> None:
    series = make_series(directions, shear_mm=0.3)
    label = make_label(series.grid.stored_shape)
    path = write(tmp_path, kind, series, label)
    assert is_mask_object(path)
    assert np.array_equal(read(path, series.grid), label)
    with ScanReader(path, "mask", source=open_mask(path, series.grid, None, LITS_LABELS)) as reader:
        slabs = {slab.z: slab.voxels.copy() for slab in reader.slabs(2)}
    assert np.array_equal(np.concatenate([slabs[z] for z in sorted(slabs)]), label)


@pytest.mark.parametrize(("kind", "directions"), [*product(KINDS, IN_PLANE)])
def test_it_lies_right_on_a_scan_of_other_in_plane_axes(kind: str, directions: tuple, tmp_path: Path) -> None:
    """The scan is a NIfTI file in RAS, whose axes are not those of the series."""
    series = make_series(directions)
    label = make_label(series.grid.stored_shape)
    path = write(tmp_path, kind, series, label)
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    nx, ny, nz = series.grid.stored_shape[::-1]
    flip[:2, 3] = nx - 1, ny - 1
    ras = Grid(shape=(nx, ny, nz), affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.grid.affine_lps @ flip)
    assert ras.axcodes == "RAS"
    assert np.array_equal(read(path, ras), label)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_matched_by_name_and_not_by_number(kind: str, tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    path = write(tmp_path, kind, series, label)
    swapped = read(path, series.grid, make_labels({"Tumor": 1, "LIVER": 2}))
    assert np.array_equal(swapped, np.array([0, 2, 1], np.uint8)[label])
    source = open_mask(path, series.grid, None, make_labels({"tumor": 7}))
    assert source.warnings == ("parts of the segmentation without a label were left out: number 1",)
    with ScanReader(path, "mask", source=source) as reader:
        assert np.array_equal(reader.read(), (label == 2) * np.uint8(7))
    with pytest.raises(LabelError, match="none for spleen, but liver without tumors, tumor"):
        read(path, series.grid, make_labels({"liver": 1, "spleen": 2}))
    by_number = open_mask(path, series.grid, None, make_labels({"a": 1, "b": 2}))
    assert "taken by number: 1 is a, 2 is b" in by_number.warnings[0]
    assert np.array_equal(read(path, series.grid, None), label)


def test_segments_of_lesions_are_the_label_of_tumor(tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    options = DicomOptions(seg=True, per_lesion=True)
    write_results(tmp_path / "m", series, SegmentedScan(label=label, labels=LITS_LABELS), MAKER, options)
    assert np.array_equal(read(tmp_path / "m.seg.dcm", series.grid), label)


def test_overlapping_segments_are_refused_or_the_highest_value_wins(tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    path = write(tmp_path, "binary", series, label)
    seg = pydicom.dcmread(path)
    groups = seg.PerFrameFunctionalGroupsSequence
    number = [one.SegmentIdentificationSequence[0].ReferencedSegmentNumber for one in groups]
    pixels = seg.pixel_array.copy()
    place = {
        (n, str(g.PlanePositionSequence[0].ImagePositionPatient)): f
        for f, (n, g) in enumerate(zip(number, groups, strict=True))
    }
    for (n, position), frame in place.items():
        if n == 1 and (2, position) in place:
            pixels[frame] |= pixels[place[2, position]]  # the liver with its tumors
    seg.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    seg.PixelData += b"\0" * (len(seg.PixelData) % 2)
    seg.save_as(path)
    with pytest.raises(LabelError, match="must not overlap another part"):
        read(path, series.grid)
    assert np.array_equal(read(path, series.grid, overlap="highest"), label)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_is_off_the_slices_is_refused_with_mm(kind: str, tmp_path: Path) -> None:
    series = make_series()
    path = write(tmp_path, kind, series, make_label(series.grid.stored_shape))
    for axis, shift in ((2, 0.6), (2, 40.0), (0, 0.3)):
        moved = series.grid.affine.copy()
        moved[axis, 3] += shift
        if kind == "rtstruct" and axis == 0:
            continue  # an outline may lie anywhere on a slice
        with pytest.raises(GeometryError, match=r"0\.\d+ mm away|outside the scan"):
            read(path, Grid(shape=series.grid.shape, affine=moved))


def test_a_mask_of_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    path = write(tmp_path, "binary", series, label)
    for header in series.headers:
        header.FrameOfReferenceUID = "1.2.3.99"
    write_series(series, tmp_path / "ct", label.astype(np.int16))
    with pytest.raises(GeometryError, match="another frame of reference"):
        open_mask(path, series.grid, open_series(tmp_path / "ct"), LITS_LABELS)


def test_a_fractional_segmentation_is_refused(tmp_path: Path) -> None:
    series = make_series()
    path = write(tmp_path, "binary", series, make_label(series.grid.stored_shape))
    seg = pydicom.dcmread(path)
    seg.SegmentationType = "FRACTIONAL"
    seg.save_as(path)
    with pytest.raises(ScanError, match="must be BINARY or LABELMAP; it is FRACTIONAL"):
        read(path, series.grid)


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_those_of_the_source(kind: str, tmp_path: Path) -> None:
    series = make_series()
    references = read_references(write(tmp_path, kind, series, make_label(series.grid.stored_shape)))
    assert (references.frame_of_reference_uid, references.series_uids) == ("1.2.3.5", ("1.2.3.4",))


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_inside_another_is_a_hole(kind: str, tmp_path: Path) -> None:
    series = make_series()
    label = make_label(series.grid.stored_shape)
    label[2, 5, 6] = 0
    options = DicomOptions(rtstruct=True, holes="xor")
    write_results(tmp_path / "m", series, SegmentedScan(label=label, labels=LITS_LABELS), MAKER, options)
    path = tmp_path / "m.rtstruct.dcm"
    structures = pydicom.dcmread(path)
    for roi in structures.ROIContourSequence:
        for contour in roi.ContourSequence:
            contour.ContourGeometricType = kind
    structures.save_as(path)
    source = open_mask(path, series.grid, None, LITS_LABELS)
    with ScanReader(path, "mask", source=source) as reader:
        assert np.array_equal(reader.read(), label)
        assert bool(reader.warnings) == (kind == "CLOSED_PLANAR")


@pytest.mark.parametrize(("shift_mm", "message"), [(1.8, "must not cross"), (0.0, "are the same")])
def test_contours_that_cross_or_coincide_are_refused(shift_mm: float, message: str, tmp_path: Path) -> None:
    series = make_series()
    path = write(tmp_path, "rtstruct", series, make_label(series.grid.stored_shape))
    structures = pydicom.dcmread(path)
    contours = structures.ROIContourSequence[0].ContourSequence
    points = np.array(contours[0].ContourData, float).reshape(-1, 3) + np.array([shift_mm, 0, 0])
    again = copy.deepcopy(contours[0])
    again.ContourData = [f"{number:.3f}" for number in points.ravel()]
    contours.append(again)
    structures.save_as(path)
    with pytest.raises(LabelError, match=message):
        read(path, series.grid)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_input_error(kind: str, tmp_path: Path) -> None:
    series = make_series()
    path = write(tmp_path, kind, series, make_label(series.grid.stored_shape))
    whole = path.read_bytes()
    generator = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(whole)
        for at in generator.integers(132, len(data), 4):
            data[at] = generator.integers(256)
        path.write_bytes(data[: generator.integers(200, len(data) + 1)])
        with contextlib.suppress(InputError):
            read(path, series.grid)


@pytest.mark.real
def test_the_liver_of_dcmqi_is_that_of_its_nrrd() -> None:
    folder = REAL / "dcmqi-liver-3slice"
    if not folder.exists():
        pytest.skip("the real scans (../shared/data) are not here")
    import SimpleITK

    series = open_series(folder / "ct-3slice")
    voxels = read(folder / "liver.dcm", series.grid, make_labels({"liver": 1}))
    other = SimpleITK.ReadImage(str(folder / "liver_seg.nrrd"))
    expected = SimpleITK.Resample(
        other, series.grid.stored_shape[::-1], SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor,
        series.grid.affine_lps[:3, 3].tolist(), series.grid.spacing_mm[::-1],
        (series.grid.affine_lps[:3, :3] / np.array(series.grid.spacing_mm[::-1])).ravel().tolist(),
    )  # fmt: skip
    assert voxels.any()
    assert np.array_equal(voxels != 0, SimpleITK.GetArrayFromImage(expected) != 0)


def test_a_seg_of_highdicom_with_all_frames_is_read(tmp_path: Path) -> None:
    series = make_series(IN_PLANE[2])
    label = make_label(series.grid.stored_shape)
    write(tmp_path, "binary", series, label)
    own = highdicom.seg.segread(tmp_path / "m.seg.dcm")
    other = highdicom.seg.Segmentation(
        source_images=list(series.headers), pixel_array=np.ascontiguousarray(series.to_frames(label)),
        segmentation_type="BINARY", segment_descriptions=[own.get_segment_description(n) for n in (1, 2)],
        series_instance_uid=highdicom.UID(), series_number=1, sop_instance_uid=highdicom.UID(), instance_number=1,
        manufacturer="a", manufacturer_model_name="b", software_versions="1", device_serial_number="1",
        omit_empty_frames=False,
    )  # fmt: skip
    other.save_as(tmp_path / "other.dcm")
    assert np.array_equal(read(tmp_path / "other.dcm", series.grid), label)
