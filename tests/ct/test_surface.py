"""Surfaces: their volume is that of the mask, they are closed, and they lie where the mask does."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slicemill.ct.lesions import find_lesions
from slicemill.ct.surface import MOST_PARTS, find_faces, make_surface

STRAIGHT = np.eye(3)
OBLIQUE = Rotation.from_euler("xyz", [11, -23, 37], degrees=True).as_matrix()
MIRRORED = np.diag([-1.0, 1, 1])
TILTED = np.array([[1, 0, 0], [0, 1, 0.35], [0, 0, 1.0]])
MIDDLE = np.array([3.0, -20, 55])


def make_affine(turn, spacing_xyz):
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_xyz)
    return affine


def make_ball(radius_mm, affine, margin=3):
    """Return bool[z, y, x] with a ball around MIDDLE, and the affine of its grid."""
    reach = np.ceil(radius_mm * np.abs(np.linalg.inv(affine[:3, :3])).sum(axis=1)).astype(int) + margin
    moved = affine.copy()
    moved[:3, 3] = MIDDLE - affine[:3, :3] @ reach
    z, y, x = np.indices(tuple(2 * reach[::-1] + 1))
    at = np.stack([x, y, z], axis=-1) @ moved[:3, :3].T + moved[:3, 3]
    return ((at - MIDDLE) ** 2).sum(axis=-1) <= radius_mm**2, moved


def surface_of(mask, affine, most=60_000):
    return make_surface(find_lesions(mask, affine), lambda start, stop: mask[start:stop], affine, most)


def is_closed(surface):
    """Return whether each edge is passed as often in one direction as in the other."""
    edges = np.concatenate([surface.triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    signs = np.where(edges[:, 0] < edges[:, 1], 1, -1)
    _, numbers = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    return not np.bincount(numbers.ravel(), weights=signs).any()


@pytest.mark.parametrize("turn", [STRAIGHT, OBLIQUE, MIRRORED, TILTED])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5), (2, 0.5, 1)])
@pytest.mark.parametrize("radius", [3, 12, 40])
def test_a_ball_has_its_volume_its_place_and_its_shape(turn, spacing, radius):
    mask, affine = make_ball(radius, make_affine(turn, spacing))
    surface = surface_of(mask, affine, 6000)
    voxels_ml = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert surface.volume_ml() == pytest.approx(voxels_ml, rel=0.001)
    assert len(surface.triangles) <= 6000
    assert is_closed(surface)
    np.testing.assert_allclose(surface.vertices.mean(axis=0), MIDDLE, atol=0.5)
    distances = np.linalg.norm(surface.vertices - MIDDLE, axis=1)
    block = max(*spacing, radius / 12)  # with 6,000 triangles
    assert distances.min() > radius - 1.2 * block
    assert distances.max() < radius + 1.2 * block
    if radius == 40:
        outward = (surface.normals() * (surface.vertices - MIDDLE)).sum(axis=1) / distances
        assert np.median(outward) > 0.97
        assert (outward > 0).all()


def test_faces_of_two_cells_by_hand():
    points, quads = find_faces(np.ones((1, 1, 2), dtype=bool))
    assert len(points) == 12
    assert len(quads) == 10
    a, b, c = (points[quads[:, corner]] for corner in range(3))
    outward = np.cross((b - a)[:, ::-1], (c - b)[:, ::-1])
    middle = points[quads].mean(axis=1) - [0.5, 0.5, 1]
    assert ((outward * middle[:, ::-1]).sum(axis=1) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_its_volume_with_few_triangles(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((12, 20, 25)) < rng.choice([0.02, 0.3, 0.7])
    affine = make_affine(OBLIQUE, (1, 0.8, 2.5))
    lesions = find_lesions(mask, affine)
    surface = surface_of(mask, affine, 3000)
    shown = lesions[: min(MOST_PARTS, 3000 // 64)]
    assert surface.volume_ml() == pytest.approx(sum(one.volume_ml for one in shown), rel=0.001)
    assert len(surface.triangles) <= 3000
    assert is_closed(surface)


def test_a_part_inside_of_the_box_of_another_is_drawn_once():
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[2:18, 2:18, 2:18] = True
    mask[4:16, 4:16, 4:16] = False
    mask[9:11, 9:11, 9:11] = True  # in a cavity
    surface = surface_of(mask, np.eye(4))
    assert surface.volume_ml() == pytest.approx(mask.sum() / 1000, rel=0.001)
    near = np.abs(surface.vertices - 9.5).max(axis=1)
    assert (near < 2).sum() == 26
    assert is_closed(surface)


def nearest(surface, *voxels):
    """Return the distance in mm of the nearest vertex to each voxel z, y, x of a grid of 1 mm."""
    return [float(np.linalg.norm(surface.vertices - voxel[::-1], axis=1).min()) for voxel in voxels]


def test_a_frame_of_as_many_voxels_as_the_block_inside_of_its_box_is_drawn():
    mask = np.zeros((7, 17, 17), dtype=bool)
    mask[1:4] = True
    mask[1:4, 3:14, 3:14] = False
    mask[:, 14:, 14:] = True
    mask[:6, 4:13, 4:13] = mask[6, 4:10, 4:13] = True
    assert [one.voxels for one in find_lesions(mask, np.eye(4))] == [540, 540]
    surface = surface_of(mask, np.eye(4))
    assert surface.volume_ml() == pytest.approx(mask.sum() / 1000, rel=0.001)
    assert max(nearest(surface, (0, 8, 8), (2, 0, 8), (2, 8, 0))) < 2
    assert is_closed(surface)


@pytest.mark.parametrize("turn", [STRAIGHT, OBLIQUE])
def test_of_two_parts_of_equal_size_and_box_each_is_drawn_once(turn):
    mask = np.zeros((5, 9, 9), dtype=bool)
    mask[0, 0, :] = mask[0, :, 0] = mask[:, 0, 0] = True
    mask[4, 8, :] = mask[4, :, 8] = mask[:, 8, 8] = True
    affine = make_affine(turn, (1, 1, 1))
    first, second = find_lesions(mask, affine)
    assert (first.voxels, first.bbox_zyx) == (second.voxels, second.bbox_zyx)
    surface = surface_of(mask, affine)
    surface = replace(surface, vertices=surface.vertices @ turn)  # back to the voxels
    assert max(nearest(surface, (0, 0, 4), (0, 4, 0), (4, 8, 4), (4, 4, 8))) < 2


def test_a_large_part_is_read_in_blocks_and_a_small_one_beside_it_stays(monkeypatch):
    mask, affine = make_ball(30, make_affine(STRAIGHT, (1, 1, 1)))
    mask[1, 1:3, 1] = True
    expected = mask.sum() / 1000
    whole = surface_of(mask, affine)
    monkeypatch.setattr("slicemill.ct.surface.MOST_CELLS", 10_000)
    surface = surface_of(mask, affine)
    assert len(surface.triangles) < len(whole.triangles) / 4
    assert surface.volume_ml() == pytest.approx(expected, rel=0.001)
    distances = np.linalg.norm(surface.vertices - MIDDLE, axis=1)
    assert np.percentile(np.abs(distances - 30), 98) < 1.5


def test_a_border_of_the_scan_closes_the_surface():
    mask = np.ones((4, 5, 6), dtype=bool)
    surface = surface_of(mask, np.eye(4))
    assert surface.volume_ml() == pytest.approx(mask.sum() / 1000, rel=0.001)
    assert is_closed(surface)


def test_a_thin_ring_is_as_large_as_its_voxels():
    mask = np.zeros((5, 24, 24), dtype=bool)
    mask[2, 4:20, 4:20] = True
    mask[2, 5:19, 5:19] = False
    surface = surface_of(mask, np.eye(4))
    x, y = surface.vertices.T[:2]
    assert x.min() >= 3.4
    assert x.max() <= 19.6
    assert y.min() >= 3.4
    assert y.max() <= 19.6
    assert surface.volume_ml() == pytest.approx(mask.sum() / 1000, rel=0.001)
