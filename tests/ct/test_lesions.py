"""Lesions: components, measures and slabs; scipy and measurement of all pairs are the oracles."""

import numpy as np
import pytest
from scipy import ndimage

from slicemill.common.errors import LabelError
from slicemill.ct.diameters import axial_diameter
from slicemill.ct.lesions import LesionTracker, bounding_box, find_lesions, label_components

UNIT = np.eye(4)


def test_diagonal_neighbours_are_one_lesion():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert len(find_lesions(mask, UNIT)) == 1


def test_components_are_those_of_scipy(rng):
    mask = ndimage.gaussian_filter(rng.standard_normal((20, 24, 28)), 1.2) > 0.15
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
    found = label_components(mask)
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


@pytest.mark.parametrize("depth", [1, 3, 7])
@pytest.mark.parametrize("downwards", [False, True])
@pytest.mark.parametrize("cropped", [False, True])
def test_a_scan_in_slabs_has_the_lesions_of_the_complete_scan(depth, downwards, cropped, rng):
    for seed in range(4):
        field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((19, 24, 28)), 1.1)
        mask = field > 0.12 + 0.1 * seed
        mask[8] = False  # a gap between two slabs
        expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
        tracker = LesionTracker()
        starts = range(0, len(mask), depth)
        for z in reversed(starts) if downwards else starts:
            slab, corner = mask[z : z + depth], (0, 0)
            box = bounding_box(slab)
            if cropped and box is not None:
                slab, corner = slab[:, box[1], box[2]], (box[1].start, box[2].start)
            tracker.add(z, slab, corner)
        found = tracker.lesions(UNIT)
        assert found == find_lesions(mask, UNIT)
        assert len(found) == count
        boxes = {
            tuple(side.start for side in box) + tuple(side.stop for side in box)
            for box in ndimage.find_objects(expected)
        }
        assert {lesion.bbox_zyx for lesion in found} == boxes


@pytest.mark.parametrize("row", [[1, 0, 1], [1, 0, 1, 0, 1], [0, 1]])
def test_the_thinnest_masks_have_their_components(row):
    """cc3d 4.1 raises on arrays that are one voxel thick in two directions."""
    for axis in range(3):
        mask = np.moveaxis(np.array(row, bool)[None, None], 2, axis)
        assert len(find_lesions(mask, UNIT)) == sum(row)


def test_noise_is_refused_before_it_takes_the_memory(rng):
    with pytest.raises(LabelError, match="more than 20,000 separate pieces"):
        find_lesions(rng.random((32, 512, 512)) < 0.005, UNIT)


def test_a_comb_of_many_pieces_is_one_lesion_in_little_time_and_memory():
    mask = np.zeros((17, 256, 256), bool)
    mask[:16, ::4, ::4] = True
    mask[16] = True
    (lesion,) = find_lesions(mask, UNIT)
    assert lesion.max_axial_diameter_mm == pytest.approx(np.hypot(256, 255), abs=0.01)


def test_many_columns_on_a_plate_are_measured_in_little_memory():
    """Thousands of parts that the next slab joins into one."""
    import tracemalloc

    mask = np.zeros((32, 200, 200), bool)
    y, x = np.mgrid[:200:2, :200:2]
    keep = x <= y
    mask[:16, y[keep], x[keep]] = True
    mask[16] = np.tri(200, dtype=bool)
    tracemalloc.start()
    (lesion,) = find_lesions(mask, UNIT)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lesion.max_axial_diameter_mm == pytest.approx(axial_diameter(mask[16], (1.0, 1.0)), abs=1e-12)
    assert most < 100e6


def test_a_spiral_that_meets_itself_in_many_slabs_is_one_lesion():
    turns = np.linspace(0, 6 * np.pi, 400)
    mask = np.zeros((60, 40, 40), bool)
    mask[
        np.linspace(0, 59, 400).astype(int),
        (19 + 15 * np.sin(turns)).astype(int),
        (19 + 15 * np.cos(turns)).astype(int),
    ] = True
    mask[:, 19, 19] = True
    mask[59] = True
    (lesion,) = find_lesions(mask, UNIT)
    assert lesion.voxels == mask.sum()


@pytest.mark.slow
def test_the_diameter_is_that_of_all_pairs_of_edges(rng):
    for _ in range(25):
        section = ndimage.gaussian_filter(rng.standard_normal((30, 40)), 3) > 0.05
        if not section.any():
            continue
        y, x = np.nonzero(section)
        edges = [(y - 0.5, x), (y + 0.5, x), (y, x - 0.5), (y, x + 0.5)]
        points = np.concatenate([np.stack(edge, axis=1) for edge in edges]) * np.array((0.7, 1.1))
        longest_pair = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2).max())
        assert axial_diameter(section, (0.7, 1.1)) == pytest.approx(longest_pair, abs=1e-12)


def test_the_longest_section_is_that_of_all_sections(rng):
    spacing = np.array([0.7, 1.1])
    affine = np.diag([spacing[1], spacing[0], 3.0, 1.0])
    for seed in range(40):
        smooth = (2, *rng.uniform(0.8, 5, 2))
        field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((12, 40, 36)), smooth)
        mask = field > 0.5 * field.std()
        expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
        found = find_lesions(mask, affine)
        sizes = np.bincount(expected.ravel())
        for lesion in found:
            z0, y0, x0, z1, y1, x1 = lesion.bbox_zyx
            inside = np.bincount(expected[z0:z1, y0:y1, x0:x1].ravel(), minlength=count + 1)
            (number,) = (n for n in range(1, count + 1) if inside[n] == sizes[n] == lesion.voxels)
            lengths = [axial_diameter(section == number, (0.7, 1.1)) for section in expected]
            assert lesion.max_axial_diameter_mm == pytest.approx(max(lengths), abs=1e-12)
            assert lengths[lesion.key_z] == pytest.approx(max(lengths), abs=1e-12)


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
    from slicemill.store.reader import open_store

    for case in open_store(stored).values():
        lesions = case.info.lesions
        assert sum(lesion.voxels for lesion in lesions) == sum(case.info.slice_stats.voxels["tumor"])
        assert [lesion.id for lesion in lesions] == list(range(1, len(lesions) + 1))
        assert [lesion.voxels for lesion in lesions] == sorted((lesion.voxels for lesion in lesions), reverse=True)
