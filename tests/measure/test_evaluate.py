"""`slicemill evaluate`: the scores of cases that are computed by hand, and what is written."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from slicemill.common.errors import ConfigError, LabelError
from slicemill.ct.formats.nifti.header import read_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS, Labels, make_labels
from slicemill.ct.overlap import count_overlap
from slicemill.ct.phantom import write_nifti
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.measure.evaluation.evaluate import evaluate
from slicemill.measure.evaluation.figures import draw_evaluation
from slicemill.measure.evaluation.region import make_row
from slicemill.measure.evaluation.summary import format_left_out
from slicemill.measure.evaluation.two_runs import write_run_comparison
from slicemill.measure.inputs import masks as masks_module
from slicemill.measure.lesions.measurements import Volume
from slicemill.measure.lesions.slicer3d import write_segmentation
from slicemill.store.layout import GROUP
from tests.measure.conftest import SPACING


def scores_of(evaluation):
    """The scores over all cases, as they are written."""
    return evaluation.totals.as_json()


def test_scores_are_those_computed_by_hand(two_cases):
    scores = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    liver, tumor = scores["regions"]["liver"], scores["regions"]["tumor"]
    assert (liver["dice_per_case"], liver["dice_global"]) == (1.0, 1.0), "the organ is scored with its tumors"
    assert tumor["dice_per_case"] == pytest.approx(2 / 3), "case 2 has no tumor in either mask and is left out"
    assert tumor["cases_without_region"] == 1
    assert (tumor["cases_counted"]["dice_per_case"], tumor["cases_counted"]["dice_global"]) == (1, 2)
    assert (tumor["cases_counted"]["assd_mm"], tumor["cases_counted"]["error_ml"]) == (1, 2)
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
        "volume-1_errors.html",
        "volume-1_errors.png",
        "volume-2_errors.html",
        "volume-2_errors.png",
    }
    with (out / "evaluation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["case_id"] == "volume-1"
    assert float(rows[0]["reference_tumor_ml"]) == pytest.approx(4 * 2 / 1000)
    assert rows[1]["dice_tumor"] == ""
    assert json.loads((out / "evaluation.json").read_text())["by_case"][1]["dice_tumor"] is None


@pytest.mark.slow
def test_label_names_with_dollar_signs_are_drawn_as_they_are(two_cases):
    labels = Labels({r"$\broken{$": 1, "$tumor$": 2}, organ=r"$\broken{$", tumor="$tumor$")
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, labels)
    assert draw_evaluation(evaluation)
    assert write_run_comparison(two_cases / "compared", evaluation, evaluation)
    assert (two_cases / "compared" / "comparison.png").stat().st_size > 5000


def test_a_false_alarm_in_a_tumor_free_case_scores_0(two_cases):
    predicted = np.zeros((2, 4, 6), np.uint8)
    predicted[1, 1, 1] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    scores = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    assert scores["regions"]["tumor"]["dice_per_case"] == pytest.approx(1 / 3)
    assert scores["tumor_by_case"]["specificity"] == 0.0


def test_a_prediction_off_its_grid_is_a_failure_and_the_rest_is_scored(two_cases):
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", np.zeros((2, 4, 6), np.uint8), (2.0, 1.5, 1.0))
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert [case.case_id for case in evaluation.cases] == ["volume-1"]
    assert "must have the same grid as its reference" in evaluation.failures[0][1]


def test_a_stored_case_with_a_damaged_header_is_a_failure_and_the_rest_is_scored(stored, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(stored, store)
    path = store / GROUP / "volume-1" / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["slicemill"]["source"]["image"]["header_b64"] = "!"
    path.write_text(json.dumps(document))
    evaluation = evaluate(store, store, None, LITS_LABELS)
    assert len(evaluation.cases) == 5
    ((case_id, reason),) = evaluation.failures
    assert case_id == "volume-1"
    assert reason.startswith(f"{path.parent}: the stored header of volume-1.nii.gz is damaged")


def test_values_that_no_label_has_are_a_failure(two_cases):
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", np.full((2, 4, 6), 9, np.uint8), SPACING)
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert "has the values [9] outside the labels" in evaluation.failures[0][1]


@pytest.mark.parametrize("swapped", ["predicted", "truth"])
def test_segmentations_of_3d_slicer_are_not_scored_under_swapped_names(swapped, tmp_path):
    label = np.zeros((4, 8, 8), np.uint8)
    label[1:3, 2:6, 2:6] = 1
    for side in ("predicted", "truth"):
        names = {"tumor": 1, "liver": 2} if side == swapped else {"liver": 1, "tumor": 2}
        volume = Volume(label=label, affine_lps=np.eye(4), labels=make_labels(names))
        write_segmentation(tmp_path / side / "a.seg.nrrd", volume)
    (failure,) = evaluate(tmp_path / "predicted", tmp_path / "truth", None, LITS_LABELS).failures
    assert f"{swapped}/a.seg.nrrd: its segment 'tumor' has the label value 1, but the labels say 2" in failure[1]


@pytest.mark.parametrize("changed", ["predicted", "truth"])
def test_a_mask_that_is_replaced_while_it_is_read_is_a_failure(changed, two_cases, monkeypatch):
    path = two_cases / changed / ("volume-2.nii.gz" if changed == "predicted" else "segmentation-2.nii")
    read = masks_module._read_both

    def replace_file(pair, *rest):
        both = read(pair, *rest)
        if path in (pair.prediction, pair.reference.mask.path):
            path.write_bytes(path.read_bytes() + b"more")
        return both

    monkeypatch.setattr(masks_module, "_read_both", replace_file)
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert [reason for _, reason in evaluation.failures] == [
        f"{path}: changed while it was read. Run the same command again."
    ]
    assert len(evaluation.cases) == 1


def test_without_a_report_the_labels_must_be_named(two_cases):
    with pytest.raises(LabelError, match="pass --labels"):
        evaluate(two_cases / "predicted", two_cases / "truth", None)


@pytest.mark.parametrize(
    "report", ['{"Modality": "CT"}', '{"model_sha256": "x", "slice_tumor_scores": [null, null], "tumor_score": NaN}']
)
def test_a_report_that_is_none_or_broken_does_not_stop_the_scores(report, two_cases):
    (two_cases / "predicted" / "volume-1.json").write_text(report)
    scores = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS))
    assert scores["tumor_by_case"]["auc"] == 1.0


def test_a_scan_of_another_shape_than_its_mask_is_not_drawn_on(two_cases):
    write_nifti(two_cases / "truth" / "volume-1.nii.gz", np.zeros((1, 4, 6), np.int16), SPACING)
    assert len(evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS).cases) == 2


@pytest.mark.slow
def test_scores_are_the_same_whatever_the_number_of_processes_and_a_bad_case_fails_alone(two_cases):
    for number, name in ((3, "bad"), (4, "good")):
        shutil.copy(two_cases / "truth" / "segmentation-1.nii", two_cases / "truth" / f"segmentation-{number}.nii")
        shutil.copy(two_cases / "predicted" / "volume-1.nii.gz", two_cases / "predicted" / f"volume-{number}.nii.gz")
        if name == "bad":
            (two_cases / "predicted" / f"volume-{number}.nii.gz").write_bytes(b"no scan")
    tables = []
    for workers in (1, 2):
        out = two_cases / f"out{workers}"
        evaluation = evaluate(two_cases / "predicted", two_cases / "truth", out, LITS_LABELS, workers=workers)
        assert [name for name, _ in evaluation.failures] == ["volume-3.nii.gz"]
        assert evaluation.peak_mib > 0
        record = json.loads((out / "evaluation.json").read_text())
        record.pop("peak_mib")
        tables.append((record, (out / "evaluation.csv").read_bytes(), (out / "volume-1_errors.png").read_bytes()))
    assert tables[0] == tables[1]


def test_every_measure_of_a_case_is_that_computed_by_hand(two_cases):
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS, tolerance_mm=1.0)
    row = make_row(evaluation.cases[0])
    assert row["jaccard_tumor"] == 0.5
    assert row["voe_tumor"] == 0.5
    assert row["rvd_tumor"] == -0.5, "the literature's"
    assert row["rvd_lits_tumor"] == 1.0, "the program's: other sign, other denominator"
    # reference x = 1..4, prediction x = 1..2 in one row of 1 mm: 0, 0, 1, 2 mm there and 0, 0 back
    assert row["assd_mm_tumor"] == pytest.approx(3 / 6)
    assert row["rmsd_mm_tumor"] == pytest.approx((5 / 6) ** 0.5)
    assert row["mssd_mm_tumor"] == 2.0
    assert row["hd95_mm_tumor"] == pytest.approx(np.percentile([0, 0, 1, 2], 95))
    assert row["surface_dice_tumor"] == pytest.approx(5 / 6)
    assert row["error_ml_tumor"] == pytest.approx(-2 * 2 / 1000)
    assert (row["reference_burden"], row["predicted_burden"]) == (4 / 16, 2 / 16)
    assert (row["reference_lesions"], row["lesions_found_above_0"], row["lesions_found_above_0.5"]) == (1, 1, 0)
    assert (row["lesions_below_1_ml"], row["lesions_found_below_1_ml"]) == (1, 1)
    assert (row["lesions_above_5_ml"], row["lesions_found_above_5_ml"]) == (0, 0)


def test_official_and_corrected_count_empty_regions_each_their_way(two_cases):
    official = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS, mode="official"))
    tumor = official["regions"]["tumor"]
    assert tumor["dice_per_case"] == pytest.approx((2 / 3 + 1) / 2), "empty and empty is 1"
    assert tumor["assd_mm"] == pytest.approx((0.5 + 9001) / 2), "the program's sentinel is averaged"
    assert "scores Dice 1" in official["empty_regions"]
    corrected = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    assert corrected["regions"]["tumor"]["assd_mm"] == pytest.approx(0.5)
    assert corrected["regions"]["tumor"]["cases_without_distances"] == 1
    assert corrected["burden"]["rmse"] == pytest.approx((((4 - 2) / 16) ** 2 / 2) ** 0.5)


def test_the_largest_burden_error_is_absolute_in_corrected_and_signed_in_official(two_cases):
    predicted = np.zeros((2, 4, 6), np.uint8)
    predicted[:, 1:3, 1:5] = 1
    predicted[0, 1, 1:5] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    for mode, largest in (("corrected", 4 / 16), ("official", 2 / 16)):
        scores = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS, mode=mode))
        assert scores["burden"]["maximum"] == pytest.approx(largest)


def test_lesions_are_pooled_over_cases_and_their_curve_uses_volumes_without_probabilities(two_cases):
    lesions = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))["lesions"]
    above_0 = lesions["overlap_above_0"]
    assert (above_0["true_positive"], above_0["false_positive"], above_0["false_negative"]) == (1, 0, 0)
    assert lesions["overlap_above_0.5"]["recall"] == 0.0
    assert lesions["overlap_above_0.5"]["by_size"]["small"] == {"found": 0, "references": 1, "false": 1, "f1": 0.0}
    assert lesions["froc"]["score"] == "volume"
    assert lesions["froc"]["cpm"] == 1.0


def test_with_probabilities_beside_the_masks_lesions_are_ranked_by_them(two_cases):
    for number, value in ((1, 204), (2, 0)):
        mask = two_cases / "predicted" / f"volume-{number}.nii.gz"
        header = read_header(mask)
        voxels = np.full(header.grid.shape[::-1], value, np.uint8)
        write_volume(
            mask.with_name(f"volume-{number}_probability_tumor.nii.gz"), header.raw, np.uint8, voxels, slope=1 / 255
        )
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert evaluation.alone == (), "a probability map is not a mask"
    assert evaluation.cases[0].lesions.by_probability.found == pytest.approx((0.8,))
    assert scores_of(evaluation)["lesions"]["froc"]["score"] == "mean probability"


def test_overlaps_are_simpleitks(rng):
    truth, predicted = rng.random((2, 6, 7, 8)) < 0.4
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, predicted)))
    counts = count_overlap(truth, predicted)
    assert counts.dice == pytest.approx(measures.GetDiceCoefficient())
    assert counts.jaccard == pytest.approx(measures.GetJaccardCoefficient())
    assert counts.voe == pytest.approx(1 - measures.GetJaccardCoefficient())
    similarity = 2 * (counts.predicted - counts.reference) / (counts.predicted + counts.reference)
    assert abs(similarity) == pytest.approx(abs(measures.GetVolumeSimilarity()))


def test_the_auc_ranks_by_the_reports_scores_only_where_every_case_has_them(two_cases):
    def auc():
        scores = scores_of(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
        return scores["tumor_by_case"]["auc"], scores["tumor_ranked_by"]

    predicted = np.ones((2, 4, 6), np.uint8)
    predicted[0, 0, 0] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    reports = {number: {"model_sha256": "x", "slice_tumor_scores": [0.9, 0.1], "tumor_score": 0.9} for number in (1, 2)}
    (two_cases / "predicted" / "volume-1.json").write_text(json.dumps(reports[1]))
    assert auc() == (1.0, "predicted voxels"), "two voxels against one, and not 0.9 against one voxel"
    (two_cases / "predicted" / "volume-2.json").write_text(json.dumps(reports[2]))
    assert auc() == (0.5, "the reports' scores")


def test_a_case_whose_scan_cannot_be_read_is_scored_and_drawn_on_black(two_cases):
    (two_cases / "truth" / "volume-1.nii.gz").write_bytes(b"no scan")
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS)
    assert (len(evaluation.cases), evaluation.failures) == (2, ())
    assert (two_cases / "out" / "volume-1_errors.png").exists()


@pytest.mark.parametrize("tolerance", [float("inf"), float("nan"), -1.0])
def test_a_tolerance_that_is_no_length_is_refused_before_anything_is_scored(two_cases, tolerance):
    with pytest.raises(ConfigError, match="must be a length in mm"):
        evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS, tolerance_mm=tolerance)
    assert not (two_cases / "out").exists()


def test_cases_without_any_lesion_are_scored_and_drawn(command, tmp_path):
    liver = np.ones((2, 4, 6), np.uint8)
    write_nifti(tmp_path / "mask.nii.gz", liver, SPACING)
    words = [*[tmp_path / "mask.nii.gz"] * 2, "--labels", "liver=1,tumor=2", "--out", tmp_path / "out"]
    done = command("evaluate", *words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "evaluation.png").exists()
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["lesions"]["froc"]["cpm"] is None


def test_a_mode_that_does_not_exist_is_a_usage_error(command, two_cases):
    done = command("evaluate", two_cases / "predicted", two_cases / "truth", "--mode", "other")
    assert done.exit_code == 2
    assert "official" in done.output


def annotate_less(two_cases):
    """Give the two cases a reference whose first tumor voxels and one slice are not annotated (value 3)."""
    for number in (1, 2):
        path = two_cases / "truth" / f"segmentation-{number}.nii"
        truth = np.asarray(nib.load(path).dataobj).astype(np.uint8)
        truth[1:3, 1, 0] = 3  # of case 1: the half of the tumor that is not found
        truth[:, :, 1] = 3
        nib.save(nib.Nifti1Image(truth, nib.load(path).affine), path)


def test_voxels_of_the_label_ignore_count_in_no_score(two_cases):
    annotate_less(two_cases)
    labels = make_labels({"liver": 1, "tumor": 2, "ignore": 3})
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, labels)
    assert not evaluation.failures
    assert list(evaluation.totals.regions) == ["liver", "tumor"]
    first = evaluation.cases[0]
    assert make_row(first, "corrected")["dice_tumor"] == 1.0
    assert make_row(first, "corrected")["dice_liver"] == 1.0
    assert "voxels of the reference's label ignore (3) are left out" in format_left_out(evaluation)


def test_the_value_of_ignore_comes_from_the_references_store_if_the_labels_do_not_name_it(two_cases, one_worker):
    annotate_less(two_cases)
    labels = make_labels({"liver": 1, "tumor": 2, "ignore": 3})
    store = two_cases / "references"
    ingest(discover(two_cases / "truth"), store, Params(labels=labels), IngestOptions(workers=1))
    evaluation = evaluate(two_cases / "predicted", store, None, LITS_LABELS)
    assert not evaluation.failures
    assert evaluation.rules.ignored == 3
    assert evaluation.labels == LITS_LABELS
    with pytest.raises(LabelError, match="calls the value 3 ignore, but the scored labels are"):
        evaluate(two_cases / "predicted", store, None, make_labels({"liver": 1, "tumor": 2, "cyst": 3}))
