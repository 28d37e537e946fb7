"""Distances and matching compared with MONAI's and panoptica's, from oracles.json, and from the tools if installed.

MONAI's surface consists of the voxels with one of 6 neighbors outside, ours (Bilic et al. 2023) of those with one of 18
outside. In boxes both are the same, and all values must agree. Elsewhere our surface has more voxels, most of them a
layer deeper, so averages, percentiles and surface Dice differ. With MONAI's surfaces our distances must give MONAI's
values.
"""

import json

import numpy as np
import pytest
from scipy import ndimage

from slicemill.ct.geometry import Grid
from slicemill.measure.evaluation.detection import count_shared_voxels, f1, match_lesions, number_components
from slicemill.measure.evaluation.surface import SurfaceDistances, nearest_distances, surface_distances
from tests.measure.oracles import COMMAND, FILE, SPACING, TOLERANCE_MM, instances, of_monai, of_panoptica, surfaces

KEPT = json.loads(FILE.read_text(encoding="utf-8"))
GRID = Grid(shape=(40, 40, 12), affine=np.diag([-1.0, -1.0, 1.0, 1.0]))


def values(found):
    return {
        "mssd": found.mssd,
        "hd95": found.hd95,
        "assd": found.assd,
        "surface_dice": found.surface_dice(TOLERANCE_MM),
    }


def of_monais_surfaces(prediction, reference):
    edges = [mask ^ ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    points = [np.argwhere(edge) * np.array(SPACING) for edge in edges]
    return SurfaceDistances(to_reference=nearest_distances(*points), to_prediction=nearest_distances(*points[::-1]))


@pytest.mark.parametrize("name", ["boxes", "boxes at the edge"])
def test_where_the_surfaces_are_the_same_every_distance_is_monais(name):
    assert values(surface_distances(*surfaces()[name], SPACING)) == pytest.approx(KEPT["monai"][name], rel=1e-6)


@pytest.mark.parametrize("name", list(surfaces()))
def test_with_monais_surfaces_every_distance_is_monais(name):
    assert values(of_monais_surfaces(*surfaces()[name])) == pytest.approx(KEPT["monai"][name], rel=1e-6)


@pytest.mark.parametrize("name", ["ellipsoids", "blobs"])
def test_a_thicker_surface_gives_shorter_means_and_less_than_a_voxel_of_difference(name):
    ours, theirs = values(surface_distances(*surfaces()[name], SPACING)), KEPT["monai"][name]
    assert theirs["assd"] - max(SPACING) < ours["assd"] < theirs["assd"]
    assert abs(ours["mssd"] - theirs["mssd"]) < max(SPACING)
    assert abs(ours["hd95"] - theirs["hd95"]) < max(SPACING)


@pytest.mark.parametrize("name", list(instances()))
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_lesions_are_matched_as_by_panoptica(name, threshold):
    shared = count_shared_voxels(*(number_components(mask, GRID, "corrected") for mask in instances()[name]))
    ours, theirs = (
        match_lesions(shared, threshold, "corrected"),
        KEPT["panoptica"][name][f"overlap_above_{threshold:g}"],
    )
    overlaps = [shared.iou(group) for group in ours.groups]
    assert ours.true_positive == theirs["true_positive"]
    assert ours.predictions - ours.true_positive == theirs["false_positive"]
    assert ours.references - ours.true_positive == theirs["false_negative"]
    assert f1(ours.true_positive, ours.predictions, ours.references) == pytest.approx(theirs["f1"], abs=1e-6)
    assert (np.mean(overlaps) if overlaps else None) == pytest.approx(theirs["mean_jaccard"], abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_kept_distances_are_what_monai_says_here():
    pytest.importorskip("monai", reason=f"the values in oracles.json are compared; `{COMMAND}` makes them again")
    assert {name: of_monai(*pair) for name, pair in surfaces().items()} == {
        name: pytest.approx(row, rel=1e-6) for name, row in KEPT["monai"].items()
    }


def test_the_kept_counts_are_what_panoptica_says_here():
    pytest.importorskip("panoptica", reason=f"the values in oracles.json are compared; `{COMMAND}` makes them again")
    assert {name: of_panoptica(*pair) for name, pair in instances().items()} == KEPT["panoptica"]
