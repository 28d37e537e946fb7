"""`view` shows the same voxels whatever their format and place."""

import zipfile

import numpy as np
import pytest
import SimpleITK

from slicemill.common.errors import InputError, PairingError, UsageError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.scan import ScanReader
from slicemill.measure.requests import MeasureRequest
from slicemill.store.reader import open_store
from slicemill.web.entries import ViewRequest, find_entries
from slicemill.web.records import describe_parts, describe_progress
from slicemill.web.sections import PLANES, cut_section
from tests.ct.dicom.made import make_series, make_volume, save_series, write_series
from tests.web.made import make_affine, make_image, make_mask, write_scan
from tests.web.test_viewer import EXTENT, opened, section


def convert(source, target, **options):
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(source)), str(target), **options)
    return target


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz"])
def test_a_file_of_any_format_gives_the_same_sections(tmp_path, suffix, packed):
    scan = convert(write_scan(tmp_path / "a.nii", make_image(), "RAS"), tmp_path / f"ct{suffix}", useCompression=packed)
    mask = convert(write_scan(tmp_path / "b.nii", make_mask(), "LPS"), tmp_path / f"m{suffix}", useCompression=packed)
    case = opened(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))
    np.testing.assert_allclose(case.source.affine_lps, make_affine(), atol=1e-4)
    assert case.source.masks[0].failure is None
    for plane in PLANES:
        index = EXTENT[plane] // 2
        np.testing.assert_array_equal(section(case.image, plane, index, "<i2"), cut_section(make_image(), plane, index))
        np.testing.assert_array_equal(
            section(case.masks[0], plane, index, "u1"), cut_section(make_mask(), plane, index)
        )
    assert describe_parts(case, 0, 2).count == 2


def voxels_of(case):
    return np.concatenate([slab for _, slab in case.image.iter_slabs(4)])


def expect(location):
    with ScanReader(location, "image") as reader:
        return reader.read()


def test_a_dicom_folder_a_file_of_it_and_a_zip_are_one_scan(tmp_path):
    write_series(tmp_path / "p1")
    files = sorted((tmp_path / "p1").iterdir())
    with zipfile.ZipFile(tmp_path / "p1.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    expected = expect(tmp_path / "p1")
    for place in (tmp_path / "p1", files[2], tmp_path / "p1.zip"):
        (entry,) = find_entries(ViewRequest(path=place))
        assert entry.name.startswith(("p1", files[2].name)), place
        np.testing.assert_array_equal(voxels_of(opened(ViewRequest(path=place))), expected)


def test_the_series_below_a_folder_are_cases(tmp_path):
    write_series(tmp_path / "in" / "p1")
    slices = make_series(make_volume()) + make_series(make_volume(seed=2), SeriesInstanceUID="1.9", SeriesNumber=4)
    save_series(tmp_path / "in" / "p2", slices)
    request = ViewRequest(path=tmp_path / "in")
    assert [entry.name for entry in find_entries(request)] == ["p1", "p2_3", "p2_4"]
    assert (voxels_of(opened(request, 1)) != voxels_of(opened(request, 2))).any()
    both = ViewRequest(path=tmp_path / "in" / "p2")
    assert len(find_entries(both)) == 2


def test_a_folder_without_a_ct_says_what_it_has(tmp_path):
    write_series(tmp_path / "pet", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    with pytest.raises(PairingError, match="neither masks nor CT series in DICOM .*IM001: a PET image"):
        find_entries(ViewRequest(path=tmp_path / "pet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PairingError, match="neither masks nor CT series"):
        find_entries(ViewRequest(path=tmp_path / "empty"))


@pytest.fixture(scope="module")
def dicom_case(tmp_path_factory):
    """A series, a mask of it in NIfTI, and the SEG, RTSTRUCT and .seg.nrrd that `measure` makes of both."""
    folder = tmp_path_factory.mktemp("dicom")
    write_series(folder / "ct", make_volume((9, 24, 26)))
    mask = np.zeros((9, 24, 26), dtype=np.uint8)
    mask[2:8, 3:20, 4:22] = 1
    mask[3:6, 6:12, 6:14] = 2
    image = SimpleITK.GetImageFromArray(mask)
    with ScanReader(folder / "ct", "image") as reader:
        affine = reader.grid.affine_lps
    image.SetSpacing([float(one) for one in np.linalg.norm(affine[:3, :3], axis=0)])
    image.SetOrigin([float(one) for one in affine[:3, 3]])
    SimpleITK.WriteImage(image, str(folder / "mask.nii.gz"))
    request = MeasureRequest(
        masks=folder / "mask.nii.gz", image=folder / "ct", out=folder / "out", labels=LITS_LABELS, dicom_seg=True,
        rtstruct=True,
    )  # fmt: skip
    (outcome,) = request.run().outcomes
    assert outcome.status == "done", outcome.reason
    return folder, mask


@pytest.mark.parametrize("labels", [None, LITS_LABELS])
@pytest.mark.parametrize("ending", [".seg.dcm", ".rtstruct.dcm", ".seg.nrrd", "nifti"])
def test_a_mask_of_a_series_is_shown_with_its_names(dicom_case, ending, labels):
    folder, mask = dicom_case
    path = folder / "mask.nii.gz" if ending == "nifti" else folder / "out" / f"mask{ending}"
    case = opened(ViewRequest(path=folder / "ct", masks=(path,), labels=labels))
    source = case.source.masks[0]
    assert source.failure is None
    assert case.masks[0].failure is None
    if ending == "nifti":
        assert source.labels == labels
    else:
        assert source.labels.tumor_value() == 2, source.labels
    shown = np.concatenate([slab for _, slab in case.masks[0].iter_slabs(4)])
    np.testing.assert_array_equal(shown == 2, mask == 2)
    np.testing.assert_array_equal(shown > 0, mask > 0)
    told = any("overlap" in warning for warning in describe_progress(case).warnings)
    assert told == ending.endswith(".dcm")


def test_a_mask_in_dicom_is_shown_on_the_same_scan_in_another_format_only_where_it_lies(dicom_case, tmp_path):
    folder, _ = dicom_case
    seg = folder / "out" / "mask.seg.dcm"
    other = write_scan(tmp_path / "ct.nii", make_image())
    case = opened(ViewRequest(path=other, masks=(seg,)))
    assert case.masks[0] is None or case.masks[0].failure
    write_series(tmp_path / "ct", make_volume((9, 24, 26)), FrameOfReferenceUID="1.2.9")
    case = opened(ViewRequest(path=tmp_path / "ct", masks=(seg,)))
    assert "frame of reference" in case.source.masks[0].failure


def test_labels_that_a_file_does_not_have_are_reported_in_its_place(dicom_case):
    folder, _ = dicom_case
    labels = make_labels({"kidney": 1, "cyst": 2, "tumor": 3})
    case = opened(
        ViewRequest(path=folder / "ct", masks=(folder / "out" / "mask.seg.dcm", folder / "mask.nii.gz"), labels=labels)
    )
    assert "kidney" in case.source.masks[0].failure
    assert case.source.masks[1].failure is None


def test_what_does_not_go_with_a_series_is_refused(dicom_case):
    folder, _ = dicom_case
    with pytest.raises(UsageError, match="is a folder of masks; more paths do not go"):
        find_entries(ViewRequest(path=folder, masks=(folder / "mask.nii.gz",)))
    write_series(folder / "two" / "a")
    with pytest.raises(InputError, match="holds 0 CT series"):
        find_entries(ViewRequest(path=folder / "two", masks=(folder / "mask.nii.gz",)))


def test_masks_of_infer_are_shown_on_their_series(dicom_case, tmp_path):
    folder, mask = dicom_case
    write_series(tmp_path / "scans" / "ct", make_volume((9, 24, 26)))
    (tmp_path / "segmented").mkdir()
    (tmp_path / "segmented" / "ct.nii.gz").write_bytes((folder / "mask.nii.gz").read_bytes())
    case = opened(ViewRequest(path=tmp_path / "segmented", scans=tmp_path / "scans", labels=LITS_LABELS))
    assert case.image.shape == mask.shape
    assert describe_parts(case, 0, 2).parts[0].voxels == (mask == 2).sum()


def test_a_store_in_a_bucket_is_shown_as_one_on_a_disk(stored, bucket):
    place = bucket[0] / "store"
    for path in sorted(stored.rglob("*")):
        if path.is_file():
            (place / path.relative_to(stored).as_posix()).write_bytes(path.read_bytes())
    here, there = (opened(ViewRequest(path=one), 1) for one in (stored, place))
    assert here.source.name == there.source.name == open_store(stored).case_ids[1]
    np.testing.assert_array_equal(voxels_of(here), voxels_of(there))
    assert here.masks[0].read_section("axial", 2) == there.masks[0].read_section("axial", 2)
    assert describe_parts(here, 0, 2) == describe_parts(there, 0, 2)
