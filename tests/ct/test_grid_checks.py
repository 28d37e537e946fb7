"""Warnings about unusual grids, with the angles that they report."""

import itertools

import numpy as np
import pytest

from slicemill.ct.formats.nifti.header import read_header
from slicemill.ct.geometry import Grid
from slicemill.ct.grid_checks import explain_lost_header, grid_warnings, obliqueness_degrees, shear_degrees

AXES = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def grid(linear, origin=(5.0, 6.0, 7.0), shape=(4, 4, 4)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return Grid(shape=shape, affine=affine)


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def tilted(degrees):
    return np.array([[1, 0, 0], [0, 1, np.tan(np.radians(degrees))], [0, 0, 1]])


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_straight_axes_in_any_order_and_direction_give_no_warning(order, signs):
    assert grid_warnings(grid((np.diag(signs) * [0.7, 0.7, 5.0])[:, order])) == []


@pytest.mark.parametrize("degrees", [5.0, 20.0, 40.0])
def test_oblique_axes_are_a_warning_with_the_angle(degrees):
    spacing = np.diag([0.7, 0.7, 5.0])
    (warning,) = grid_warnings(grid(turned(degrees) @ spacing))
    assert f"oblique: an axis leans {degrees:.1f} degrees" in warning
    assert obliqueness_degrees(grid(turned(degrees) @ spacing).affine) == pytest.approx(degrees)


def test_a_rotation_of_a_few_degrees_is_no_warning():
    assert grid_warnings(grid(turned(2.9) @ np.diag([0.7, 0.7, 5.0]))) == []


@pytest.mark.parametrize("degrees", [1.0, 12.5, 25.0])
def test_axes_sheared_by_a_tilted_gantry_are_a_warning_with_the_angle(degrees):
    sheared = grid(tilted(degrees) @ np.diag([0.7, 0.7, 5.0]))
    assert any(f"sheared: two axes are {degrees:.1f} degrees off" in warning for warning in grid_warnings(sheared))
    assert shear_degrees(sheared.affine) == pytest.approx(degrees)


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_cubes_of_exactly_1_mm_look_like_a_lost_header_in_any_orientation(order, signs):
    assert explain_lost_header(grid(np.diag(signs)[:, order])) == "its voxels are cubes of exactly 1 mm"


def test_the_identity_looks_like_a_lost_header_and_other_spacings_do_not():
    assert "the header may be lost: its affine is the identity" in grid_warnings(grid(np.eye(3), (0, 0, 0)))[0]
    assert explain_lost_header(grid(np.diag([1.0, 1.0, 1.001]))) is None
    assert explain_lost_header(grid(np.diag([2.0, 2.0, 2.0]), (0, 0, 0))) is None


def test_a_single_slice_is_a_warning():
    assert grid_warnings(grid(np.diag([2.0, 2.0, 2.0]), shape=(4, 4, 1))) == ["a single slice"]


@pytest.mark.real
def test_the_pitched_ct_is_oblique_and_not_sheared(real_data):
    header = read_header(real_data / "nifti-edge-cases" / "niivue-ct-pitch" / "CT_pitch.nii.gz")
    assert [warning.split(":")[0] for warning in header.warnings] == ["oblique"]
