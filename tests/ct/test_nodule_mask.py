"""Masks of nodules from center and diameter: on spheres in lung, at borders, on oblique grids, and on a real nodule."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicemill.common.errors import ScanError
from slicemill.ct.geometry import voxel_to_mm
from slicemill.ct.nodule_mask import make_nodule_mask
from slicemill.ct.scan import ScanReader

REAL = Path(__file__).parents[3] / "shared" / "data" / "luna16-style-nodule"
LUNG = -850


def lps(spacing_zyx=(1.0, 0.7, 0.7), origin=(-40.0, 12.0, -200.0), turn=0.0):
    """An affine of voxel x, y, z to LPS mm, turned about z."""
    z, y, x = spacing_zyx
    c, s = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([x, y, z])
    affine[:3, 3] = origin
    return affine


def lung(shape, affine, center, diameter, hu=40, noise=20.0, seed=0):
    """Lung with a sphere of a diameter in mm."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    at = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    ball = ((at - center) ** 2).sum(axis=-1) <= (diameter / 2) ** 2
    image = np.where(ball, hu, LUNG) + np.random.default_rng(seed).normal(0, noise, shape)
    return np.rint(image).astype(np.int16), ball


def whole(found, shape):
    mask = np.zeros(shape, bool)
    mask[found.box] = found.mask
    return mask


@pytest.mark.parametrize("hu", [40, -100, -500, -640], ids=["solid", "soft", "ground-glass", "faint"])
@pytest.mark.parametrize(("diameter", "spacing"), [(6.0, (1.0, 0.7, 0.7)), (15.0, (2.5, 0.6, 0.6)), (30.0, (1, 1, 1))])
def test_a_sphere_is_found_whatever_its_density(hu, diameter, spacing):
    affine = lps(spacing, turn=0.4)
    shape = (40, 60, 60)
    center = np.array(voxel_to_mm(affine, (20, 30, 30)))
    image, ball = lung(shape, affine, center, diameter, hu)
    found = make_nodule_mask(image, affine, center, diameter)
    mask = whole(found, shape)
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.93
    assert abs(found.threshold_hu - (hu + LUNG) / 2) < 40
    assert found.flags == ()


def test_a_vessel_through_a_nodule_is_cut_and_its_next_stretch_left_out_of_training():
    affine, shape = lps((1, 1, 1)), (40, 40, 40)
    center = np.array(voxel_to_mm(affine, (20, 20, 20)))
    image, ball = lung(shape, affine, center, 12.0)
    image[19:22, 19:22, :] = 40
    found = make_nodule_mask(image, affine, center, 12.0)
    mask = whole(found, shape)
    assert mask.sum() < 1.15 * ball.sum()
    rim = np.zeros(shape, bool)
    rim[found.box] = found.rim
    assert rim[20, 20, 28]
    assert not (rim & mask).any()


@pytest.mark.parametrize("place", [(0, 20, 20), (39, 20, 20), (20, 0, 20), (20, 39, 39)])
def test_a_nodule_at_the_border_of_the_scan_has_the_part_that_is_inside(place):
    affine, shape = lps((1, 1, 1)), (40, 40, 40)
    center = np.array(voxel_to_mm(affine, place))
    image, ball = lung(shape, affine, center, 10.0)
    found = make_nodule_mask(image, affine, center, 10.0)
    mask = whole(found, shape)
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.9


def test_without_a_dense_voxel_near_the_center_the_ball_is_taken_and_flagged():
    affine, shape = lps((1, 1, 1)), (40, 40, 40)
    center = np.array(voxel_to_mm(affine, (20, 20, 20)))
    image = np.full(shape, LUNG, np.int16)
    image[:, :, 28:] = 40
    image[17:24, 17:24, 17:24] -= 60
    found = make_nodule_mask(image, affine, center, 10.0)
    assert "the ball of its diameter was taken" in found.flags[0]
    assert 0.9 < found.volume_ml / found.ball_ml < 1.1


@pytest.mark.parametrize(
    ("shift", "flag"), [(4.0, "of its ball's"), (4.5, "center of mass"), (6.0, "the ball of its diameter was taken")]
)
def test_a_point_beside_its_nodule_is_flagged(shift, flag):
    affine, shape = lps((1, 1, 1)), (40, 40, 40)
    nodule = np.array(voxel_to_mm(affine, (20, 20, 20)))
    image, _ = lung(shape, affine, nodule, 9.0)
    found = make_nodule_mask(image, affine, nodule + np.array([shift, 0, 0]), 9.0)
    assert any(flag in text for text in found.flags)


@pytest.mark.parametrize("diameter", [0.0, -3.0, float("nan"), 500.0])
def test_a_diameter_that_is_none_is_refused(diameter):
    with pytest.raises(ScanError, match="the diameter of a nodule must be above 0"):
        make_nodule_mask(np.zeros((4, 4, 4), np.int16), lps(), (0, 0, 0), diameter)


def test_a_point_outside_of_the_scan_is_refused():
    with pytest.raises(ScanError, match=r"the point 100, 12, -200 mm \(x, y, z\) lies outside of the scan"):
        make_nodule_mask(np.zeros((9, 9, 9), np.int16), lps(), (100, 12, -200), 5.0)


@given(
    st.floats(0.01, 60.0),
    st.tuples(*[st.floats(0.3, 8.0)] * 3),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_any_point_in_any_scan_gives_a_mask_that_has_voxels(diameter, spacing, place, seed):
    shape = (7, 11, 9)
    affine = lps(spacing, turn=seed / 10)
    image = np.random.default_rng(seed).integers(-1024, 400, shape).astype(np.int16)
    center = voxel_to_mm(affine, [-0.49 + share * (count - 0.02) for share, count in zip(place, shape, strict=True)])
    found = make_nodule_mask(image, affine, center, diameter)
    assert found.mask.any()
    assert found.mask.shape == image[found.box].shape == found.rim.shape
    assert np.isfinite(found.volume_ml)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
def test_the_real_nodule_has_about_the_volume_of_its_ball():
    """The row of LUNA16's table for this series; the center falls on voxel (47.4, 79.5, 79.8)."""
    with ScanReader(next(REAL.glob("*.mhd")), "image") as reader:
        image, grid = reader.read(), reader.grid
    center, diameter = (-57.43923954, 131.2325201, -520.3592267), 15.48525426
    voxel = np.linalg.solve(grid.affine_lps, [*center, 1.0])[2::-1]
    assert np.allclose(voxel, (47.44, 79.50, 79.76), atol=0.01)
    found = make_nodule_mask(image, grid.affine_lps, center, diameter)
    assert 0.8 < found.volume_ml / found.ball_ml < 1.1
    assert found.offset_mm < 0.5
    assert found.flags == ()
