"""Positions in mm and in voxels: equal to SimpleITK's and nibabel's in every axis order, oblique and tilted."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its usual name)

from slicemill.ct.geometry import RAS_TO_LPS, Grid
from slicemill.ct.points import is_inside, mm_to_voxel, voxels_to_mm

SHAPE = (5, 6, 7)
"""Voxels along i, j, k of the file."""
ORDERS = [
    (permutation, signs)
    for permutation in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def rotate(degrees: tuple[float, float, float]) -> np.ndarray:
    """Return float64[3, 3], the rotations about x, y and z one after the other."""
    return np.array(sitk.Euler3DTransform((0, 0, 0), *np.radians(degrees)).GetMatrix()).reshape(3, 3)


def file_affine(order: tuple[tuple[int, ...], tuple[float, ...]], turn: np.ndarray) -> np.ndarray:
    """Return float64[4, 4], voxel i j k to RAS mm, of a file with axes in this order, turned."""
    permutation, signs = order
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, permutation] @ np.diag(np.array(signs) * (0.7, 0.8, 1.25))
    affine[:3, 3] = (-112.3, 45.6, 1203.25)
    return affine


def file_voxels() -> np.ndarray:
    """Return float64[n, 3]: voxel positions i, j, k, whole and broken ones, some outside."""
    return np.random.default_rng(0).uniform(-2, 9, (50, 3))


@pytest.mark.parametrize("turn", [(0, 0, 0), (11, -7, 19)], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_positions_are_those_of_simpleitk_and_nibabel(order, turn) -> None:
    affine = file_affine(order, rotate(turn))
    grid = Grid(shape=SHAPE, affine=affine)
    ijk = file_voxels()
    ras = nib.affines.apply_affine(affine, ijk)
    lps = ras * (-1, -1, 1)
    image = sitk.Image(*SHAPE, sitk.sitkUInt8)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetDirection((RAS_TO_LPS[:3, :3] @ affine[:3, :3] / lengths).ravel().tolist())
    image.SetOrigin((RAS_TO_LPS @ affine)[:3, 3].tolist())
    for point, voxel in zip(lps, ijk, strict=True):
        assert image.TransformPhysicalPointToContinuousIndex(point.tolist()) == pytest.approx(voxel, abs=1e-6)
    zyx = mm_to_voxel(grid.affine_lps, lps)
    # the stored position of a file's voxel, from an array of the file's indices
    for axis, name in enumerate("ijk"):
        numbers = np.broadcast_to(np.arange(SHAPE[axis]).reshape([-1 if a == axis else 1 for a in range(3)]), SHAPE)
        stored = grid.to_stored(numbers.transpose(2, 1, 0)).astype(float)
        step = np.array([np.diff(stored, axis=a).mean() if stored.shape[a] > 1 else 0 for a in range(3)])
        assert stored[0, 0, 0] + zyx @ step == pytest.approx(ijk[:, axis], abs=1e-6), name
    assert voxels_to_mm(grid.affine_lps, zyx) == pytest.approx(lps, abs=1e-6)


def test_tilted_slices_keep_their_shear() -> None:
    tilt = np.eye(4)
    tilt[:3, :3] = [[0.7, 0, 0], [0, 0.7, 0.45], [0, 0, 2.5]]  # each slice 0.45 mm further back
    ijk = file_voxels()
    lps = nib.affines.apply_affine(tilt, ijk) * (-1, -1, 1)
    grid = Grid(shape=SHAPE, affine=tilt)
    zyx = mm_to_voxel(grid.affine_lps, lps)
    expected = np.column_stack([ijk[:, 2], SHAPE[1] - 1 - ijk[:, 1], SHAPE[0] - 1 - ijk[:, 0]])
    assert zyx == pytest.approx(expected, abs=1e-6)
    assert voxels_to_mm(grid.affine_lps, zyx) == pytest.approx(lps, abs=1e-6)


def test_a_voxel_reaches_half_a_step_around_its_center() -> None:
    places = [(-0.5, 0, 0), (-0.51, 0, 0), (4.49, 5.49, 6.49), (4.5, 0, 0), (0, 5.5, 0), (np.nan, 0, 0)]
    assert is_inside((5, 6, 7), places).tolist() == [True, False, True, False, False, False]
