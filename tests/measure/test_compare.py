import numpy as np
import pytest

from slicemill.common.errors import LabelError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.measure.followup.recist import compare_time_points, measure_time_point
from slicemill.measure.lesions.measurements import Volume


def scan(*lesions, affine=None, shape=(24, 60, 60)):
    """A liver with cubes of tumor: each (z, y, x, side)."""
    label = np.zeros(shape, np.uint8)
    label[2:-2, 4:-4, 4:-4] = 1
    for z, y, x, side in lesions:
        label[z : z + side, y : y + side, x : x + side] = 2
    return measure_time_point(
        Volume(label=label, labels=LITS_LABELS, affine_lps=np.eye(4) if affine is None else affine)
    )


def fates(found):
    return [(one.fate, one.baseline_id, one.followup_id) for one in found.lesions]


def test_a_lesion_that_grew_is_matched_and_its_changes_are_those_by_hand():
    found = compare_time_points(scan((5, 10, 10, 10)), scan((5, 10, 10, 12)))
    (row,) = found.lesions
    assert row.fate == "matched"
    assert row.volume_change_percent == pytest.approx(100 * (12**3 / 10**3 - 1), abs=1e-3)
    assert found.tumor_volume_change_percent == pytest.approx(72.8, abs=0.01)
    diagonal = np.hypot(11, 12) / np.hypot(9, 10)
    assert row.diameter_change_percent == pytest.approx(100 * (diagonal - 1), abs=1.0)
    assert found.recist.category == "SD"
    assert "not a diagnosis" in found.recist.note


def test_new_and_vanished_lesions_are_distinguished_from_moved_ones():
    found = compare_time_points(scan((5, 10, 10, 10), (5, 40, 40, 6)), scan((6, 11, 10, 10), (5, 10, 44, 5)))
    assert {fate for fate, *_ in fates(found)} == {"matched", "new", "vanished"}
    assert ("matched", 1, 1) in fates(found)
    assert found.recist.category == "PD", "a new lesion is progress"


def test_lesions_that_merge_or_split_are_neither_gone_nor_new():
    two, one = scan((5, 10, 10, 10), (5, 10, 22, 8)), scan((5, 10, 10, 20))
    assert [row.fate for row in compare_time_points(two, one).lesions] == ["matched", "merged"]
    assert compare_time_points(two, one).as_json()["lesions"][1]["with"] == 1
    apart = compare_time_points(one, two)
    assert [row.fate for row in apart.lesions] == ["matched", "split"]
    assert apart.recist.followup_sum_mm == pytest.approx(
        sum(lesion.max_axial_diameter_mm for lesion in two.lesions), abs=0.01
    )


def test_a_target_that_grew_into_a_small_lesion_is_measured_with_that():
    def bars(*extents):
        label = np.ones((9, 60, 80), np.uint8)
        for y0, y1, x0, x1 in extents:
            label[4, y0:y1, x0:x1] = 2
        return measure_time_point(Volume(label=label, labels=LITS_LABELS, affine_lps=np.eye(4)))

    found = compare_time_points(bars((20, 30, 10, 40), (22, 27, 44, 50)), bars((20, 30, 12, 62)))
    assert [(row.fate, row.baseline_id) for row in found.lesions] == [("merged", 1), ("matched", 2)]
    assert found.recist.followup_sum_mm == pytest.approx(np.hypot(50, 9), abs=0.5)
    assert found.recist.category == "PD"


@pytest.mark.parametrize(
    ("before", "after", "category"),
    [
        ([(5, 10, 10, 12)], [], "CR"),
        ([(5, 10, 10, 14)], [(5, 12, 12, 9)], "PR"),
        ([(5, 10, 10, 12)], [(5, 10, 10, 11)], "SD"),
        ([(4, 10, 10, 10)], [(4, 10, 10, 16)], "PD"),
        ([(5, 10, 10, 4)], [(5, 10, 10, 8)], "NE"),
        ([(5, 10, 10, 4)], [(5, 10, 10, 4), (5, 40, 40, 4)], "PD"),
    ],
)
def test_the_category_follows_the_sum_of_target_diameters(before, after, category):
    assert compare_time_points(scan(*before), scan(*after)).recist.category == category


def test_scans_of_other_voxels_meet_in_patient_millimetres():
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    after = np.zeros((48, 120, 120), np.uint8)
    after[4:-4, 8:-8, 8:-8] = 1
    after[10:30, 20:40, 20:40] = 2
    found = compare_time_points(
        scan((5, 10, 10, 10)), measure_time_point(Volume(label=after, labels=LITS_LABELS, affine_lps=fine))
    )
    (row,) = found.lesions
    assert row.volume_change_percent == pytest.approx(0, abs=1e-6)


def test_scans_of_another_frame_are_aligned_by_the_organ_when_asked():
    moved = np.eye(4)
    moved[:3, 3] = (300, -80, 900)
    before, after = scan((5, 10, 10, 10), (5, 40, 40, 5)), scan((5, 10, 10, 10), (5, 40, 40, 5), affine=moved)
    assert {row.fate for row in compare_time_points(before, after).lesions} == {"new", "vanished"}
    assert {row.fate for row in compare_time_points(before, after, "organ").lesions} == {"matched"}
    bare = measure_time_point(Volume(label=after.volume.label, labels=make_labels({"tumor": 2}), affine_lps=moved))
    with pytest.raises(LabelError, match="no organ to align by; use --align headers"):
        compare_time_points(before, bare, "organ")
