"""Crops around points in mm: by hand, and compared with SimpleITK's resampling."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

from slicemill.common.errors import ScanError
from slicemill.ct.crops import OUTSIDE_HU, SIDE, SPACING_MM, cut_crop

Floats = npt.NDArray[np.float64]
SHAPE = (23, 40, 36)
ORDERS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def make_image() -> npt.NDArray[np.int16]:
    return np.random.default_rng(7).integers(-1000, 1500, SHAPE).astype(np.int16)


def make_affine(linear: Floats, spacing_xyz: tuple[float, float, float] = (0.7, 0.8, 2.5)) -> Floats:
    affine = np.eye(4)
    affine[:3, :3] = linear @ np.diag(spacing_xyz)
    affine[:3, 3] = (-31.2, 17.9, -604.3)
    return affine


def rotate(degrees: float, axis: tuple[float, float, float]) -> Floats:
    """Return the rotation about an axis, float64[3, 3] (Rodrigues)."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def resample_itk(image: npt.NDArray[np.int16], affine: Floats, center: Floats) -> npt.NDArray[np.int16]:
    """Return the crop as SimpleITK resamples it. Its direction may not be a shear."""
    volume = SimpleITK.GetImageFromArray(image)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume.SetSpacing(spacing.tolist())
    volume.SetOrigin(affine[:3, 3].tolist())
    volume.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    grid = SimpleITK.Image([SIDE] * 3, SimpleITK.sitkInt16)
    grid.SetSpacing([SPACING_MM] * 3)
    grid.SetOrigin((center - (SIDE - 1) / 2 * SPACING_MM).tolist())
    crop = SimpleITK.Resample(volume, grid, SimpleITK.Transform(), SimpleITK.sitkLinear, float(OUTSIDE_HU))
    return np.asarray(SimpleITK.GetArrayFromImage(crop))


def compare(affine: Floats, voxel_xyz: tuple[float, float, float]) -> None:
    image = make_image()
    center = (affine @ [*voxel_xyz, 1])[:3]
    ours, theirs = cut_crop(image, affine, center), resample_itk(image, affine, center)
    difference = np.abs(ours.astype(int) - theirs)
    # where a sample lies on the limit of half a voxel, the last bit of its position decides
    assert (difference > 1).mean() < 1e-4
    assert (ours != OUTSIDE_HU).any()


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_a_crop_is_simpleitks_in_each_of_48_axis_orders(
    order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    linear = np.zeros((3, 3))
    linear[order, range(3)] = signs
    compare(make_affine(linear), (17.3, 21.8, 9.1))


@pytest.mark.parametrize("degrees", [0.001, 0.5, 20, 63, 170])
@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (1, 2, 3)])
def test_a_crop_of_an_oblique_scan_is_simpleitks(degrees: float, axis: tuple[float, float, float]) -> None:
    compare(make_affine(rotate(degrees, axis)), (17.3, 21.8, 9.1))


@pytest.mark.parametrize("voxel", [(0, 0, 0), (35, 39, 22), (-4, 20, 10), (18, 20, 25)])
def test_a_crop_at_the_border_keeps_its_point_in_the_middle(voxel: tuple[float, float, float]) -> None:
    compare(make_affine(np.eye(3)), voxel)
    compare(make_affine(rotate(12, (0, 1, 1))), voxel)


def test_a_crop_of_a_tilted_gantry_takes_the_voxels_along_the_shear() -> None:
    # each slice is 0.4 mm farther back than the one below, as a tilted gantry stores them; a linear HU field is exact
    shear = np.eye(4)
    shear[1, 2] = 0.4
    z, y, x = np.meshgrid(*(np.arange(count) for count in (80, 90, 70)), indexing="ij")
    image = np.rint(4 * x + 8 * (y + 0.4 * z) - 2 * z).astype(np.int16)
    crop = cut_crop(image, shear, (35.0, 60.0, 40.0))
    offsets = np.arange(SIDE) - (SIDE - 1) / 2
    expected = 4 * (35 + offsets)[None, None, :] + 8 * (60 + offsets)[None, :, None] - 2 * (40 + offsets)[:, None, None]
    assert np.abs(crop - expected).max() <= 1


def test_voxels_of_a_millimeter_are_copied_and_air_surrounds_them() -> None:
    image = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    crop = cut_crop(image, np.eye(4), (0.5, 0.5, 0.5))
    assert crop.shape == (SIDE, SIDE, SIDE)
    assert crop.dtype == np.int16
    np.testing.assert_array_equal(crop[23:25, 23:25, 23:25], image)
    assert np.count_nonzero(crop != OUTSIDE_HU) == 8


def test_a_crop_far_outside_the_scan_is_air() -> None:
    assert (cut_crop(make_image(), np.eye(4), (1e6, 0, 0)) == OUTSIDE_HU).all()


def test_a_larger_crop_has_the_same_samples_in_its_middle() -> None:
    affine = make_affine(rotate(20, (1, 2, 3)))
    center = (affine @ [17, 20, 11, 1])[:3]
    wide = cut_crop(make_image(), affine, center, side=SIDE + 12)
    np.testing.assert_array_equal(wide[6:-6, 6:-6, 6:-6], cut_crop(make_image(), affine, center))


@pytest.mark.parametrize("center", [(np.nan, 0, 0), (0, np.inf, 0), (0, 0)])
def test_a_center_that_is_no_point_is_refused(center: tuple[float, ...]) -> None:
    with pytest.raises(ScanError, match="three finite numbers"):
        cut_crop(make_image(), np.eye(4), center)
