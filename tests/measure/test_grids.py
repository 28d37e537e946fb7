"""Predictions, references and scans in other axis orders; labels that need rounding; warnings of infer's reports."""

import json

import nibabel as nib
import numpy as np
import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.measure.evaluation.evaluate import evaluate
from slicemill.measure.inputs.masks import read_background
from slicemill.measure.inputs.pairs import pair_up
from slicemill.measure.lesions.jobs import file_job, gather_jobs
from slicemill.measure.lesions.load import load_case
from slicemill.measure.lesions.run import run
from tests.ct.grids import reorient

TURNS = ["RAS", "LAS", "ASL", "IPR"]


def turn(path, codes, change=lambda voxels: voxels):
    """Write a file again in another axis order."""
    image = reorient(nib.load(path), codes)
    voxels = change(np.asarray(image.dataobj).copy())  # a copy: nibabel maps the file that is replaced
    nib.save(nib.Nifti1Image(voxels, image.affine, dtype=voxels.dtype), path)


def scores(evaluation):
    return evaluation.totals.as_json()


@pytest.mark.parametrize("codes", TURNS)
@pytest.mark.parametrize("side", ["predicted", "truth"])
def test_a_turned_prediction_or_reference_has_the_same_scores(side, codes, two_cases):
    expected = scores(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    for path in (two_cases / side).iterdir():
        turn(path, codes)
    found = evaluate(two_cases / "predicted", two_cases / "truth", two_cases / "out", LITS_LABELS)
    assert found.failures == ()
    assert scores(found) == expected


def test_a_store_is_compared_with_turned_files_and_the_reverse(predicted_store, two_cases):
    expected = scores(evaluate(predicted_store, two_cases / "truth", None))
    for path in (two_cases / "truth").iterdir():
        turn(path, "ASL")
    assert scores(evaluate(predicted_store, two_cases / "truth", None)) == expected
    for path in (two_cases / "predicted").iterdir():
        turn(path, "RSA")
    assert scores(evaluate(two_cases / "predicted", predicted_store, None))["regions"]["tumor"]["dice_global"] == 1.0


def test_a_probability_map_beside_a_turned_prediction_is_read_where_it_lies(two_cases):
    prediction = two_cases / "predicted" / "volume-1.nii.gz"
    image = nib.load(prediction)
    values = np.where(np.asarray(image.dataobj) == 2, 200, 10).astype(np.uint8)
    beside = two_cases / "predicted" / "volume-1_probability_tumor.nii.gz"
    nib.save(nib.Nifti1Image(values, image.affine), beside)

    def hits():
        (first, _) = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS).cases
        return first.lesions.by_probability.found

    assert hits() == (pytest.approx(200 / 255),)
    turn(two_cases / "predicted" / "volume-1.nii.gz", "ASL")
    assert hits() == (pytest.approx(200 / 255),), "the map may also be turned otherwise than its mask"
    turn(beside, "ASL")
    assert hits() == (pytest.approx(200 / 255),)
    image = nib.load(beside)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([-1.0, 1, 1, 1])), beside)
    ((_, reason),) = evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS).failures
    assert "a probability map must have bytes on its mask's grid" in reason


def test_a_turned_scan_is_the_background_of_pictures(two_cases):
    scan = two_cases / "truth" / "volume-1.nii.gz"
    turn(scan, "ASL", lambda voxels: np.arange(voxels.size, dtype=np.int16).reshape(voxels.shape))
    pair = next(one for one in pair_up(two_cases / "predicted", two_cases / "truth").pairs if "1" in one.name)
    case = load_case(file_job(two_cases / "truth" / "segmentation-1.nii", scan, LITS_LABELS))
    from slicemill.measure.inputs.masks import read_masks

    background = read_background(pair, read_masks(pair).grid)
    assert np.array_equal(background, case.volume.image)
    assert len(np.unique(background)) == background.size


@pytest.mark.parametrize("codes", TURNS)
def test_intensities_are_measured_in_a_turned_scan_where_the_mask_lies(codes, two_cases):
    mask, scan = two_cases / "truth" / "segmentation-1.nii", two_cases / "truth" / "volume-1.nii.gz"
    image = nib.load(mask)
    voxels = np.where(np.asarray(image.dataobj).copy() == 2, 120, 50).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, image.affine), scan)
    turn(scan, codes)
    case = load_case(file_job(mask, scan, LITS_LABELS))
    assert np.array_equal(case.volume.image == 120, case.volume.label == 2)
    moved = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asarray(moved.dataobj), moved.affine @ np.diag([-1.0, 1, 1, 1])), scan)
    (outcome,) = run(gather_jobs(mask, scan, LITS_LABELS), two_cases / "out")
    assert outcome.status == "failed"
    assert f"{scan}: must have the same grid as its mask {mask}, in any axis order" in outcome.reason


def test_time_points_with_turned_scans_are_compared(command, two_cases):
    mask, scan = two_cases / "truth" / "segmentation-1.nii", two_cases / "truth" / "volume-1.nii.gz"
    turn(scan, "ASL")
    result = command(
        "compare", mask, mask, "--labels", "liver=1,tumor=2", "--baseline-image", scan, "--followup-image", scan
    )
    assert result.exit_code == 0, result.output
    assert "category: NE" in result.output
    assert "matched" in result.output


def test_rounded_labels_are_scored_and_measured_with_a_warning(command, two_cases):
    expected = scores(evaluate(two_cases / "predicted", two_cases / "truth", None, LITS_LABELS))
    for path in (two_cases / "predicted" / "volume-1.nii.gz", two_cases / "truth" / "segmentation-1.nii"):
        turn(path, "LPS", lambda voxels: (voxels * 0.9999999).astype(np.float32))
    out = two_cases / "out"
    found = evaluate(two_cases / "predicted", two_cases / "truth", out, LITS_LABELS)
    assert scores(found) == expected
    assert [warning.split(": ")[-1][:40] for warning in found.warnings] == 2 * [
        "label values were rounded to integers, b"
    ]
    assert json.loads((out / "evaluation.json").read_text())["warnings"] == list(found.warnings)
    result = command("evaluate", two_cases / "predicted", two_cases / "truth", "--labels", "liver=1,tumor=2")
    assert f"warning: {found.warnings[0]}" in result.output
    case = load_case(file_job(two_cases / "truth" / "segmentation-1.nii", None, LITS_LABELS))
    assert any("label values were rounded" in warning for warning in case.warnings)


def test_warnings_of_infers_report_are_shown_with_the_case(two_cases):
    mask = two_cases / "predicted" / "volume-1.nii.gz"
    document = {
        "model": "m",
        "model_sha256": "0",
        "slice_tumor_scores": None,
        **LITS_LABELS.as_json(),
        "warnings": ["HU range 0..255 does not look like a CT", 3],
    }
    mask.with_name("volume-1.json").write_text(json.dumps(document))
    assert load_case(file_job(mask, None, None)).warnings == ("HU range 0..255 does not look like a CT",)
    (outcome,) = run(gather_jobs(mask, None, None), two_cases / "out")
    assert outcome.status == "done"
    assert "HU range 0..255 does not look like a CT" in (two_cases / "out" / "volume-1.html").read_text()
