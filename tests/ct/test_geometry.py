"""Grids: all 48 orientations, oblique axes, and positions in mm; nibabel and SimpleITK are the oracles."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import GeometryError
from slicemill.ct.geometry import RAS_TO_LPS, Grid, make_contiguous, voxel_to_mm
from slicemill.ct.phantom import write_nifti
from slicemill.ct.scan import ScanReader

ORIENTATIONS = [
    "".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)
]


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_every_orientation_reads_as_the_same_lps_volume(axcodes, tmp_path):
    volume = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, volume, (5.0, 2.0, 1.0), axcodes)
    with ScanReader(path, "image") as reader:
        assert reader.grid.axcodes == axcodes
        assert np.array_equal(reader.read(), volume)
        assert reader.grid.spacing_mm == (5.0, 2.0, 1.0)
        on_file = np.asarray(nib.load(path).dataobj)
        assert np.array_equal(reader.grid.to_file(volume).T, on_file)


@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.floats(-0.3, 0.3)] * 3),
)
def test_voxels_keep_their_millimetres_also_when_oblique(axcodes, shape, turn):
    ornt = nib.orientations.axcodes2ornt(tuple(axcodes))
    affine = nib.orientations.inv_ornt_aff(ornt, shape) @ np.diag([1.5, 2.5, 4.0, 1.0])
    cosines = np.eye(3)
    for axis, angle in enumerate(turn):
        c, s = np.cos(angle), np.sin(angle)
        plane = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        plane[first, first], plane[first, second], plane[second, first], plane[second, second] = c, -s, s, c
        cosines = plane @ cosines
    rotation = np.eye(4)
    rotation[:3, :3] = cosines
    grid = Grid(shape=shape, affine=rotation @ affine)
    indices = np.stack(np.meshgrid(*[np.arange(extent) for extent in shape], indexing="ij")).reshape(3, -1)
    codes = np.ravel_multi_index(indices, shape).reshape(shape)
    stored = grid.to_stored(codes.T)
    assert stored.shape == grid.stored_shape
    assert np.array_equal(grid.to_file(stored), codes.T)
    for place in itertools.product(*[(0, extent - 1) for extent in stored.shape]):
        i, j, k = np.unravel_index(stored[place], shape)
        expected = (RAS_TO_LPS @ grid.affine @ [i, j, k, 1.0])[:3]
        assert voxel_to_mm(grid.affine_lps, place) == pytest.approx(expected, abs=1e-6)


def test_simpleitk_finds_a_voxel_at_the_same_millimetres(tmp_path):
    volume = np.zeros((4, 5, 6), dtype=np.int16)
    volume[3, 1, 2] = 1000
    path = tmp_path / "scan.nii"
    write_nifti(path, volume, (3.0, 2.0, 1.0), "PIR")
    picture = sitk.ReadImage(str(path))
    z, y, x = np.argwhere(sitk.GetArrayFromImage(picture) == 1000)[0].tolist()
    with ScanReader(path, "image") as reader:
        place = np.argwhere(reader.read() == 1000)[0]
        assert place.tolist() == [3, 1, 2]
        assert voxel_to_mm(reader.grid.affine_lps, place) == pytest.approx(
            picture.TransformIndexToPhysicalPoint((x, y, z)), abs=1e-4
        )


@given(
    st.lists(st.integers(0, 17), min_size=1, max_size=3),
    st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3),
    st.sampled_from([np.uint8, np.int8, np.bool_, np.int16]),
    st.booleans(),
)
def test_a_flipped_array_is_copied_in_order_and_left_as_it_is(shape, signs, dtype, turned):
    given = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 100, shape).astype(dtype)
    kept = given.copy()
    view = given[tuple(slice(None, None, sign) for sign in signs[: len(shape)])]
    view = view.T if turned else view
    found = make_contiguous(view)
    assert found.flags.c_contiguous
    assert found.dtype == dtype
    assert np.array_equal(found, view)
    assert np.array_equal(given, kept)


def test_a_flat_affine_is_refused():
    with pytest.raises(GeometryError, match="must be invertible"):
        Grid(shape=(2, 2, 2), affine=np.diag([1.0, 0.0, 1.0, 1.0]))


def test_distance_is_that_of_the_farthest_corner():
    near = Grid(shape=(11, 1, 1), affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    far = Grid(shape=(11, 1, 1), affine=np.diag([1.1, 1.0, 1.0, 1.0]))
    assert near.distance_mm(far) == pytest.approx(1.0)


def test_an_affine_of_denormal_numbers_is_refused_without_a_warning():
    with pytest.raises(GeometryError, match="must be invertible"):
        Grid(shape=(2, 2, 2), affine=np.array([[1.0, 0, 0, 0], [0, 3, 0.1, 0], [0, 0, 5e-324, 0], [0, 0, 0, 1]]))


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e308, 1e7])
def test_an_affine_of_absurd_numbers_is_refused_without_a_warning(number):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 3], affine[1, 1] = number, 1e308
    with pytest.raises(GeometryError, match="must have numbers within 1,000,000 mm"):
        Grid(shape=(2, 2, 2), affine=affine)
