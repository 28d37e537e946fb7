"""Candidates beside the findings of their case: which one repeats another."""

import numpy as np
import pytest

from slicemill.ct.points import Point
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
