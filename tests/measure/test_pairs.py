"""Which prediction belongs to which reference, from files and stores, and whether their labels mean the same."""

import json
import shutil

import numpy as np
import pytest

from slicemill.common.errors import LabelError, PairingError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.phantom import write_nifti
from slicemill.measure.evaluation.evaluate import evaluate
from slicemill.measure.evaluation.region import make_row
from slicemill.measure.inputs.label_names import check_same_labels
from slicemill.measure.inputs.pairs import pair_up
from slicemill.measure.lesions.jobs import gather_jobs
from slicemill.measure.lesions.run import run
from slicemill.store.layout import GROUP
from slicemill.store.reader import open_store
from tests.measure.conftest import SPACING


def scores_of(evaluation):
    """The scores over all cases, as they are written."""
    return evaluation.totals.as_json()


def test_a_prediction_without_reference_is_named_and_a_reference_without_prediction_counted(two_cases):
    (two_cases / "predicted" / "volume-1.nii.gz").unlink()
    assert pair_up(two_cases / "predicted", two_cases / "truth").missing == ("volume-1",)
    shutil.copy(two_cases / "predicted" / "volume-2.nii.gz", two_cases / "predicted" / "volume-9.nii.gz")
    assert pair_up(two_cases / "predicted", two_cases / "truth").alone == ("volume-9.nii.gz",)
    with pytest.raises(PairingError, match="contains no mask"):
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
    assert pair.reference.mask.path == tmp_path / "r" / reference
    assert missing == ()


@pytest.mark.parametrize(
    "doubles", [("r/a.nii", "r/a.nii.gz"), ("r/a_seg.nii", "r/a_mask.mha"), ("p/a.nii", "p/a.mha")]
)
def test_two_files_of_one_name_in_a_folder_are_refused_by_name(doubles, tmp_path):
    for name in ("p/b.nii", "r/b.nii", "p/a.nii" if doubles[0].startswith("r") else "r/a.nii", *doubles):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(PairingError, match="keep one of them") as refused:
        pair_up(tmp_path / "p", tmp_path / "r")
    assert all(str(tmp_path / name) in str(refused.value) for name in doubles)


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
    with pytest.raises(PairingError, match="none of the 1 masks matches the name of a reference"):
        pair_up(tmp_path / "p", tmp_path / "r")


def test_the_same_number_at_another_site_is_another_patient(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return pair_up(tmp_path / "p", tmp_path / "r")

    with pytest.raises(PairingError, match="none of the 1 masks"):
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
    with pytest.raises(PairingError, match="both belong to the case volume-2"):
        pair_up(two_cases / "predicted", two_cases / "truth")


def test_a_prediction_of_another_pixel_size_than_the_stored_case_is_a_failure(stored, tmp_path):
    case = open_store(stored)["volume-0"]
    z, y, x = case.info.spacing_mm
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], (z, y * 1.1, x), case.info.source_axcodes)
    ((name, reason),) = evaluate(tmp_path, stored, None).failures
    assert name == "volume-0.nii.gz"
    assert "must have the same grid as its reference" in reason


def test_a_store_is_a_reference_too(stored, tmp_path):
    case = open_store(stored)["volume-0"]
    write_nifti(tmp_path / "volume-0.nii.gz", case.label[:], case.info.spacing_mm, case.info.source_axcodes)
    evaluation = evaluate(tmp_path, stored, tmp_path / "out")
    assert evaluation.cases[0].regions["tumor"].dice == 1.0
    assert len(evaluation.missing) == 5
    (tmp_path / "volume-0.nii.gz").rename(tmp_path / "segmentation-0.nii.gz")
    (pair,) = pair_up(tmp_path, stored).pairs
    assert pair.reference.case_id == "volume-0", "LiTS calls its masks so"


def test_a_store_of_predicted_masks_scores_as_its_files_do(predicted_store, two_cases):
    files = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS)
    stored = evaluate(predicted_store, two_cases / "truth", None)
    assert scores_of(stored) == scores_of(files)
    assert [make_row(case) for case in stored.cases] == [make_row(case) for case in files.cases]
    itself = scores_of(evaluate(predicted_store, predicted_store, two_cases / "out"))
    assert itself["regions"]["tumor"]["dice_global"] == 1.0, "a store of predictions against a store of references"


def test_a_stored_case_that_cannot_be_opened_fails_and_the_rest_is_scored(predicted_store, two_cases, tmp_path):
    (predicted_store / GROUP / "volume-1" / "zarr.json").write_text("{")
    for predictions, references in ((predicted_store, two_cases / "truth"), (two_cases / "predicted", predicted_store)):
        evaluation = evaluate(predictions, references, None, LITS_LABELS)
        assert [case.case_id for case in evaluation.cases] == ["volume-2"]
        ((name, reason),) = evaluation.failures
        assert name == "volume-1"
        assert "zarr.json: cannot be read" in reason
        assert (evaluation.missing, evaluation.alone) == ((), ())
    outcomes = run(gather_jobs(predicted_store, None, None), tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]


def test_a_stored_prediction_off_the_grid_of_its_reference_is_named(predicted_store, two_cases):
    write_nifti(two_cases / "truth" / "segmentation-1.nii", np.zeros((2, 4, 5), np.uint8), SPACING)
    write_nifti(two_cases / "truth" / "segmentation-2.nii", np.zeros((2, 4, 6), np.uint8), (2.0, 1.5, 1.0))
    reasons = [reason for _, reason in evaluate(predicted_store, two_cases / "truth", None).failures]
    assert (
        "store: volume-1: must have the same grid as its reference volume-1, in any axis order; their shapes"
        in reasons[0]
    )
    assert "store: volume-2: must have the same grid" in reasons[1]
    assert "their affines differ by 0.75 mm" in reasons[1]


def test_labels_of_a_store_of_predictions_must_mean_what_the_other_run_means(predicted_store, two_cases):
    with pytest.raises(LabelError, match="its store names the labels liver=1, tumor=2"):
        check_same_labels(pair_up(predicted_store, two_cases / "truth").pairs, make_labels({"liver": 2, "tumor": 1}))


def test_reports_and_a_store_that_name_values_otherwise_are_refused(stored, tmp_path):
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


def test_labels_of_the_user_do_not_swap_the_names_of_a_store(predicted_store, two_cases, tmp_path):
    swapped = make_labels({"tumor": 1, "liver": 2})
    refused = "its store has tumor=2, but the labels say tumor=1. Pass labels that are correct for the store: liver=1"
    (first, *_) = run(gather_jobs(predicted_store, None, swapped), tmp_path / "measured")
    assert (first.status, refused in first.reason) == ("failed", True)
    for sides in ((predicted_store, two_cases / "truth"), (two_cases / "predicted", predicted_store)):
        with pytest.raises(LabelError, match=refused):
            evaluate(*sides, None, swapped)
    renamed = make_labels({"organ": 1, "lesion": 2})
    assert not evaluate(predicted_store, two_cases / "truth", None, renamed).failures
