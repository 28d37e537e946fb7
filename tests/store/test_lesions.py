import numpy as np
import pytest
from scipy import ndimage

from store.lesions import axial_diameter, bounding_box, components, find_lesions

UNIT = np.eye(4)


def test_diagonal_neighbours_are_one_lesion():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert len(find_lesions(mask, UNIT)) == 1


def test_components_are_those_of_scipy(rng):
    mask = ndimage.gaussian_filter(rng.standard_normal((20, 24, 28)), 1.2) > 0.15
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
    found = components(mask)
    assert found.max() == count > 5
    assert len(np.unique(np.stack([expected[mask], found[mask]]), axis=1).T) == count
    lesions = find_lesions(mask, UNIT)
    assert [lesion.voxels for lesion in lesions] == sorted(np.bincount(expected[mask])[1:].tolist(), reverse=True)
    centers = ndimage.center_of_mass(mask, expected, range(1, count + 1))
    for lesion in lesions:
        assert min(np.abs(np.array(center)[::-1] - lesion.centroid_lps_mm).max() for center in centers) < 1e-9


def test_an_ellipsoid_has_its_volume_diameter_and_centre_under_anisotropic_spacing():
    spacing = np.array([3.0, 1.0, 0.8])
    z, y, x = np.meshgrid(
        *[(np.arange(n) - n // 2) * s for n, s in zip((31, 61, 91), spacing, strict=True)], indexing="ij"
    )
    mask = (z / 20) ** 2 + (y / 15) ** 2 + (x / 25) ** 2 <= 1
    affine = np.diag([0.8, 1.0, 3.0, 1.0])
    affine[:3, 3] = 100, 200, 300
    (lesion,) = find_lesions(mask, affine)
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 20 * 15 * 25 / 1000, rel=0.01)
    assert lesion.max_axial_diameter_mm == pytest.approx(50, abs=1.0)
    assert lesion.centroid_lps_mm == pytest.approx((100 + 45 * 0.8, 200 + 30, 300 + 15 * 3), abs=1e-9)
    assert lesion.key_z == 15


def test_a_crop_measures_as_the_whole(rng):
    mask = np.zeros((10, 20, 20), bool)
    mask[4:7, 8:12, 3:9] = True
    box = bounding_box(mask)
    corner = tuple(side.start for side in box)
    assert find_lesions(mask, UNIT) == find_lesions(mask[box], UNIT, corner)


def test_no_tumor_is_no_lesion():
    assert find_lesions(np.zeros((2, 2, 2), bool), UNIT) == ()
    assert bounding_box(np.zeros((2, 2), bool)) is None


def test_the_diameter_of_one_pixel_is_its_longer_side():
    assert axial_diameter(np.array([[True]]), (2.0, 3.0)) == 3.0


def test_the_diameter_of_a_disc_is_the_discs():
    y, x = np.mgrid[-30:31, -30:31]
    assert axial_diameter(x**2 + y**2 <= 25.0**2, (1.0, 1.0)) == pytest.approx(50, abs=1.1)


def test_an_empty_section_has_no_diameter():
    assert axial_diameter(np.zeros((3, 3), bool), (1.0, 1.0)) == 0.0


def test_lesions_tile_the_tumor_and_are_numbered_by_volume(stored):
    from store.reader import open_store

    for case in open_store(stored):
        lesions = case.info.lesions
        assert sum(lesion.voxels for lesion in lesions) == sum(case.info.slice_stats.voxels["tumor"])
        assert [lesion.id for lesion in lesions] == list(range(1, len(lesions) + 1))
        assert [lesion.voxels for lesion in lesions] == sorted((lesion.voxels for lesion in lesions), reverse=True)
