"""Sections, volumes, parts and lists of cases, compared with numpy and with the reports."""

import gc
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from slicemill.common.errors import InputError, PairingError, UsageError
from slicemill.common.files import write_csv
from slicemill.ct.formats.nifti.header import read_header
from slicemill.ct.labels import LITS_LABELS, Labels, make_labels
from slicemill.ct.runs import Runs
from slicemill.ct.scan import Slab
from slicemill.measure.lesions.measurements import Volume
from slicemill.measure.lesions.slicer3d import write_segmentation
from slicemill.store.reader import open_store
from slicemill.web.entries import ViewRequest, find_entries, sort_by_dice
from slicemill.web.marks import Marks
from slicemill.web.opened import KEPT_THRESHOLDS, OpenCase
from slicemill.web.records import describe_case, describe_labels, describe_parts, describe_progress
from slicemill.web.sections import PLANES, cut_section
from slicemill.web.viewer import MAX_OPEN, Viewer
from slicemill.web.volumes import NotReadYetError
from slicemill.web.voxel_file import VoxelFile
from tests.ct.grids import ORIENTATIONS
from tests.web.made import SHAPE, SPACING, make_affine, make_image, make_mask, write_scan

EXTENT = dict(zip(PLANES, SHAPE, strict=True))


def opened(request, number=0):
    """Open a case and read all of it."""
    return read_all(Viewer(find_entries(request)).open(number))


def read_all(case):
    """Wait until all of a case was read."""
    volumes = [volume for volume in (case.image, *case.masks) if volume is not None]
    deadline = time.monotonic() + 30
    while not all(volume.is_complete or volume.failure for volume in volumes):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return case


def section(volume, plane, index, dtype):
    """Return a section of SHAPE as the page gets it."""
    rows, columns = cut_section(np.empty(SHAPE), plane, index).shape
    return np.frombuffer(volume.read_section(plane, index), dtype).reshape(rows, columns)


def test_sections_lie_as_radiologists_are_used_to():
    """A point on the patient's right, anterior, at the feet is voxel (0, 0, 0)."""
    voxels = np.zeros((2, 3, 4))
    voxels[0, 0, 0] = 1
    assert np.argwhere(cut_section(voxels, "axial", 0)).tolist() == [[0, 0]]  # top left: anterior, right
    assert np.argwhere(cut_section(voxels, "coronal", 0)).tolist() == [[1, 0]]  # bottom left: feet, right
    assert np.argwhere(cut_section(voxels, "sagittal", 0)).tolist() == [[1, 0]]  # bottom left: feet, anterior


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_file_in_any_axis_order_gives_the_same_sections(tmp_path, codes):
    scan = write_scan(tmp_path / "ct.nii.gz", make_image(), codes)
    mask = write_scan(tmp_path / "mask.nii", make_mask(), "".join(reversed(codes)))
    case = opened(ViewRequest(path=scan, masks=(mask,)))
    assert case.source.image.shape == SHAPE
    np.testing.assert_allclose(case.source.affine_lps, make_affine(), atol=1e-4)
    for plane in PLANES:
        for index in range(EXTENT[plane]):
            expected = cut_section(make_image(), plane, index)
            np.testing.assert_array_equal(section(case.image, plane, index, "<i2"), expected)
            np.testing.assert_array_equal(
                section(case.masks[0], plane, index, "u1"), cut_section(make_mask(), plane, index)
            )


def test_a_stored_case_gives_its_sections_and_its_own_labels(stored):
    store = open_store(stored)
    case = opened(ViewRequest(path=stored), 1)
    one = store[store.case_ids[1]]
    for plane, axis in zip(PLANES, range(3), strict=True):
        index = one.image.shape[axis] // 3
        assert case.image.read_section(plane, index) == cut_section(one.image[:], plane, index).tobytes()
        assert case.masks[0].read_section(plane, index) == cut_section(one.label[:], plane, index).tobytes()
    assert case.source.masks[0].labels == LITS_LABELS
    assert describe_case(case).spacing_mm == one.spacing_mm


def test_a_slice_of_a_stored_case_is_there_before_the_case_was_read(stored, monkeypatch):
    monkeypatch.setattr("slicemill.web.volumes.start_helper", lambda work: None)
    case = Viewer(find_entries(ViewRequest(path=stored))).open(0)
    expected = open_store(stored)[case.source.name].image[5]
    assert case.image.read_section("axial", 5) == expected.tobytes()
    with pytest.raises(NotReadYetError):
        case.image.read_section("coronal", 5)
    assert not case.image.is_complete


def test_parts_are_those_of_scipy_and_volumes_those_of_numpy(files):
    scan, mask = files
    case = opened(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))
    voxels = make_mask()
    numbers, count = scipy.ndimage.label(voxels == 2, np.ones((3, 3, 3)))
    tumor = describe_parts(case, 0, 2)
    assert tumor.count == count == 2
    sizes = sorted(np.bincount(numbers.ravel())[1:], reverse=True)
    assert [part.voxels for part in tumor.parts] == sizes
    assert tumor.volume_ml == pytest.approx((voxels == 2).sum() * np.prod(SPACING) / 1000)
    assert list(tumor.slice_voxels) == (voxels == 2).sum(axis=(1, 2)).tolist()
    organ = describe_parts(case, 0, 1)  # with its tumors, as in every report
    assert list(organ.slice_voxels) == (voxels > 0).sum(axis=(1, 2)).tolist()
    progress = describe_progress(case)
    assert progress.masks[0].values == ((1, int((voxels == 1).sum())), (2, int((voxels == 2).sum())))


@pytest.mark.slow
def test_mean_hu_is_right_whenever_it_is_asked_for_and_runs_are_not_kept(files):
    scan, mask = files
    case = opened(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))

    def count_runs():
        gc.collect()
        return sum(type(one) is Runs for one in gc.get_objects())  # isinstance asks lazy objects of torch

    before = count_runs()
    case.image._is_read = False  # the mask is read before the scan
    for value in (1, 2):
        assert case.find_parts(0, value)
        assert case.find_mean_hu(0, value) is None
        assert count_runs() == before + 1, "those looked at last"
    case.image._is_read = True
    for value in (2, 1, 3):  # with its runs, without them, and after the scan
        numbers, count = scipy.ndimage.label(np.isin(make_mask(), (1, 2) if value == 1 else value), np.ones((3, 3, 3)))
        means = scipy.ndimage.mean(make_image(), numbers, np.arange(1, count + 1))
        np.testing.assert_allclose(sorted(case.find_mean_hu(0, value)), sorted(means))
        assert count_runs() == before
    case = opened(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))
    assert case.find_parts(0, 2)
    assert count_runs() == before, "the scan was read: its HU are measured at once"


def test_what_is_known_of_thresholds_has_a_bound_and_labels_are_kept(files):
    scan, mask = files
    source = find_entries(ViewRequest(path=scan, masks=(mask, mask), labels=LITS_LABELS))[0].open()
    labels, other = source.masks
    ramp = (6 * np.indices(SHAPE).sum(axis=0)).astype(np.uint8)
    volume = replace(other.source, slabs=lambda _: iter([Slab(z=0, voxels=ramp)]))
    chances = replace(other, labels=None, source=volume, is_probability=True)
    case = read_all(OpenCase(replace(source, masks=(labels, chances))))

    named = case.find_surface(0, 1)
    first = [(case.find_parts(1, value), case.find_mean_hu(1, value)) for value in (1, 2)]
    made = [weakref.ref(case.find_surface(1, value).vertices) for value in range(1, 2 * KEPT_THRESHOLDS)]
    kept = [value for value, one in enumerate(made, start=1) if one() is not None]
    assert kept == list(range(KEPT_THRESHOLDS, 2 * KEPT_THRESHOLDS)), "those asked for last"
    case.find_parts(1, kept[0])
    case.find_parts(1, 100)
    assert [one() is not None for one in made[kept[0] - 1 :][:2]] == [True, False], "the one used the longest ago goes"
    assert case.find_surface(0, 1) is named
    assert [(case.find_parts(1, value), case.find_mean_hu(1, value)) for value in (1, 2)] == first, "made anew"


def test_every_label_has_the_color_of_the_other_pictures():
    labels = describe_labels(Labels({"kidney": 3, "liver": 1, "tumor": 2, "cyst": 4}, "liver", "tumor"))
    assert {label.name: label.region for label in labels} == {
        "kidney": (3,), "liver": (1, 2), "tumor": (2,), "cyst": (4,)}  # fmt: skip
    assert len({label.color for label in labels}) == 4


def test_a_segmentation_of_3d_slicer_is_not_shown_under_swapped_names(tmp_path):
    labels = make_labels({"liver": 1, "tumor": 2})
    scan = write_scan(tmp_path / "ct.nii", make_image())
    mask = tmp_path / "ct.seg.nrrd"
    write_segmentation(mask, Volume(label=make_mask(), affine_lps=read_header(scan).grid.affine_lps, labels=labels))
    for named, shown in ((labels, True), (make_labels({"tumor": 1, "liver": 2}), False)):
        (described,) = describe_case(opened(ViewRequest(path=scan, masks=(mask,), labels=named))).masks
        assert ("its segment 'liver' has the label value 1" in (described.failure or "")) is not shown


def test_a_mask_on_another_grid_is_reported_in_its_place(tmp_path):
    scan = write_scan(tmp_path / "ct.nii", make_image())
    good = write_scan(tmp_path / "good.nii", make_mask())
    bad = write_scan(tmp_path / "bad.nii", make_mask()[:-1])
    case = opened(ViewRequest(path=scan, masks=(bad, good)))
    described = describe_case(case).masks
    assert "same shape" in described[0].failure
    assert described[1].failure is None
    assert case.masks[0] is None
    assert case.masks[1].is_complete


def test_a_damaged_file_is_not_shown(tmp_path):
    noise = np.random.default_rng(0).integers(-500, 500, (30, 200, 200)).astype(np.int16)
    scan = write_scan(tmp_path / "ct.nii.gz", noise)
    data = bytearray(scan.read_bytes())
    data[-6] ^= 1  # the checksum at the end
    scan.write_bytes(data)
    case = opened(ViewRequest(path=scan))
    assert "ct.nii.gz" in case.image.failure
    with pytest.raises(InputError):
        case.image.read_section("axial", 0)


def test_a_mask_of_probabilities_is_refused_with_the_reason(tmp_path):
    scan = write_scan(tmp_path / "ct.nii", make_image())
    mask = write_scan(tmp_path / "mask.nii", (make_mask() / 2.5).astype(np.float32))
    case = opened(ViewRequest(path=scan, masks=(mask,)))
    assert "integers" in case.masks[0].failure
    with pytest.raises(InputError, match="integers"):
        case.find_parts(0, 1)


def test_values_that_nothing_names_have_no_name(files):
    scan, mask = files
    case = opened(ViewRequest(path=scan, masks=(mask,)))
    described = describe_case(case).masks[0]
    assert (described.labels, described.tumor) == ((), None)
    assert [value for value, _ in describe_progress(case).masks[0].values] == [1, 2]
    assert describe_parts(case, 0, 1).slice_voxels == tuple((make_mask() == 1).sum(axis=(1, 2)).tolist())


def test_few_cases_stay_open(collection):
    viewer = Viewer(find_entries(ViewRequest(path=collection)))
    first = viewer.open(0)
    for number in range(1, MAX_OPEN + 1):
        viewer.open(number)
    assert viewer.open(0) is not first
    assert viewer.open(MAX_OPEN) is viewer.open(MAX_OPEN)
    with pytest.raises(IndexError):
        viewer.open(len(viewer.entries))


def shared_pages():
    return int(Path("/proc/self/statm").read_text().split()[2])


def test_memory_does_not_grow_with_the_volume():
    file = VoxelFile((40, 256, 256), np.int16)
    for z in range(40):
        file.write(z, np.full((1, 256, 256), z, dtype=np.int16))
    before = shared_pages()
    for index in range(0, 256, 16):
        assert (
            np.frombuffer(file.read("sagittal", index), "<i2").reshape(40, 256)[:, 0].tolist() == list(range(40))[::-1]
        )
    assert (shared_pages() - before) * 4096 < file.shape[0] * 256 * 256 * 2 / 2


class TestEntries:
    def test_a_folder_of_masks_has_its_scans_beside_it(self, collection):
        entries = find_entries(ViewRequest(path=collection))
        assert [entry.name for entry in entries] == [f"segmentation-{number}" for number in range(6)]
        source = entries[0].open()
        assert source.masks[0].labels == LITS_LABELS
        assert source.image.name.startswith("volume-0")

    def test_masks_without_scans_are_refused(self, collection, tmp_path):
        (tmp_path / "a.nii").write_bytes(next(collection.glob("segmentation-0*")).read_bytes())
        with pytest.raises(PairingError, match="--scans"):
            find_entries(ViewRequest(path=tmp_path))

    def test_masks_are_shown_on_the_cases_of_a_store_with_the_references(self, collection, stored, tmp_path):
        for path in collection.glob("segmentation-*"):
            (tmp_path / path.name.replace("segmentation", "volume")).write_bytes(path.read_bytes())
        request = ViewRequest(path=tmp_path, references=stored)
        assert len(find_entries(request)) == 6
        case = opened(request, 2)
        assert [mask.name for mask in case.source.masks][1] == "reference"
        assert case.masks[0].failure is None
        index = case.image.shape[0] // 2
        assert case.masks[0].read_section("axial", index) == case.masks[1].read_section("axial", index)

    def test_what_does_not_go_together_is_refused(self, collection, stored, files):
        scan, mask = files
        for request in (
            ViewRequest(path=stored, masks=(mask,)),
            ViewRequest(path=collection, masks=(mask,)),
            ViewRequest(path=scan, scans=collection),
            ViewRequest(path=collection, scans=collection, references=stored),
        ):
            with pytest.raises(UsageError, match="not go with"):
                find_entries(request)

    def test_a_file_that_is_no_scan_is_reported_before_the_server_starts(self, tmp_path):
        (tmp_path / "ct.nii").write_bytes(b"no scan")
        with pytest.raises(InputError, match=r"ct\.nii"):
            find_entries(ViewRequest(path=tmp_path / "ct.nii"))
        with pytest.raises(InputError, match=r"none\.nii"):
            find_entries(ViewRequest(path=tmp_path / "none.nii"))

    def test_the_worst_case_comes_first_and_a_case_without_a_score_last(self, stored, tmp_path):
        ids = open_store(stored).case_ids
        rows = [{"case_id": case_id, "dice_liver": 1 - 0.1 * number, "dice_tumor": 0.1 * (number % 3)}
                for number, case_id in enumerate(ids[:5])]  # fmt: skip
        rows[3]["dice_tumor"] = None
        write_csv(tmp_path / "evaluation.csv", rows)
        entries = find_entries(ViewRequest(path=stored, evaluation=tmp_path))
        assert [entry.name for entry in entries] == [ids[0], ids[1], ids[4], ids[2], ids[3], ids[5]]
        assert [entry.dice for entry in entries] == [0, 0.1, 0.1, 0.2, None, None]
        assert entries[0].dice_of == "tumor"

    def test_a_table_of_other_cases_is_refused(self, stored, tmp_path):
        entries = find_entries(ViewRequest(path=stored))
        write_csv(tmp_path / "a.csv", [{"case_id": "other", "dice_tumor": 0.5}])
        with pytest.raises(PairingError, match="none of the 6 cases"):
            sort_by_dice(entries, tmp_path / "a.csv")
        write_csv(tmp_path / "b.csv", [{"case_id": entries[0].case_id, "hd95": 0.5}])
        with pytest.raises(PairingError, match="dice_NAME"):
            sort_by_dice(entries, tmp_path / "b.csv")


class TestMarks:
    def test_marks_are_written_at_once_and_continued(self, tmp_path):
        marks = Marks(tmp_path / "marks.csv")
        marks.put("a", "good")
        marks.put("=b", "bad")
        marks.put("c", "unsure")
        marks.put("c", None)
        again = Marks(tmp_path / "marks.csv")
        assert [again.get(name) for name in ("a", "=b", "c")] == ["good", "bad", None]
        again.put("a", "unsure")
        assert "a,unsure" in (tmp_path / "marks.csv").read_text()

    def test_a_mark_that_cannot_be_written_is_not_set(self, tmp_path):
        marks = Marks(tmp_path / "marks.csv")
        marks.put("a", "good")
        (tmp_path / "marks.csv").unlink()
        (tmp_path / "marks.csv").mkdir()
        with pytest.raises(OSError, match="directory"):
            marks.put("a", "bad")
        assert marks.get("a") == "good"

    def test_another_table_is_not_overwritten(self, tmp_path):
        (tmp_path / "marks.csv").write_text("case,mark\na,perfect\n")
        with pytest.raises(InputError, match="line 2: a mark must be one of good, bad, unsure"):
            Marks(tmp_path / "marks.csv")
        (tmp_path / "marks.csv").write_text("name,value\n")
        with pytest.raises(InputError, match="case"):
            Marks(tmp_path / "marks.csv")
