import numpy as np
import pytest

from slicemill.common.errors import GeometryError, LabelError, ScanError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store

LITS = Params(labels=LITS_LABELS)
SPACING = (4.0, 1.0, 1.0)


@pytest.fixture
def ct(rng):
    return rng.integers(-1000, 1500, (6, 10, 12), dtype=np.int16)


@pytest.fixture
def mask():
    label = np.zeros((6, 10, 12), np.uint8)
    label[1:5, 2:8, 2:10] = 1
    label[2:4, 3:5, 3:6] = 2
    return label


def convert(folder, image, mask=None, params=LITS, mask_spacing=SPACING, axcodes="LPS"):
    write_nifti(folder / "image.nii.gz", image, SPACING, axcodes)
    if mask is not None:
        write_nifti(folder / "mask.nii.gz", mask, mask_spacing, axcodes)
    case = CaseFiles(
        case_id="x",
        patient_id="x",
        image=folder / "image.nii.gz",
        mask=None if mask is None else folder / "mask.nii.gz",
        root=folder,
    )
    store = prepare_store(folder / "store")
    info = convert_case(case, params, store)
    return info, open_store(store)["x"]


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "LPI", "PIR", "SAL"])
def test_voxels_and_geometry_come_back_bit_for_bit(axcodes, tmp_path, ct, mask):
    import base64

    import nibabel as nib

    info, case = convert(tmp_path, ct, mask, axcodes=axcodes)
    assert np.array_equal(case.image[:], ct)
    assert np.array_equal(case.label[:], mask)
    source = nib.load(tmp_path / "image.nii.gz")
    grid = parse_grid(base64.b64decode(info.image.header_b64))
    assert np.array_equal(grid.to_file(case.image[:]).T, np.asarray(source.dataobj))
    assert np.array_equal(grid.affine, source.affine)


def test_the_source_hash_is_that_of_the_file(tmp_path, ct):
    import hashlib

    info, _ = convert(tmp_path, ct)
    assert info.image.sha256 == hashlib.sha256((tmp_path / "image.nii.gz").read_bytes()).hexdigest()
    assert info.image.bytes == (tmp_path / "image.nii.gz").stat().st_size


def test_the_same_input_gives_the_same_bytes(tmp_path, ct, mask):
    stores = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        convert(tmp_path / name, ct, mask)
        root = tmp_path / name / "store" / "scans.zarr"
        stores.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert stores[0] == stores[1]


def test_padding_is_kept_and_left_out_of_the_statistics(tmp_path, ct):
    ct[:, :2] = -3024
    ct[0] = -3024
    info, case = convert(tmp_path, ct)
    assert np.array_equal(case.image[:], ct)
    assert info.slice_stats.hu_min[1] == ct[1][ct[1] >= -1024].min()
    assert info.slice_stats.hu_min[0] is info.slice_stats.hu_max[0] is None
    assert any("taken as padding" in warning for warning in info.warnings)


def test_an_image_and_a_mask_of_different_shape_are_refused(tmp_path, ct, mask):
    with pytest.raises(GeometryError, match="must have the same shape"):
        convert(tmp_path, ct, mask[:, :9])
    assert open_store(tmp_path / "store").case_ids == []


def test_an_image_and_a_mask_on_different_grids_are_refused_or_trusted(tmp_path, ct, mask):
    with pytest.raises(GeometryError, match=r"their affines differ by .* mm\..*--geometry trust-image"):
        convert(tmp_path, ct, mask, mask_spacing=(1.0, 1.0, 1.0))
    info, case = convert(tmp_path, ct, mask, Params(labels=LITS_LABELS, geometry="trust-image"), (1.0, 1.0, 1.0))
    assert np.array_equal(case.label[:], mask)
    assert any("the image's was trusted" in warning for warning in info.warnings)


def test_a_mask_whose_oblique_axes_round_the_other_way_is_turned_as_its_image(tmp_path, rng):
    import nibabel as nib

    image, mask = rng.integers(-1000, 1000, (8, 8, 4), dtype=np.int16), np.zeros((8, 8, 4), np.uint8)
    mask[1, 5, 2] = 1
    image[1, 5, 2] = 1500
    for name, degrees, data in (("image", 44.9999, image), ("mask", 45.0001, mask)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        nib.save(
            nib.Nifti1Image(data, np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            tmp_path / f"{name}.nii",
        )
    case = CaseFiles(
        case_id="x", patient_id="x", image=tmp_path / "image.nii", mask=tmp_path / "mask.nii", root=tmp_path
    )
    store = prepare_store(tmp_path / "store")
    convert_case(case, LITS, store)
    stored = open_store(store)["x"]
    assert np.argwhere(stored.label[:] == 1).tolist() == np.argwhere(stored.image[:] == 1500).tolist()


def test_a_value_outside_the_labels_is_named(tmp_path, ct, mask):
    mask[3, 3, 3] = 7
    with pytest.raises(LabelError, match=r"mask\.nii\.gz: has the values \[7\] outside the labels liver=1, tumor=2"):
        convert(tmp_path, ct, mask)


def test_several_values_without_names_are_an_error_that_shows_them(tmp_path, ct, mask):
    with pytest.raises(LabelError, match=r"has the values \[0, 1, 2\] without names.*--labels liver=1,tumor=2"):
        convert(tmp_path, ct, mask, Params(labels=None))
    info, _ = convert(tmp_path, ct, np.minimum(mask, 1), Params(labels=None))
    assert dict(info.labels.values) == {"label_1": 1}
    assert info.lesions is None


@pytest.mark.parametrize(
    ("image", "warning"),
    [
        (np.full((2, 4, 4), 1024, np.int16), "may lack the intercept"),
        (np.arange(64, dtype=np.int16).reshape(2, 4, 8), "does not look like a CT"),
        (np.linspace(-10, 900, 32).reshape(2, 4, 4), "HU were rounded to integers, by at most 0.4"),
    ],
)
def test_voxels_that_look_odd_are_a_warning(image, warning, tmp_path):
    info, _ = convert(tmp_path, image)
    assert any(warning in said for said in info.warnings)


def test_an_empty_mask_is_a_warning_and_no_tumor(tmp_path, ct):
    info, _ = convert(tmp_path, ct, np.zeros(ct.shape, np.uint8))
    assert info.lesions == ()
    assert "the segmentation is empty" in info.warnings


@pytest.mark.parametrize("shape", [(1, 8, 8), (2000, 4, 4), (3, 1, 1)])
def test_scans_of_odd_shape_are_scans(shape, tmp_path, rng):
    image = rng.integers(-1000, 1000, shape, dtype=np.int16)
    label = np.full(shape, 2, np.uint8)
    info, case = convert(tmp_path, image, label)
    assert np.array_equal(case.image[:], image)
    assert info.lesions[0].voxels == image.size


def test_free_text_of_the_header_is_blanked_unless_it_is_kept(tmp_path, ct):
    import base64

    import nibabel as nib

    for keep in (False, True):
        picture = nib.Nifti1Image(ct.T, np.diag([-1.0, -1, 4, 1]))
        picture.header["descrip"] = b"Jane Doe"
        nib.save(picture, tmp_path / "image.nii")
        case = CaseFiles(case_id="x", patient_id="x", image=tmp_path / "image.nii", mask=None, root=tmp_path)
        info = convert_case(case, Params(labels=None, keep_text=keep), prepare_store(tmp_path / f"store{keep}"))
        assert (b"Jane Doe" in base64.b64decode(info.image.header_b64)) == keep


def test_a_damaged_scan_leaves_nothing_in_the_store(tmp_path, rng):
    image = rng.integers(-1000, 1000, (40, 64, 64), dtype=np.int16)
    write_nifti(tmp_path / "a.nii.gz", image, SPACING)
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[:-2000])
    store = prepare_store(tmp_path / "store")
    case = CaseFiles(case_id="x", patient_id="x", image=tmp_path / "a.nii.gz", mask=None, root=tmp_path)
    with pytest.raises(ScanError, match="damaged"):
        convert_case(case, LITS, store)
    assert open_store(store).case_ids == []
    assert list((store / ".partial").iterdir()) == []


def test_a_segmentation_is_not_stored_as_a_scan(mask, tmp_path):
    with pytest.raises(ScanError, match=r"image\.nii\.gz: looks like a segmentation, .* values 0, 1, 2\. .*--mask"):
        convert(tmp_path, mask)
    assert not open_store(tmp_path / "store").case_ids
