"""Every kind of scan gives the voxels and the grid that its file gives; what is ambiguous is refused."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from slicemill.api.scans import make_affine, make_grid, own_affine, read_input, to_lps, to_own_order
from slicemill.common.errors import GeometryError, ScanError, UsageError
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.geometry import RAS_TO_LPS
from slicemill.store.reader import open_store

CODES = ["".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)]
HU = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def affine_of(code, spacing=(0.7, 0.8, 2.5), tilt=0.1):
    """Return an oblique affine, voxel i j k to RAS mm, whose axes have these codes."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (letter, step) in enumerate(zip(code, spacing, strict=True)):
        row, sign = axes[letter]
        affine[row, column] = sign * step
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (12.5, -30.25, 100.0)
    return affine


def same(one, other):
    assert np.array_equal(one.scan.volume, other.scan.volume)
    assert one.scan.volume.dtype == np.int16
    assert one.scan.volume.flags.c_contiguous
    assert one.scan.grid.shape == other.scan.grid.shape
    assert np.allclose(one.scan.grid.affine, other.scan.grid.affine, atol=1e-4)


@pytest.mark.parametrize("code", CODES)
def test_file_nibabel_simpleitk_and_arrays_are_one_scan(code, tmp_path):
    affine, path = affine_of(code), tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(HU, affine), path)
    file = read_input(path)
    assert file.origin.name == "scan.nii"
    same(read_input(str(path)), file)
    same(read_input(nib.load(path)), file)
    same(read_input(nib.Nifti1Image(HU, affine)), file)
    same(read_input(SimpleITK.ReadImage(str(path))), file)
    same(read_input(HU, affine=affine, axes="xyz-ras"), file)
    same(read_input(HU.T, affine=RAS_TO_LPS @ affine, axes="zyx-lps"), file)
    for one, shape in ((file, HU.shape), (read_input(SimpleITK.ReadImage(str(path))), HU.T.shape)):
        own = to_own_order(one.scan.volume, one.origin.view, one.origin.axes)
        assert own.shape == shape
        assert np.array_equal(own, HU if one.origin.axes == "xyz-ras" else HU.T)
        assert np.array_equal(to_lps(own, one.origin.view, one.origin.axes), one.scan.volume)
    assert np.allclose(own_affine(file.origin.view, "xyz-ras"), affine, atol=1e-5)


def test_a_case_of_a_store_is_the_scan_of_its_file(stored, collection):
    for case_id, case in open_store(stored).items():
        found, file = read_input(case), read_input(next(collection.glob(f"{case_id}.nii*")))
        same(found, file)
        assert found.origin.view.stored_shape == found.origin.view.shape[::-1] == case.image.shape
        assert np.allclose(own_affine(found.origin.view, found.origin.axes), case.affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64, ">i2"])
def test_stored_types_and_scaling_do_not_change_the_scan(dtype, tmp_path):
    image = nib.Nifti1Image(np.abs(HU % 200).astype(dtype), affine_of("LPS"))
    image.header.set_slope_inter(1.0, -100.0)
    nib.save(image, tmp_path / "scaled.nii.gz")
    same(read_input(nib.load(tmp_path / "scaled.nii.gz")), read_input(tmp_path / "scaled.nii.gz"))


def test_an_affine_that_was_changed_in_memory_counts(tmp_path):
    nib.save(nib.Nifti1Image(HU, affine_of("RAS")), tmp_path / "scan.nii")
    image = nib.load(tmp_path / "scan.nii")
    image.affine[:3, 3] += 50
    image.affine[2, :3] *= -1
    nib.save(nib.Nifti1Image(image.dataobj, image.affine), tmp_path / "changed.nii")
    same(read_input(image), read_input(tmp_path / "changed.nii"))


def test_warnings_of_an_image_are_those_of_its_file(tmp_path):
    meters = np.diag([1e-3, 1e-3, 1e-3, 1.0])
    image = nib.Nifti1Image(HU[..., None], meters @ affine_of("LPS"))
    image.set_qform(meters @ affine_of("RAS"), 1)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "odd.nii")
    warnings = read_input(tmp_path / "odd.nii").scan.warnings
    assert len(warnings) == 4
    assert read_input(nib.load(tmp_path / "odd.nii")).scan.warnings == warnings


def test_no_text_of_a_header_is_kept():
    image = nib.Nifti1Image(HU, affine_of("LPS"))
    image.header["descrip"] = b"DOE^JANE"
    assert b"DOE" not in read_input(image).scan.header


@pytest.mark.parametrize("code", CODES)
def test_a_new_header_describes_the_grid(code):
    for affine in (
        affine_of(code),
        affine_of(code) @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ):
        grid = make_grid(HU.shape, affine, "xyz-ras")
        written = parse_grid(make_header(grid))
        assert written.shape == grid.shape
        assert np.allclose(written.affine, affine, atol=1e-4)
    assert parse_grid(make_header(make_grid((40_000, 1, 1), affine, "xyz-ras"))).shape == (40_000, 1, 1)


def test_spacing_is_in_the_order_of_the_axes():
    zyx = read_input(HU, spacing=(5.0, 0.8, 0.7), axes="zyx-lps")
    assert zyx.scan.grid.spacing_mm == (5.0, 0.8, 0.7)
    assert np.array_equal(zyx.scan.volume, HU)
    xyz = read_input(HU, spacing=(0.7, 0.8, 5.0), axes="xyz-ras")
    assert xyz.scan.grid.spacing_mm == (5.0, 0.8, 0.7)
    assert np.array_equal(xyz.scan.volume, HU.T[:, ::-1, ::-1])


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "why"),
        [
            ({}, "an array needs the order of its axes"),
            ({"affine": np.eye(4)}, "Pass axes='xyz-ras' for array"),
            ({"spacing": (1, 1, 1)}, "needs the order of its axes"),
            ({"spacing": (1, 1, 1), "axes": "xyz"}, "axes = 'xyz'"),
            ({"axes": "zyx-lps"}, "pass one of them"),
            ({"axes": "zyx-lps", "spacing": (1, 1, 1), "affine": np.eye(4)}, "pass one of them"),
            ({"axes": "zyx-lps", "spacing": (1, 1)}, "must be three lengths"),
            ({"axes": "zyx-lps", "spacing": (1, 0, 1)}, "must be three lengths"),
            ({"axes": "zyx-lps", "spacing": (1, np.nan, 1)}, "must be three lengths"),
            ({"axes": "zyx-lps", "affine": np.eye(3)}, "must be a 4x4 matrix"),
            ({"axes": "zyx-lps", "affine": np.ones((4, 4))}, "the last row 0, 0, 0, 1"),
        ],
    )
    def test_an_array_without_its_geometry(self, words, why):
        with pytest.raises(UsageError, match=why):
            read_input(HU, **words)

    def test_an_affine_that_is_none(self):
        with pytest.raises(GeometryError):
            read_input(HU, affine=np.diag([1.0, 1.0, 0.0, 1.0]), axes="xyz-ras")
        with pytest.raises(GeometryError):
            read_input(HU, affine=np.diag([1.0, 1.0, np.nan, 1.0]), axes="xyz-ras")

    @pytest.mark.parametrize("array", [HU[0], HU[None], HU[:0]])
    def test_an_array_of_another_shape(self, array):
        with pytest.raises(GeometryError):
            read_input(array, spacing=(1, 1, 1), axes="zyx-lps")

    @pytest.mark.parametrize(
        ("array", "why"),
        [
            (HU.astype(bool), "must be integers or floats"),
            (HU.astype(complex), "must be integers or floats"),
            (HU.astype(object), "must be integers or floats"),
            (np.where(HU > 990, np.nan, HU), "NaN or infinite"),
            (HU.astype(np.int64) * 100, "must fit in"),
        ],
    )
    def test_voxels_that_are_no_hu(self, array, why):
        with pytest.raises(ScanError, match=why):
            read_input(array, spacing=(1, 1, 1), axes="zyx-lps")

    def test_geometry_for_what_has_its_own(self, tmp_path):
        with pytest.raises(UsageError, match="belong to arrays"):
            read_input(nib.Nifti1Image(HU, np.eye(4)), axes="xyz-ras")
        with pytest.raises(UsageError, match="belong to arrays"):
            read_input(tmp_path / "scan.nii", spacing=(1, 1, 1))

    def test_several_volumes_and_colors(self):
        with pytest.raises(ScanError, match="several volumes"):
            read_input(nib.Nifti1Image(np.stack([HU, HU], axis=-1), np.eye(4)))
        with pytest.raises(ScanError, match="2 numbers per voxel"):
            read_input(SimpleITK.GetImageFromArray(np.stack([HU, HU], axis=-1), isVector=True))
        with pytest.raises(ScanError, match="has 2 axes"):
            read_input(SimpleITK.GetImageFromArray(HU[0]))

    @pytest.mark.parametrize("scan", [None, 3, [HU], nib.MGHImage(HU, np.eye(4)), nib.AnalyzeImage(HU, np.eye(4))])
    def test_other_objects(self, scan):
        with pytest.raises(ScanError, match=r"this is a .*nibabel.Nifti1Image.from_image"):
            read_input(scan)


def test_an_affine_by_spacing_has_no_rotation():
    assert np.array_equal(make_affine((1, 2, 3), None, "xyz-ras"), np.diag([1, 2, 3, 1]))
