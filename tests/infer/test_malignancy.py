"""Malignancy of candidates: the output beside the diameter, fitted to few nodules, and applied to candidates."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit, logit
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, ModelError
from slicemill.ct.overlap import area_under_roc
from slicemill.infer.calibration import NotCalibrated
from slicemill.infer.malignancy import (
    FEWEST,
    LIMITS,
    PRIOR_DEVIATIONS,
    JudgedNodules,
    calibrate_malignancy,
    describe_malignancy_fit,
    fit_malignancy,
)
from slicemill.infer.network.classifier import open_classifier
from slicemill.infer.tune_classifier import judge_nodules
from slicemill.info import describe, summarize
from slicemill.store.crop_card import decode_crop_metadata
from slicemill.store.reader import open_store
from tests.infer.networks import CROP_CARD, write_classifier
from tests.infer.test_candidates import models, read_rows, run, scans  # noqa: F401 (fixtures)
from tests.train.crop_store import make_crop_store

COUNTS = {"malignant": 10, "benign": 10, "auc_output": 0.5, "auc_diameter": 0.5, "auc_both": 0.5}
NUMBERS = {"weight": 0.5, "diameter_weight": 2.0, "shift": -0.3, **COUNTS}


def draw(weight, diameter_weight, shift, count=20_000, seed=0):
    """Return nodules whose malignancy follows the formula."""
    rng = np.random.default_rng(seed)
    output, diameter = expit(rng.normal(0, 2, count)), np.exp(rng.normal(np.log(7), 0.6, count))
    chance = expit(weight * logit(output) + diameter_weight * np.log(diameter / 10) + shift)
    return JudgedNodules(output=output, diameter_mm=diameter, malignant=rng.random(count) < chance)


@pytest.mark.parametrize("numbers", [(1.0, 0.0, 0.0), (0.3, 3.0, -0.5), (2.0, -1.0, 1.0)])
def test_the_numbers_that_made_the_classes_are_found(numbers):
    fitted = fit_malignancy(draw(*numbers))
    found = fitted["weight"], fitted["diameter_weight"], fitted["shift"]
    np.testing.assert_allclose(found, numbers, atol=0.12)


def test_no_other_numbers_are_more_probable():
    nodules = draw(0.5, 2.0, 0.5, count=60, seed=3)
    fitted = fit_malignancy(nodules)
    rng = np.random.default_rng(0)

    def loss(values):
        odds = values[0] * logit(nodules.output) + values[1] * np.log(nodules.diameter_mm / 10) + values[2]
        likelihood = np.log(np.where(nodules.malignant, expit(odds), expit(-odds))).sum()
        prior = ((values[0] - 1) / PRIOR_DEVIATIONS[0]) ** 2 + (values[1] / PRIOR_DEVIATIONS[1]) ** 2
        return prior / 2 - likelihood

    best = np.array([fitted["weight"], fitted["diameter_weight"], fitted["shift"]])
    for scale in (0.01, 0.1, 1.0):
        for _ in range(200):
            other = np.clip(best + scale * rng.normal(size=3), *np.transpose(LIMITS))
            assert loss(best) <= loss(other) + 1e-4


def test_both_tell_more_than_the_diameter_of_unseen_nodules():
    fitted, unseen = fit_malignancy(draw(0.7, 2.5, 0.0, count=60)), draw(0.7, 2.5, 0.0, seed=1)
    both = area_under_roc(unseen.malignant, calibrate_malignancy(unseen.output, unseen.diameter_mm, fitted))
    assert both > area_under_roc(unseen.malignant, unseen.diameter_mm) + 0.05
    assert both > area_under_roc(unseen.malignant, unseen.output)


def test_an_output_that_says_nothing_or_the_reverse_does_not_count_in_reverse():
    nodules = draw(1.0, 3.0, 0.0, count=4000)
    reverse = JudgedNodules(output=1 - nodules.output, diameter_mm=nodules.diameter_mm, malignant=nodules.malignant)
    assert fit_malignancy(reverse)["weight"] == 0


@pytest.mark.parametrize("malignant", [FEWEST - 1, 50 - FEWEST + 1, 0])
def test_few_nodules_leave_the_output_and_their_numbers_are_said(malignant):
    nodules = JudgedNodules(output=np.full(50, 0.5), diameter_mm=np.full(50, 6.0), malignant=np.arange(50) < malignant)
    fitted = fit_malignancy(nodules)
    assert isinstance(fitted, NotCalibrated)
    (line,) = describe_malignancy_fit(fitted)
    assert f"{malignant} malignant nodules and {50 - malignant} benign ones; {FEWEST} of each are needed" in line
    assert calibrate_malignancy([0.1, 0.7], np.array([3.0, 30.0]), None).tolist() == [0.1, 0.7]


def test_nodules_of_equal_numbers_and_outputs_of_0_and_1_have_finite_numbers():
    nodules = JudgedNodules(
        output=np.tile([0.0, 1.0], 20), diameter_mm=np.full(40, 6.0), malignant=np.tile([False, True], 20)
    )
    fitted = fit_malignancy(nodules)
    assert np.isfinite([fitted["weight"], fitted["diameter_weight"], fitted["shift"]]).all()
    assert fitted["auc_both"] == 1
    after = calibrate_malignancy([0.0, 1.0], np.array([1.0, 100.0]), fitted)
    assert 0 <= after[0] < after[1] <= 1


def test_infer_weighs_the_diameter_of_the_candidate_and_says_so(models, scans, tmp_path):  # noqa: F811
    card = {**CROP_CARD, "malignancy_calibration": NUMBERS}
    fitted = write_classifier(tmp_path / "c.onnx", malignancy=True, card=card)
    plain = write_classifier(tmp_path / "p.onnx", malignancy=True)
    run((models[0], plain), scans, tmp_path / "plain")
    run((models[0], fitted), scans, tmp_path / "fitted")
    before, after = (read_rows(tmp_path / name / "candidates.csv") for name in ("plain", "fitted"))
    assert len(before) > 3
    diameters = np.array([float(row["diameter_mm"]) for row in before])
    expected = calibrate_malignancy([float(row["malignancy"]) for row in before], diameters, NUMBERS)
    np.testing.assert_allclose([float(row["malignancy"]) for row in after], expected, rtol=1e-9)
    assert [row["probability"] for row in before] == [row["probability"] for row in after]
    stated = [
        json.loads((tmp_path / name / "candidates.json").read_text())["scans"][0]["malignancy_calibration"]
        for name in ("plain", "fitted")
    ]
    assert stated == [None, {"weight": 0.5, "diameter_weight": 2.0, "shift": -0.3}]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store with nodules enough."""
    return make_crop_store(tmp_path_factory.mktemp("store"), cases=14)


def test_tune_fits_it_to_the_nodules_of_the_store_at_their_centers(many, tmp_path):
    path = write_classifier(tmp_path / "c.onnx", malignancy=True)

    def tune(*options):
        words = ["tune", str(path), str(many), "--provider", "cpu", "--json", *options]
        result = CliRunner().invoke(commands(), words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout[result.stdout.index("{") :]), result.stderr

    document, text = tune()
    classifier = open_classifier(path, "cpu")
    fitted = classifier.card.malignancy_calibration
    assert fitted == document["malignancy_calibration"]
    points = [point for case in open_store(many).values() for point in case.points]
    known = [point for point in points if point.kind == "nodule" and point.malignancy is not None]
    assert fitted["malignant"] + fitted["benign"] == len(known)
    assert f"{fitted['malignant']} malignant and {fitted['benign']} benign nodules" in text
    assert "malignancy" in "\n".join(describe(summarize(path)))
    assert tune()[0] == document, "the network's output is fitted, not what was fitted before"


def test_a_classifier_without_malignancy_gets_no_numbers_and_info_says_nothing_of_it(many, tmp_path):
    path = write_classifier(tmp_path / "c.onnx")
    result = CliRunner().invoke(commands(), ["tune", str(path), str(many), "--provider", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout[result.stdout.index("{") :])["malignancy_calibration"] is None
    assert open_classifier(path, "cpu").card.malignancy_calibration is None
    assert not any(line.startswith("malignancy") for line in describe(summarize(path)))


def test_numbers_without_the_output_are_not_applied(models, scans, tmp_path):  # noqa: F811
    card = {**CROP_CARD, "malignancy_calibration": NUMBERS}
    run((models[0], write_classifier(tmp_path / "c.onnx", card=card)), scans, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "candidates.json").read_text())["scans"]
    assert {one["malignancy_calibration"] for one in found} == {None}
    assert {one["malignancy"] for scan in found for one in scan["candidates"]} == {None}


def test_an_excluded_finding_does_not_count_whatever_its_malignancy(many):
    classifier = open_classifier(write_classifier(many.parent / "e.onnx", malignancy=True), "cpu")
    case = next(iter(open_store(many).values()))
    excluded = replace(case.points[0], kind="excluded", malignancy=7.0)
    fake = SimpleNamespace(case_id="one", points=(excluded, *case.points[1:]), image=case.image, affine=case.affine)
    assert len(judge_nodules(classifier, fake, ratings=False).output) == len(case.points) - 1


def test_ratings_out_of_range_are_an_error(many):
    classifier = open_classifier(write_classifier(many.parent / "m.onnx", malignancy=True), "cpu")
    case = next(one for one in open_store(many).values() if any(p.malignancy == 0 for p in one.points))
    with pytest.raises(ConfigError, match="ratings from 1 to 5"):
        judge_nodules(classifier, case, ratings=True)


@pytest.mark.parametrize("damage", [{"weight": -1.0}, {"weight": "much"}, {"shift": None}, {"auc_both": 2.0}])
def test_damaged_numbers_are_refused(damage):
    text = json.dumps({**CROP_CARD, "malignancy_calibration": {**NUMBERS, **damage}})
    with pytest.raises(ModelError, match="malignancy_calibration"):
        decode_crop_metadata(text, "c.onnx")
