"""`slicemill evaluate --against`: two runs on the same scans, and the statistics behind the comparison."""

import json
import shutil

import numpy as np
import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.measure.evaluation.evaluate import evaluate
from slicemill.measure.evaluation.statistics import bootstrap_interval, ratio_interval
from slicemill.measure.evaluation.two_runs import compare_runs
from tests.measure.conftest import SPACING


@pytest.mark.slow
def test_the_command_writes_every_table_and_compares_two_runs(command, two_cases):
    other = two_cases / "other"
    other.mkdir()
    for mask in (two_cases / "truth").glob("segmentation-*"):
        shutil.copy(mask, other)
    words = [two_cases / "predicted", two_cases / "truth", "--labels", "liver=1,tumor=2"]
    done = command("evaluate", *words, "--out", two_cases / "out", "--against", other)
    assert done.exit_code == 0, done.output
    assert "1 without it in both masks" in done.output
    made = {path.name for path in (two_cases / "out").iterdir()}
    assert {"evaluation.json", "evaluation.png", "comparison.json", "comparison.csv", "comparison.png"} <= made
    rows = json.loads((two_cases / "out" / "comparison.json").read_text())["rows"]
    tumor = next(row for row in rows if (row["region"], row["measure"]) == ("tumor", "dice"))
    assert (tumor["cases"], tumor["left_out"], tumor["worse_in"]) == (1, 1, 1)
    assert tumor["difference"] == pytest.approx(2 / 3 - 1)
    distance = next(row for row in rows if (row["region"], row["measure"]) == ("tumor", "assd_mm"))
    assert (distance["better_in"], distance["worse_in"]) == (0, 1), "a smaller distance is better"


def test_a_false_alarm_of_one_run_counts_against_it(two_cases):
    predicted = np.ones((2, 4, 6), np.uint8)
    predicted[0, 0, 0] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    (two_cases / "other").mkdir()
    for mask in (two_cases / "truth").glob("segmentation-*"):
        shutil.copy(mask, two_cases / "other")
    run, other = (
        evaluate(two_cases / masks, two_cases / "truth", None, LITS_LABELS) for masks in ("predicted", "other")
    )
    rows = {row.measure: row for row in compare_runs(run, other) if row.region == "tumor"}
    for measure, best in (("dice", 1.0), ("voe", 0.0)):
        assert (rows[measure].cases, rows[measure].left_out, rows[measure].worse_in) == (2, 0, 2)
        assert rows[measure].mean_against == best
    assert rows["assd_mm"].left_out == 1


def test_intervals_hold_what_they_should_and_ratios_are_of_sums():
    rng = np.random.default_rng(1)
    values = rng.random(60)
    assert np.allclose(ratio_interval(values, np.ones(60)), bootstrap_interval(values), atol=0.01)
    low, high = ratio_interval([1, 0, 3], [2, 0, 3])
    assert 0.5 <= low < 0.8 < high <= 1.0
    assert np.isnan(ratio_interval([0, 0], [0, 0])).all()


def test_failures_of_the_other_run_are_reported_and_count_and_its_labels_must_agree(command, two_cases):
    shutil.copytree(two_cases / "predicted", two_cases / "other")
    (two_cases / "other" / "volume-2.nii.gz").write_bytes(b"no scan")
    words = [two_cases / "predicted", two_cases / "truth", "--labels", "liver=1,tumor=2", "--against"]
    done = command("evaluate", *words, two_cases / "other")
    assert done.exit_code == 1
    assert "other/volume-2.nii.gz: " in done.output.replace("\n", "")
    assert "2 cases compared, 0 failed" in done.output
    words[2:4] = []
    for folder, labels in (("predicted", {"liver": 1, "tumor": 2}), ("other", {"tumor": 1, "liver": 2})):
        report = {"model_sha256": "x", "slice_tumor_scores": [], "labels": labels, "organ": "liver", "tumor": "tumor"}
        for number in (1, 2):
            (two_cases / folder / f"volume-{number}.json").write_text(json.dumps(report))
    done = command("evaluate", *words, two_cases / "other")
    assert "its report names the labels tumor=1, liver=2" in done.output.replace("\n", " ")
