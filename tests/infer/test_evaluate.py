import csv
import json
import shutil

import numpy as np
import pytest

from infer.evaluate import evaluate, pair_up, totals
from store.errors import LabelError, PairingError
from store.labels import LITS_LABELS
from store.phantom import write_nifti

SPACING = (2.0, 1.0, 1.0)


@pytest.fixture
def two_cases(tmp_path):
    """By hand: case 1 has liver and tumor, half of the tumor found; case 2 has no tumor, and none is found."""
    truth = np.zeros((2, 2, 4, 6), np.uint8)
    truth[:, :, 1:3, 1:5] = 1
    truth[0, 0, 1, 1:5] = 2
    predicted = truth.copy()
    predicted[0, 0, 1, 1:3] = 1
    for number in (1, 2):
        write_nifti(tmp_path / "truth" / f"segmentation-{number}.nii", truth[number - 1], SPACING)
        write_nifti(tmp_path / "truth" / f"volume-{number}.nii.gz", np.full((2, 4, 6), 50, np.int16), SPACING)
        write_nifti(tmp_path / "predicted" / f"volume-{number}.nii.gz", predicted[number - 1], SPACING)
    return tmp_path


def test_scores_are_those_computed_by_hand(two_cases):
    scores = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    liver, tumor = scores["regions"]["liver"], scores["regions"]["tumor"]
    assert (liver["dice_per_case"], liver["dice_global"]) == (1.0, 1.0), "the organ is scored with its tumors"
    assert tumor["dice_per_case"] == pytest.approx(2 / 3), "case 2 has no tumor in either mask and is left out"
    assert tumor["cases_without_region"] == 1
    assert (tumor["precision_global"], tumor["recall_global"]) == (1.0, 0.5)
    by_case, by_slice = scores["tumor_by_case"], scores["tumor_by_slice"]
    assert (by_case["accuracy"], by_case["sensitivity"], by_case["specificity"], by_case["auc"]) == (1.0, 1.0, 1.0, 1.0)
    assert (by_slice["positives"], by_slice["negatives"], by_slice["accuracy"]) == (1, 3, 1.0)


def test_tables_and_pictures_are_written(two_cases):
    out = two_cases / "scores"
    evaluate(two_cases / "predicted", two_cases / "truth", out, LITS_LABELS)
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json",
        "evaluation.csv",
        "volume-1_errors.png",
        "volume-2_errors.png",
    }
    with (out / "evaluation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["case_id"] == "volume-1"
    assert float(rows[0]["reference_tumor_ml"]) == pytest.approx(4 * 2 / 1000)
    assert rows[1]["dice_tumor"] == ""
    assert json.loads((out / "evaluation.json").read_text())["by_case"][1]["dice_tumor"] is None


def test_a_false_alarm_in_a_tumor_free_case_scores_0(two_cases):
    predicted = np.zeros((2, 4, 6), np.uint8)
    predicted[1, 1, 1] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    scores = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    assert scores["regions"]["tumor"]["dice_per_case"] == pytest.approx(1 / 3)
    assert scores["tumor_by_case"]["specificity"] == 0.0


def test_a_prediction_off_its_grid_is_a_failure_and_the_rest_is_scored(two_cases):
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", np.zeros((2, 4, 6), np.uint8), (2.0, 1.5, 1.0))
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert [case.case_id for case in evaluation.cases] == ["volume-1"]
    assert "mm from its reference" in evaluation.failures[0][1]


def test_values_that_no_label_has_are_a_failure(two_cases):
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", np.full((2, 4, 6), 9, np.uint8), SPACING)
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert "holds the values [9] outside the labels" in evaluation.failures[0][1]


def test_without_a_report_the_labels_must_be_named(two_cases):
    with pytest.raises(LabelError, match="pass --labels"):
        evaluate(two_cases / "predicted", two_cases / "truth", None)


def test_a_prediction_without_reference_is_named_and_a_reference_without_prediction_counted(two_cases):
    (two_cases / "predicted" / "volume-1.nii.gz").unlink()
    assert pair_up(two_cases / "predicted", two_cases / "truth")[1] == ["volume-1"]
    shutil.copy(two_cases / "predicted" / "volume-2.nii.gz", two_cases / "predicted" / "volume-9.nii.gz")
    assert pair_up(two_cases / "predicted", two_cases / "truth")[2] == ["volume-9.nii.gz"]
    with pytest.raises(PairingError, match="holds no mask"):
        pair_up(two_cases / "scores", two_cases / "truth")


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("P1/CT_image.nii.gz", "P1/CT_mask.nii.gz"),
        ("liver_3.nii.gz", "labelsTr/liver_3.nii.gz"),
        ("liver_3_0000.nii.gz", "labelsTr/liver_3.nii.gz"),
        ("x.nii", "masks/x.nii"),
        ("p7_ct.nii.gz", "p7_seg.nii.gz"),
    ],
)
def test_predictions_find_their_references_in_the_usual_layouts(prediction, reference, tmp_path):
    for path in (tmp_path / "p" / prediction, tmp_path / "r" / reference):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    ((pair,), missing, _) = pair_up(tmp_path / "p", tmp_path / "r")
    assert pair.reference.mask == tmp_path / "r" / reference
    assert missing == []


@pytest.mark.parametrize(
    ("prediction", "references"),
    [
        ("amos_0003.nii.gz", ["amos_0001.nii.gz", "amos_0002.nii.gz"]),
        ("C/tumor_ct.nii.gz", ["A/tumor_seg.nii.gz", "B/tumor_seg.nii.gz"]),
    ],
)
def test_a_prediction_is_never_scored_against_another_patient(prediction, references, tmp_path):
    for path in (tmp_path / "p" / prediction, *(tmp_path / "r" / name for name in references)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(PairingError, match="none of its 1 masks has the name of a reference"):
        pair_up(tmp_path / "p", tmp_path / "r")


def test_two_predictions_of_one_case_are_refused(two_cases):
    shutil.copy(two_cases / "predicted" / "volume-2.nii.gz", two_cases / "predicted" / "segmentation-2.nii.gz")
    with pytest.raises(PairingError, match="are both of the case volume-2"):
        pair_up(two_cases / "predicted", two_cases / "truth")


@pytest.mark.parametrize(
    "report", ['{"Modality": "CT"}', '{"model_sha256": "x", "slice_tumor_scores": [null, null], "tumor_score": NaN}']
)
def test_a_report_that_is_none_or_broken_does_not_stop_the_scores(report, two_cases):
    (two_cases / "predicted" / "volume-1.json").write_text(report)
    scores = totals(evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS))
    assert scores["tumor_by_case"]["auc"] == 1.0


def test_a_scan_of_another_shape_than_its_mask_is_not_drawn_on(two_cases):
    write_nifti(two_cases / "truth" / "volume-1.nii.gz", np.zeros((1, 4, 6), np.int16), SPACING)
    assert len(evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS).cases) == 2


def test_a_prediction_of_another_pixel_size_than_the_stored_case_is_a_failure(stored, tmp_path):
    from store.reader import open_store

    case = open_store(stored)["volume-0"]
    z, y, x = case.info.spacing_mm
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], (z, y * 1.1, x), case.info.source_axcodes)
    ((name, reason),) = evaluate(tmp_path, stored, None).failures
    assert name == "volume-0.nii.gz"
    assert "mm from its reference" in reason


def test_a_store_is_a_reference_too(stored, tmp_path):
    from store.reader import open_store

    case = open_store(stored)["volume-0"]
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], case.info.spacing_mm, case.info.source_axcodes)
    evaluation = evaluate(tmp_path, stored, tmp_path / "out")
    assert evaluation.cases[0].regions["tumor"].dice == 1.0
    assert len(evaluation.missing) == 5
