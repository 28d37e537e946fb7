"""What looks like a nodule and is none: nothing in it is round and lies free in the lung."""

import numpy as np
import pytest

from slicemill.ct.chest.mimics import draw_mimics
from slicemill.ct.chest.patient import cavity_distance, draw_patient, nearest_lung
from slicemill.ct.chest.places import split
from slicemill.ct.chest.trees import Tubes, grow_trees

FLAT = 2.4
"""Times as long as thick."""


@pytest.fixture(scope="module", params=range(3))
def chest(request):
    rng = np.random.default_rng([100, request.param])
    patient = draw_patient(rng)
    trees = grow_trees(patient, rng)
    return patient, trees, draw_mimics(patient, trees, rng)


def surface_points(lump):
    points = np.random.default_rng(0).standard_normal((300, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return lump.center + (points * lump.half_mm) @ lump.frame


def hangs_on_a_tube(lump, trees):
    """Whether some of its surface lies in a vessel, or in the wall of a bronchus, that is about as thick as it is."""
    bronchi = trees.bronchi
    walls = Tubes(starts=bronchi.starts, ends=bronchi.ends, radii=1.2 * bronchi.radii + 0.3)
    points = surface_points(lump)
    for tubes in (trees.vessels, walls):
        thick = tubes.pick(tubes.radii > 0.45 * lump.half_mm.min())
        if any(thick.clearance(point) < 0 for point in points):
            return True
    return False


def test_what_is_round_hangs_on_a_wall_or_a_tube(chest):
    patient, trees, mimics = chest
    round_lumps = [lump for lump in mimics.lumps if lump.half_mm.max() < FLAT * lump.half_mm.min()]
    assert len(round_lumps) > 20
    for lump in round_lumps:
        in_wall = (nearest_lung(patient, *split(surface_points(lump))) > 0).mean()
        assert in_wall > 0.25 or hangs_on_a_tube(lump, trees), (lump.center, lump.half_mm)


def test_what_lies_at_the_ribs_has_no_lung_behind_it(chest):
    """Plaques and ends of ribs stand flat on the lung's surface, which is uneven."""
    patient, _, mimics = chest
    at_ribs = [lump for lump in mimics.lumps if lump.soft_mm in (0.5, 0.8)]
    assert at_ribs
    for lump in at_ribs:
        assert -cavity_distance(patient, *split(lump.center[None])) < 8
        behind = lump.center + lump.frame[2] * np.array([[-1.0], [1.0]]) * (lump.half_mm[2] + 0.5)
        depths = nearest_lung(patient, *split(behind))
        assert depths.max() > 0, "one side is out of the lung"
        assert depths.min() < 0, "the other side is in it"
