import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK
import typer

from slicemill.common.errors import ConfigError, LabelError, PairingError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.measure.evaluation.evaluate import case_row, evaluate, totals
from slicemill.measure.lesions.jobs import gather, run
from slicemill.measure.pairs import pair_up

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
    assert pair_up(two_cases / "predicted", two_cases / "truth").missing == ("volume-1",)
    shutil.copy(two_cases / "predicted" / "volume-2.nii.gz", two_cases / "predicted" / "volume-9.nii.gz")
    assert pair_up(two_cases / "predicted", two_cases / "truth").alone == ("volume-9.nii.gz",)
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
    pairing = pair_up(tmp_path / "p", tmp_path / "r")
    (pair,), missing = pairing.pairs, pairing.missing
    assert pair.reference.mask == tmp_path / "r" / reference
    assert missing == ()


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


def test_the_same_number_at_another_site_is_another_patient(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return pair_up(tmp_path / "p", tmp_path / "r")

    with pytest.raises(PairingError, match="none of its 1 masks"):
        touch("p/siteA/001.nii.gz", "r/siteB/001.nii.gz")
    one = touch("p/siteB/001.nii.gz")
    assert [pair.name for pair in one.pairs] == ["siteB/001.nii.gz"]
    assert (one.missing, one.alone) == ((), ("siteA/001.nii.gz",))
    two = touch("r/siteA/001.nii.gz", "r/siteC/001.nii.gz")
    assert [pair.reference.case_id for pair in two.pairs] == ["siteA/001", "siteB/001"], "no two cases have one id"
    assert (two.missing, two.alone) == (("siteC/001",), ())
    (tmp_path / "p" / "siteA" / "001.nii.gz").unlink()
    assert touch("p/001.nii.gz").alone == ("001.nii.gz",), "it may be of several sites"


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
    from slicemill.store.reader import open_store

    case = open_store(stored)["volume-0"]
    z, y, x = case.info.spacing_mm
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], (z, y * 1.1, x), case.info.source_axcodes)
    ((name, reason),) = evaluate(tmp_path, stored, None).failures
    assert name == "volume-0.nii.gz"
    assert "mm from its reference" in reason


def test_a_store_is_a_reference_too(stored, tmp_path):
    from slicemill.store.reader import open_store

    case = open_store(stored)["volume-0"]
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], case.info.spacing_mm, case.info.source_axcodes)
    evaluation = evaluate(tmp_path, stored, tmp_path / "out")
    assert evaluation.cases[0].regions["tumor"].dice == 1.0
    assert len(evaluation.missing) == 5
    (tmp_path / "volume-0.nii.gz").rename(tmp_path / "segmentation-0.nii.gz")
    (pair,) = pair_up(tmp_path, stored).pairs
    assert pair.reference.case_id == "volume-0", "LiTS calls its masks so"


@pytest.fixture
def predicted_store(two_cases):
    """The predictions of two cases, ingested with their scans."""
    from slicemill.ingest.discover import discover
    from slicemill.ingest.params import Params
    from slicemill.ingest.pipeline import IngestOptions, ingest

    for mask in (two_cases / "predicted").iterdir():
        place = two_cases / "both" / mask.name.replace("volume", "segmentation")
        place.parent.mkdir(exist_ok=True)
        shutil.copy(mask, place)
        shutil.copy(two_cases / "truth" / mask.name, two_cases / "both" / mask.name)
    ingest(discover(two_cases / "both"), two_cases / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
    return two_cases / "store"


def test_a_store_of_predicted_masks_scores_as_its_files_do(predicted_store, two_cases):
    files = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    stored = evaluate(predicted_store, two_cases / "truth", None)
    assert totals(stored) == totals(files)
    assert [case_row(case) for case in stored.cases] == [case_row(case) for case in files.cases]
    itself = totals(evaluate(predicted_store, predicted_store, two_cases / "out"))
    assert itself["regions"]["tumor"]["dice_global"] == 1.0, "a store of predictions against a store of references"


def test_a_stored_case_that_cannot_be_opened_fails_and_the_rest_is_scored(predicted_store, two_cases, tmp_path):
    from slicemill.store.layout import GROUP

    (predicted_store / GROUP / "volume-1" / "zarr.json").write_text("{")
    for predictions, references in ((predicted_store, two_cases / "truth"), (two_cases / "predicted", predicted_store)):
        evaluation = evaluate(predictions, references, None, LITS_LABELS)
        assert [case.case_id for case in evaluation.cases] == ["volume-2"]
        ((name, reason),) = evaluation.failures
        assert name == "volume-1"
        assert "zarr.json: cannot be read" in reason
        assert (evaluation.missing, evaluation.alone) == ((), ())
    outcomes = run(gather(predicted_store, None, None), tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]


def test_a_stored_prediction_off_the_grid_of_its_reference_is_named(predicted_store, two_cases):
    write_nifti(two_cases / "truth" / "segmentation-1.nii", np.zeros((2, 4, 5), np.uint8), SPACING)
    write_nifti(two_cases / "truth" / "segmentation-2.nii", np.zeros((2, 4, 6), np.uint8), (2.0, 1.5, 1.0))
    reasons = [reason for _, reason in evaluate(predicted_store, two_cases / "truth", None).failures]
    assert "store: volume-1: has shape" in reasons[0]
    assert "store: volume-2: lies 0.75 mm from its reference" in reasons[1]


def test_labels_of_a_store_of_predictions_must_mean_what_the_other_run_means(predicted_store, two_cases):
    from slicemill.ct.labels import make_labels
    from slicemill.measure.pairs import check_reports

    with pytest.raises(LabelError, match="its store names the labels liver=1, tumor=2"):
        check_reports(pair_up(predicted_store, two_cases / "truth").pairs, make_labels({"liver": 2, "tumor": 1}))


def test_scores_are_the_same_whatever_the_number_of_processes_and_a_bad_case_fails_alone(two_cases):
    for number, name in ((3, "bad"), (4, "good")):
        shutil.copy(two_cases / "truth" / "segmentation-1.nii", two_cases / "truth" / f"segmentation-{number}.nii")
        shutil.copy(two_cases / "predicted" / "volume-1.nii.gz", two_cases / "predicted" / f"volume-{number}.nii.gz")
        if name == "bad":
            (two_cases / "predicted" / f"volume-{number}.nii.gz").write_bytes(b"no scan")
    tables = []
    for workers in (1, 3):
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
    row = case_row(evaluation.cases[0])
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


def test_official_and_corrected_count_empty_regions_each_their_way(two_cases):
    official = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS, mode="official"))
    tumor = official["regions"]["tumor"]
    assert tumor["dice_per_case"] == pytest.approx((2 / 3 + 1) / 2), "empty and empty is 1"
    assert tumor["assd_mm"] == pytest.approx((0.5 + 9001) / 2), "the program's sentinel is averaged"
    assert "scores Dice 1" in official["empty_regions"]
    corrected = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    assert corrected["regions"]["tumor"]["assd_mm"] == pytest.approx(0.5)
    assert corrected["regions"]["tumor"]["cases_without_distances"] == 1
    assert corrected["burden"]["rmse"] == pytest.approx((((4 - 2) / 16) ** 2 / 2) ** 0.5)


def test_the_largest_burden_error_is_absolute_in_corrected_and_signed_in_official(two_cases):
    predicted = np.zeros((2, 4, 6), np.uint8)
    predicted[:, 1:3, 1:5] = 1
    predicted[0, 1, 1:5] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    for mode, largest in (("corrected", 4 / 16), ("official", 2 / 16)):
        scores = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS, mode=mode))
        assert scores["burden"]["maximum"] == pytest.approx(largest)


def test_lesions_are_pooled_over_cases_and_their_curve_uses_volumes_without_probabilities(two_cases):
    lesions = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))["lesions"]
    above_0 = lesions["overlap_above_0"]
    assert (above_0["true_positive"], above_0["false_positive"], above_0["false_negative"]) == (1, 0, 0)
    assert lesions["overlap_above_0.5"]["recall"] == 0.0
    assert lesions["overlap_above_0.5"]["by_size"]["small"] == {"found": 0, "references": 1, "false": 1, "f1": 0.0}
    assert lesions["froc"]["score"] == "volume"
    assert lesions["froc"]["cpm"] == 1.0


def test_with_probabilities_beside_the_masks_lesions_are_ranked_by_them(two_cases):
    from slicemill.ct.formats.nifti.header import read_header
    from slicemill.ct.formats.nifti.write import write_volume

    for number, value in ((1, 204), (2, 0)):
        mask = two_cases / "predicted" / f"volume-{number}.nii.gz"
        header = read_header(mask)
        voxels = np.full(header.grid.shape[::-1], value, np.uint8)
        write_volume(
            mask.with_name(f"volume-{number}_probability_tumor.nii.gz"), header.raw, np.uint8, voxels, slope=1 / 255
        )
    evaluation = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    assert evaluation.alone == (), "a probability is no mask"
    assert evaluation.cases[0].lesions.by_probability.found == pytest.approx((0.8,))
    assert totals(evaluation)["lesions"]["froc"]["score"] == "mean probability"


def test_the_command_writes_every_table_and_compares_two_runs(two_cases):
    from typer.testing import CliRunner

    from slicemill.measure.cli import evaluate as command

    app = typer.Typer()
    app.command()(command)
    other = two_cases / "other"
    other.mkdir()
    for mask in (two_cases / "truth").glob("segmentation-*"):
        shutil.copy(mask, other)
    words = [
        two_cases / "predicted",
        two_cases / "truth",
        "--labels",
        "liver=1,tumor=2",
        "--out",
        two_cases / "out",
        "--against",
        other,
    ]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "neither mask has it in 1" in done.output
    made = {path.name for path in (two_cases / "out").iterdir()}
    assert {"evaluation.json", "evaluation.png", "comparison.json", "comparison.csv", "comparison.png"} <= made
    rows = json.loads((two_cases / "out" / "comparison.json").read_text())["rows"]
    tumor = next(row for row in rows if (row["region"], row["measure"]) == ("tumor", "dice"))
    assert (tumor["cases"], tumor["left_out"], tumor["worse_in"]) == (1, 1, 1)
    assert tumor["difference"] == pytest.approx(2 / 3 - 1)
    distance = next(row for row in rows if (row["region"], row["measure"]) == ("tumor", "assd_mm"))
    assert (distance["better_in"], distance["worse_in"]) == (0, 1), "a smaller distance is better"


def test_a_false_alarm_of_one_run_counts_against_it(two_cases):
    from slicemill.measure.evaluation.two_runs import comparison

    predicted = np.ones((2, 4, 6), np.uint8)
    predicted[0, 0, 0] = 2
    write_nifti(two_cases / "predicted" / "volume-2.nii.gz", predicted, SPACING)
    (two_cases / "other").mkdir()
    for mask in (two_cases / "truth").glob("segmentation-*"):
        shutil.copy(mask, two_cases / "other")
    run, other = (
        evaluate(two_cases / masks, two_cases / "truth", None, LITS_LABELS) for masks in ("predicted", "other")
    )
    rows = {row["measure"]: row for row in comparison(run, other) if row["region"] == "tumor"}
    for measure, best in (("dice", 1.0), ("voe", 0.0)):
        assert (rows[measure]["cases"], rows[measure]["left_out"], rows[measure]["worse_in"]) == (2, 0, 2)
        assert rows[measure]["mean_against"] == best
    assert rows["assd_mm"]["left_out"] == 1


def test_intervals_hold_what_they_should_and_ratios_are_of_sums():
    from slicemill.measure.evaluation.statistics import bootstrap_interval, ratio_interval

    rng = np.random.default_rng(1)
    values = rng.random(60)
    assert np.allclose(ratio_interval(values, np.ones(60)), bootstrap_interval(values), atol=0.01)
    low, high = ratio_interval([1, 0, 3], [2, 0, 3])
    assert 0.5 <= low < 0.8 < high <= 1.0
    assert np.isnan(ratio_interval([0, 0], [0, 0])).all()


def test_overlaps_are_simpleitks(rng):
    from slicemill.ct.overlap import overlap

    truth, predicted = rng.random((2, 6, 7, 8)) < 0.4
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, predicted)))
    counts = overlap(truth, predicted)
    assert counts.dice == pytest.approx(measures.GetDiceCoefficient())
    assert counts.jaccard == pytest.approx(measures.GetJaccardCoefficient())
    assert counts.voe == pytest.approx(1 - measures.GetJaccardCoefficient())
    similarity = 2 * (counts.predicted - counts.reference) / (counts.predicted + counts.reference)
    assert abs(similarity) == pytest.approx(abs(measures.GetVolumeSimilarity()))


def test_the_auc_ranks_by_the_reports_scores_only_where_every_case_has_them(two_cases):
    def auc():
        scores = totals(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
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


def test_failures_of_the_other_run_are_told_and_count_and_its_labels_must_agree(two_cases):
    from typer.testing import CliRunner

    from slicemill.measure.cli import evaluate as command

    app = typer.Typer()
    app.command()(command)
    shutil.copytree(two_cases / "predicted", two_cases / "other")
    (two_cases / "other" / "volume-2.nii.gz").write_bytes(b"no scan")
    words = [two_cases / "predicted", two_cases / "truth", "--labels", "liver=1,tumor=2", "--against"]
    done = CliRunner().invoke(app, [str(word) for word in (*words, two_cases / "other")])
    assert done.exit_code == 1
    assert "other/volume-2.nii.gz: " in done.output.replace("\n", "")
    assert "2 cases compared, 0 failed" in done.output
    words[2:4] = []
    for folder, labels in (("predicted", {"liver": 1, "tumor": 2}), ("other", {"tumor": 1, "liver": 2})):
        report = {"model_sha256": "x", "slice_tumor_scores": [], "labels": labels, "organ": "liver", "tumor": "tumor"}
        for number in (1, 2):
            (two_cases / folder / f"volume-{number}.json").write_text(json.dumps(report))
    done = CliRunner().invoke(app, [str(word) for word in (*words, two_cases / "other")])
    assert "its report names the labels tumor=1, liver=2" in done.output.replace("\n", " ")


def test_reports_and_a_store_that_name_values_otherwise_are_refused(stored, tmp_path):
    from slicemill.ct.labels import make_labels
    from slicemill.store.reader import open_store

    case = open_store(stored)["volume-0"]
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], case.info.spacing_mm, case.info.source_axcodes)
    swapped = make_labels({"tumor": 1, "liver": 2})
    report = {"model_sha256": "x", "slice_tumor_scores": [], "tumor_score": 0.5}
    for labels, refused in ((swapped, True), (make_labels({"tumor": 1}), True), (LITS_LABELS, False)):
        (tmp_path / "volume-0.json").write_text(json.dumps(report | labels.as_json()))
        if refused:
            with pytest.raises(LabelError, match=r"tumor=1.* and its reference in the store liver=1, tumor=2"):
                evaluate(tmp_path, stored, None)
        else:
            assert evaluate(tmp_path, stored, None).cases[0].regions["tumor"].dice == 1.0
