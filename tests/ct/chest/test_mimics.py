"""What looks like a nodule and is none: nothing in it is round and lies free in the lung."""

import numpy as np
import pytest

from slicemill.ct.chest.mimics import draw_mimics
from slicemill.ct.chest.patient import draw_patient, nearest_lung
from slicemill.ct.chest.places import split
from slicemill.ct.chest.shapes import capsule_distance
from slicemill.ct.chest.trees import bronchial_walls, grow_trees

FLAT = 2.4
"""Times as long as thick."""


@pytest.fixture(scope="module", params=range(3))
def chest(request):
    rng = np.random.default_rng([100, request.param])
    patient = draw_patient(rng)
    trees = grow_trees(patient, rng)
    return patient, trees, draw_mimics(patient, trees, rng)


def surface_points(lump):
    points = np.random.default_rng(0).standard_normal((100, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return lump.center + (points * lump.half_mm) @ lump.frame


def share_in_tubes(lump, trees):
    """Share of its surface in vessels, or in walls of bronchi, that are about half as thick as it is or thicker."""
    inside = np.zeros(100, dtype=bool)
    for tubes in (trees.vessels, bronchial_walls(trees.bronchi)):
        away = capsule_distance(lump.center - tubes.starts, tubes.ends - tubes.starts) - tubes.radii
        near = tubes.pick((away < lump.half_mm.max()) & (tubes.radii > 0.45 * lump.half_mm.min()))
        inside |= np.array([near.clearance(point) < 0 for point in surface_points(lump)])
    return inside.mean()


def test_what_is_round_hangs_on_a_wall_or_a_tube(chest):
    patient, trees, mimics = chest
    round_lumps = [lump for lump in mimics.lumps if lump.half_mm.max() < FLAT * lump.half_mm.min()]
    assert len(round_lumps) > 20
    for lump in round_lumps[:30] + round_lumps[30::8]:  # the last ones are the many knots
        in_wall = (nearest_lung(patient, *split(surface_points(lump))) > 0).mean()
        assert in_wall > 0.25 or share_in_tubes(lump, trees) > 0.02, (lump.center, lump.half_mm)


def test_what_lies_at_the_ribs_has_no_lung_behind_it(chest):
    """Plaques and ends of ribs stand flat on the lung's surface, which is uneven."""
    patient, _, mimics = chest
    at_ribs = [lump for lump in mimics.lumps if lump.soft_mm in (0.5, 0.8)]
    assert len(at_ribs) >= 2, "each chest has two ends of ribs or more"
    for lump in at_ribs:
        behind = lump.center + lump.frame[2] * np.array([[-1.0], [1.0]]) * (lump.half_mm[2] + 0.5)
        depths = nearest_lung(patient, *split(behind))
        assert depths.max() > 0, "one side is out of the lung"
        assert depths.min() < 0, "the other side is in it"
