"""Synthetic chests: reproducible, with nodules where the annotations say and the tissues that they promise."""

import numpy as np
import pytest
from scipy import ndimage

from slicemill.ct.chest.collection import annotate
from slicemill.ct.chest.nodule_shape import draw_shape
from slicemill.ct.chest.nodules import draw_loose_nodule
from slicemill.ct.chest.phantom import make_chest
from slicemill.ct.chest.plan import make_plan
from slicemill.ct.chest.shapes import capsule_distance
from slicemill.ct.chest.slab import Slab, tube_cover
from slicemill.ct.chest.spec import ChestSpec, draw_count, draw_diameter
from slicemill.ct.chest.trees import Tubes

SPEC = ChestSpec(seed=(100, 1), size=128)


@pytest.fixture(scope="module")
def plan():
    return make_plan(SPEC)


@pytest.fixture(scope="module")
def chest(plan):
    return make_chest(SPEC, plan)


def voxel_of(row, affine):
    point = np.array([row.coordX, row.coordY, row.coordZ, 1.0])
    return np.linalg.solve(affine, point)[2::-1]


@pytest.mark.slow
def test_equal_specs_give_equal_voxels_and_others_do_not(chest):
    again = make_chest(SPEC, make_plan(SPEC))
    for name in ("image", "lungs", "nodules", "affine"):
        assert np.array_equal(getattr(again, name), getattr(chest, name)), name
    other = make_plan(ChestSpec(seed=(101, 1), size=128))
    assert other.patient != make_plan(SPEC).patient


def test_annotations_are_the_same_at_any_size():
    """The plan knows no voxels; only the place of the first voxel in the file depends on the size."""
    small, large = (ChestSpec(seed=(100, 1), size=size) for size in (128, 512))
    one, two = make_plan(small), make_plan(large)
    assert [nodule.diameter_mm for nodule in one.nodules] == [nodule.diameter_mm for nodule in two.nodules]
    assert [row.diameter_mm for row in annotate(small, one)] == [row.diameter_mm for row in annotate(large, two)]


def test_the_chest_has_air_lung_soft_tissue_and_bone(chest):
    image, lungs = chest.image, chest.lungs
    inside = ndimage.binary_erosion((lungs == 3) | (lungs == 4), iterations=2)
    assert -930 < np.median(image[inside]) < -830
    assert np.median(image[lungs == 5]) < -900, "air in the trachea"
    assert (image > 400).mean() > 0.002, "bone"
    liters = [(lungs == side).sum() * abs(np.linalg.det(chest.affine[:3, :3])) / 1e6 for side in (3, 4)]
    assert all(1.0 < volume < 4.0 for volume in liters), liters


def test_the_left_lung_is_3_and_lies_at_larger_x(chest):
    middles = [np.nonzero(chest.lungs == value)[2].mean() for value in (4, 3)]
    assert middles[0] < middles[1]


def test_lungs_end_inside_the_scan(chest):
    lungs = (chest.lungs == 3) | (chest.lungs == 4)
    for axis in range(3):
        assert not lungs.take(0, axis).any()
        assert not lungs.take(-1, axis).any()


def test_lungs_have_vessels_that_are_connected_with_the_hilum(chest):
    lung = ndimage.binary_erosion(chest.lungs == 4, iterations=1)
    dense = lung & (chest.image > -500)
    numbers, count = ndimage.label(dense, structure=np.ones((3, 3, 3)))
    assert np.bincount(numbers[numbers > 0]).max() > 0.1 * dense.sum(), "the largest tree"
    assert count > 50


def test_vessels_follow_murrays_law(plan):
    """The cube of a parent's radius is the sum of its children's: where branches begin, the cubes of all sum up."""
    vessels = plan.trees.vessels.pick(np.arange(len(plan.trees.vessels)))
    starts = {}
    for point, radius in zip(vessels.starts.round(6).tolist(), vessels.radii, strict=True):
        starts.setdefault(tuple(point), []).append(radius)
    checked = 0
    for *place, radius in plan.trees.forks:
        children = starts[tuple(np.round(place, 6))]
        assert sum(child**3 for child in children) == pytest.approx(radius**3, rel=1e-6)
        checked += 1
    assert checked > 100


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_annotations_fall_on_their_nodules(number):
    spec = ChestSpec(seed=(200, number), size=192)
    plan = make_plan(spec)
    chest = make_chest(spec, plan)
    rows = annotate(spec, plan)
    for index, (row, nodule) in enumerate(zip(rows, plan.nodules, strict=True), start=1):
        mask = chest.nodules == index
        place = voxel_of(row, chest.affine)
        spacing = np.array([np.linalg.norm(chest.affine[:3, axis]) for axis in (2, 1, 0)])
        middle = np.argwhere(mask).mean(axis=0)
        assert np.linalg.norm((middle - place) * spacing) < max(row.diameter_mm / 4, spacing.max() / 2)
        if row.diameter_mm > 3 * spacing.max():
            volume = mask.sum() * spacing.prod()
            assert 0.6 < volume / (np.pi / 6 * row.diameter_mm**3) < 1.3
            core = ndimage.binary_erosion(mask)
            if core.any():
                expected = nodule.hu
                assert np.median(chest.image[core]) > min(expected, 0) - 150


def test_diameters_and_counts_are_those_of_luna16():
    """Median 6.4 mm; 42, 34, 20 and 4 % in its bands; a third of the scans without, at most 12 in one."""
    rng = np.random.default_rng(0)
    diameters = np.array([draw_diameter(rng) for _ in range(20_000)])
    counts = np.array([draw_count(SPEC, rng) for _ in range(20_000)])
    assert np.median(diameters) == pytest.approx(6.4, abs=0.1)
    bands = np.histogram(diameters, [3, 6, 10, 20, 33])[0] / len(diameters)
    assert bands == pytest.approx([0.42, 0.34, 0.20, 0.04], abs=0.01)
    assert (counts == 0).mean() == pytest.approx(1 / 3, abs=0.01)
    assert counts.max() == 12
    assert counts[counts > 0].mean() == pytest.approx(1.97, abs=0.1)


def area_under_curve(score, malignant):
    return (score[malignant][:, None] > score[~malignant][None]).mean()


@pytest.mark.slow
def test_nodules_keep_at_least_3_mm_of_their_diameter_where_the_pleura_cuts_them():
    nodules = [nodule for case in range(12) for nodule in make_plan(ChestSpec(seed=(100, case))).nodules]
    assert len(nodules) > 6
    for nodule in nodules:
        assert nodule.diameter_mm >= 3
        ball = 2 * nodule.shape.radius_mm
        assert 0.7 * ball < nodule.diameter_mm < 1.35 * ball, "the part inside the lung, waves and spicules"
        assert np.linalg.norm(nodule.centroid - nodule.center) < nodule.shape.radius_mm / 2


def test_the_diameter_tells_malignant_nodules_with_an_auc_of_075_and_the_shape_adds():
    rng = np.random.default_rng(0)
    nodules = [draw_loose_nodule(draw_diameter(rng), "free", rng) for _ in range(4000)]
    diameters = np.array([nodule.diameter_mm for nodule in nodules])
    malignant = np.array([nodule.malignant for nodule in nodules])
    alone = area_under_curve(diameters, malignant)
    assert alone == pytest.approx(0.75, abs=0.03)
    shaped = np.array([len(nodule.shape.spicules) > 0 or nodule.kind == "part-solid" for nodule in nodules])
    assert area_under_curve(shaped + 0.3 * np.log(diameters), malignant) > alone + 0.05
    kinds = [nodule.kind for nodule in nodules]
    shares = [kinds.count(kind) / len(kinds) for kind in ("solid", "part-solid", "ground-glass", "calcified")]
    assert shares == pytest.approx([0.60, 0.15, 0.20, 0.05], abs=0.03)


@pytest.mark.parametrize("radius_mm", [4.0, 8.0])
def test_spicules_are_strands_as_thick_as_a_reader_sees_them(radius_mm):
    shape = draw_shape(np.random.default_rng(3), radius_mm, spiculated=True)
    directions, lengths = shape.spicules[:, :3], shape.spicules[:, 3]
    assert len(lengths) >= 6
    assert lengths.min() > 3
    # Zwirewich et al., Radiology 1991: strands into the lung, fine below 2 mm and coarse from there on
    for reach, thickest, thinnest in ((0.0, 2.3, 2.1), (0.5, 1.6, 1.5), (1.0, 0.9, 0.8)):
        axis = directions[0] * (radius_mm + reach * lengths[0])
        beside = np.cross(directions[0], [0.0, 0.0, 1.0])
        beside /= np.linalg.norm(beside)
        assert shape.distance(axis + beside * thinnest / 2) < 0
        if reach:  # at its foot, the waves of the surface may reach farther
            assert shape.distance(axis + beside * thickest / 2) > 0
    assert shape.distance(directions[0] * (radius_mm + lengths[0] + 0.5)) > 0


def test_small_nodules_are_not_part_solid():
    rng = np.random.default_rng(1)
    small, large = ([draw_loose_nodule(size, "free", rng).kind for _ in range(100)] for size in (5.9, 6.0))
    assert "part-solid" not in small
    assert "part-solid" in large


def test_surfaces_are_as_uneven_on_a_grid_as_at_points(plan):
    """A grid takes its sines along its axes, a list of points takes one of each."""
    z, y, x = (np.linspace(-150, 150, count, dtype=np.float32) for count in (4, 5, 7))
    pz, py, px = (axis.ravel() for axis in np.meshgrid(z, y, x, indexing="ij"))
    grid = plan.patient.unevenness(x[None, None, :], y[None, :, None], z[:, None, None])
    assert grid.shape == (4, 5, 7)
    assert 0.5 < grid.std() < 1.5
    assert np.abs(grid.ravel() - plan.patient.unevenness(px, py, pz)).max() < 1e-4


def test_tubes_cover_voxels_by_their_distance_from_the_axis():
    """Compared with the distance of every voxel from every tube."""
    rng = np.random.default_rng(0)
    ticks, heights = np.arange(-20, 20, 1.3, dtype=np.float32), np.arange(-6, 6, 0.6, dtype=np.float32)
    slab = Slab(x=ticks, y=ticks, z=heights, hu=np.zeros((len(heights), len(ticks), len(ticks)), dtype=np.float32))
    starts, ends = rng.uniform(-30, 30, (2, 25, 3))
    tubes = Tubes(starts=starts, ends=ends, radii=rng.uniform(0.3, 4, 25))
    z, y, x = np.meshgrid(heights, ticks, ticks, indexing="ij")
    points, expected = np.stack([x, y, z], axis=-1), np.zeros(x.shape)
    for start, end, radius in zip(starts, ends, tubes.radii, strict=True):
        distance = capsule_distance(points - start, end - start)
        share = np.clip(0.5 + (radius - distance) / 1.3, 0, 1) * min(1, 2 * radius / 1.3)
        expected = np.maximum(expected, share)
    assert tube_cover(slab, tubes) == pytest.approx(expected, abs=0.005)
    assert (expected > 0).mean() > 0.05
