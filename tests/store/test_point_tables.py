"""Candidates beside the findings of their case: which one repeats another."""

import tracemalloc

import numpy as np
import pytest

from slicemill.ct.points import Point
from slicemill.store import point_tables
from slicemill.store.point_tables import NONE, compare_candidates


def point(number, x, diameter, kind):
    return Point(id=f"p{number}", kind=kind, xyz_mm=(float(x), 0.0, 0.0), diameter_mm=diameter)


def compare(points, *places):
    """Compare candidates at these x in mm with points; each place is x and class."""
    rows = np.array([(x, 0, 0, kind, line) for line, (x, kind) in enumerate(places, start=2)], dtype=np.float64)
    return compare_candidates(rows, points)


def test_nothing_repeats_a_candidate_in_an_excluded_finding():
    excluded = point(1, 0, 10.0, "excluded")
    found = compare([excluded], (4.5, 0), (5.5, 0), (6.5, 0), (4.8, 0))
    assert found.in_excluded.tolist() == [True, False, False, True]
    assert found.duplicate_of.tolist() == [NONE, NONE, 1, NONE]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_each_cluster_across_an_excluded_finding_keeps_one_that_counts(order):
    places = np.array([4.0, 5.5, 7.0])[list(order)]
    found = compare([point(1, 0, 10.0, "excluded")], *((x, 0) for x in places))
    counts = ~found.in_excluded & (found.duplicate_of == NONE)
    assert counts.sum() == 1
    assert not found.in_excluded[found.duplicate_of[found.duplicate_of != NONE]].any()


def test_the_one_kept_in_a_nodule_is_outside_of_excluded_findings_if_any_is():
    points = [point(1, 0, 10.0, "nodule"), point(2, -3, 8.0, "excluded")]
    found = compare(points, (0.5, 1), (2.0, 1), (3.0, 1))
    assert found.in_nodule.all()
    assert found.in_excluded.tolist() == [True, False, False]
    assert found.duplicate_of.tolist() == [1, NONE, 1]
    inside = compare(points, (-1.0, 1), (0.5, 1))
    assert inside.in_excluded.all()
    assert inside.duplicate_of.tolist() == [1, NONE]


def scatter(candidates, points, seed=0):
    """Return candidates and findings at random places in a cube of 30 mm."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack(
        [rng.uniform(0, 30, (candidates, 3)), rng.integers(0, 2, candidates), np.arange(2, candidates + 2)]
    )
    found = [
        Point(
            id=f"p{number}",
            kind="nodule" if rng.random() < 0.5 else "excluded",
            xyz_mm=tuple(rng.uniform(0, 30, 3)),
            diameter_mm=None if number == 0 else float(rng.uniform(3, 9)),
        )
        for number in range(points)
    ]
    return rows, found


@pytest.mark.parametrize("block", [1, 7, 40])
def test_blocks_give_what_one_comparison_gives(monkeypatch, block):
    rows, points = scatter(300, 12)
    whole = compare_candidates(rows, points)
    monkeypatch.setattr(point_tables, "BLOCK_DISTANCES", block)
    parts = compare_candidates(rows, points)
    for name in ("nearest", "distance_mm", "in_nodule", "in_excluded", "duplicate_of", "conflict"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name), err_msg=name)
    nodules = [point for point in points if point.kind == "nodule"]
    for row, nearest, distance, inside in zip(rows, whole.nearest, whole.distance_mm, whole.in_nodule, strict=True):
        distances = [float(np.linalg.norm(row[:3] - point.xyz_mm)) for point in nodules]
        held = [far < (point.diameter_mm or 10) / 2 for far, point in zip(distances, nodules, strict=True)]
        assert inside == any(held)
        best = min(range(len(nodules)), key=lambda index: (any(held) and not held[index], distances[index]))
        assert (nearest, distance) == (best, pytest.approx(distances[best]))


@pytest.mark.parametrize("seed", range(3))
def test_a_duplicate_repeats_the_first_of_its_class_within_two_millimeters(seed):
    rows, _ = scatter(600, 0, seed)
    found = compare_candidates(rows, [])
    assert not found.in_nodule.any()
    assert np.isnan(found.distance_mm).all()
    kept = []
    for index, row in enumerate(rows):
        near = [one for one in kept if rows[one, 3] == row[3] and np.linalg.norm(rows[one, :3] - row[:3]) <= 2.0]
        assert found.duplicate_of[index] == (near[0] if near else NONE)
        if not near:
            kept.append(index)
    assert 100 < len(kept) < 590


@pytest.mark.slow
def test_many_candidates_take_little_memory():
    rows, points = scatter(20_000, 500)
    rows[:, :3] *= 20
    rows[:5000, :3] = 1  # all within 2 mm of each other: 12 million pairs
    tracemalloc.start()
    found = compare_candidates(rows, points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # all differences at once are 240 MB
    assert (found.duplicate_of[:5000] == NONE).sum() == 2
