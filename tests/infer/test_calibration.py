"""Calibration of a classifier: fitted by likelihood, applied to candidates, and the order as before."""

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ModelError
from slicemill.infer.calibration import (
    BINS,
    FEWEST,
    SHIFTS,
    TEMPERATURES,
    WEIGHTED_TEMPERATURES,
    WEIGHTS,
    NotCalibrated,
    calibrate,
    calibration_error,
    describe_calibration,
    fit_calibration,
    measure_reliability,
)
from slicemill.infer.network.classifier import open_classifier
from slicemill.infer.tune_classifier import judge_case, rank_case
from slicemill.info import describe, summarize
from slicemill.store.crop_card import decode_crop_metadata
from slicemill.store.reader import open_store
from slicemill.store.split import Split, write_split
from tests.infer.networks import CROP_CARD, write_classifier
from tests.infer.test_candidates import models, read_rows, run, scans  # noqa: F401 (fixtures)
from tests.train.crop_store import make_crop_store

NUMBERS = {"in_nodules": 1, "elsewhere": 1, "ece_before": 0.0, "ece_after": 0.0}
EMPTY = {"reliability_before": [], "reliability_after": []}


def make(temperature, shift, **more):
    return {"temperature": temperature, "shift": shift, **more, **NUMBERS, **EMPTY}


def fit(true, false):
    """Fit the calibration of a table without means of a segmentation."""
    count = len(true) + len(false)
    return fit_calibration(np.concatenate([true, false]), np.full(count, np.nan), np.arange(count) < len(true))


def draw(temperature, shift, count=60_000, seed=0):
    """Return outputs of a classifier, in nodules and elsewhere, whose calibrated probabilities are true."""
    rng = np.random.default_rng(seed)
    raw = expit(rng.normal(0, 4, count))
    is_nodule = rng.random(count) < expit((logit(raw) + shift) / temperature)
    return raw[is_nodule], raw[~is_nodule]


@pytest.mark.parametrize(("temperature", "shift"), [(1.0, 0.0), (0.7, 1.0), (6.0, -8.0)])
def test_the_numbers_that_made_the_classes_are_found(temperature, shift):
    fitted = fit(*draw(temperature, shift))
    assert fitted["temperature"] == pytest.approx(temperature, rel=0.08)
    assert fitted["shift"] == pytest.approx(shift, abs=0.3)
    assert fitted["ece_after"] < 0.01
    assert fitted["ece_after"] <= fitted["ece_before"] + 1e-3


def test_no_other_numbers_are_more_likely():
    true, false = draw(3.0, -2.0, count=400, seed=4)
    fitted = fit(true, false)
    odds, is_nodule = logit(np.concatenate([true, false])), np.arange(400) < len(true)
    target = np.where(is_nodule, (len(true) + 1) / (len(true) + 2), 1 / (len(false) + 2))

    def likelihood(temperature, shift):
        scaled = (odds + shift) / temperature
        return (target * scaled - np.logaddexp(0, scaled)).sum()

    best = likelihood(fitted["temperature"], fitted["shift"])
    for temperature in np.geomspace(*TEMPERATURES, 40):
        for shift in np.linspace(*SHIFTS, 40):
            assert likelihood(temperature, shift) <= best + 1e-4


def draw_both(weight, count=40_000, seed=0):
    """Return outputs of a classifier, means of a segmentation, and classes that both decide."""
    rng = np.random.default_rng(seed)
    probability, means = expit(rng.normal(0, 4, count)), expit(rng.normal(0, 1.5, count))
    return probability, means, rng.random(count) < expit((logit(probability) - 2.0) / 3.0 + weight * logit(means))


@pytest.mark.parametrize("weight", [0.0, 0.6, 2.0])
def test_the_weight_of_the_segmentation_is_found(weight):
    fitted = fit_calibration(*draw_both(weight))
    assert fitted["segmentation_weight"] == pytest.approx(weight, abs=0.08)
    assert fitted["temperature"] == pytest.approx(3.0, rel=0.1)
    assert fitted["shift"] == pytest.approx(-2.0, abs=0.3)
    assert fitted["ece_after"] < 0.01


def test_both_networks_rank_better_than_each():
    probability, means, is_nodule = draw_both(1.5)
    unseen = draw_both(1.5, seed=1)
    fitted = fit_calibration(probability, means, is_nodule)
    both = measure_auc(calibrate(unseen[0], unseen[1], fitted), unseen[2])
    assert both > max(measure_auc(unseen[0], unseen[2]), measure_auc(unseen[1], unseen[2])) + 0.02


def measure_auc(score, is_nodule):
    rank = score.argsort().argsort()
    true, false = int(is_nodule.sum()), int((~is_nodule).sum())
    return (rank[is_nodule].sum() - true * (true - 1) / 2) / (true * false)


@pytest.mark.parametrize("missing", [slice(None), slice(1)])
def test_a_table_with_a_missing_mean_gives_no_weight(missing):
    probability, means, is_nodule = draw_both(1.5, count=500)
    means[missing] = np.nan
    fitted = fit_calibration(probability, means, is_nodule)
    assert fitted["segmentation_weight"] == 0
    two = fit(probability[is_nodule], probability[~is_nodule])
    assert fitted["temperature"] == pytest.approx(two["temperature"])


def test_with_the_largest_weight_probabilities_stay_below_1_and_apart():
    numbers = make(WEIGHTED_TEMPERATURES[0], SHIFTS[1], segmentation_weight=WEIGHTS[1])
    raw = np.float32(1) - np.float32(2.0**-24) * np.arange(3, 0, -1, dtype=np.float32)
    after = calibrate(raw, np.ones(3), numbers)
    assert (np.diff(after) > 0).all()
    assert after[-1] < 1


def test_classes_without_overlap_have_finite_numbers():
    fitted = fit(np.linspace(0.6, 1.0, 30), np.linspace(0.0, 0.4, 30))
    assert TEMPERATURES[0] <= fitted["temperature"] <= TEMPERATURES[1]
    assert SHIFTS[0] <= fitted["shift"] <= SHIFTS[1]
    assert np.isfinite([fitted["ece_before"], fitted["ece_after"]]).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_no_two_probabilities_become_equal_or_change_places(temperature, shift):
    one = np.float32(1)
    near = [one - np.float32(2.0**-24) * np.arange(5000, 0, -1, dtype=np.float32)]
    near += [np.float32(0.5) + np.float32(2.0**-25) * np.arange(-2000, 2000, dtype=np.float32)]
    near += [np.arange(1, 2000, dtype=np.int32).view(np.float32), np.float32([0, 1])]
    near += [np.random.default_rng(0).random(5000, dtype=np.float32)]
    raw = np.unique(np.concatenate(near).astype(np.float32))
    after = calibrate(raw, np.full(len(raw), np.nan), make(temperature, shift))
    assert (np.diff(after) > 0).all()
    assert (after[0], after[-1]) == (0.0, 1.0)
    assert after.dtype == np.float64
    inside = (raw > 1e-6) & (raw < 1 - 1e-6)
    expected = expit((logit(raw[inside].astype(np.float64)) + shift) / temperature)
    np.testing.assert_allclose(after[inside], expected, rtol=1e-9)


def test_the_calibration_error_is_that_of_a_sum_by_hand():
    probability = np.array([0.05, 0.09, 0.55, 0.5, 1.0])
    curve = measure_reliability(probability, np.array([False, True, True, True, True]))
    assert [one["candidates"] for one in curve] == [2, 2, 1]
    assert curve[0] == {"mean_probability": pytest.approx(0.07), "share_of_nodules": 0.5, "candidates": 2}
    assert calibration_error(curve) == pytest.approx((2 * 0.43 + 2 * 0.475 + 0) / 5)
    assert len(measure_reliability(np.linspace(0, 1, 1000), np.ones(1000, bool))) == BINS


@pytest.mark.parametrize(("true", "false"), [(FEWEST - 1, 500), (500, FEWEST - 1), (0, 0)])
def test_few_candidates_give_no_calibration_and_their_numbers(true, false):
    fitted = fit(np.full(true, 0.9), np.full(false, 0.1))
    assert isinstance(fitted, NotCalibrated)
    (line,) = describe_calibration(fitted)
    assert f"no calibration: {true} candidates in nodules and {false} elsewhere; {FEWEST} of each are needed" in line
    assert not isinstance(fit(np.full(FEWEST, 0.9), np.full(FEWEST, 0.1)), NotCalibrated)


def test_infer_calibrates_the_probability_and_says_so(models, scans, tmp_path):  # noqa: F811
    calibrated = write_classifier(
        tmp_path / "c.onnx", malignancy=True, card={**CROP_CARD, "calibration": make(2.0, -1.5)}
    )
    run(models, scans, tmp_path / "raw")
    run((models[0], calibrated), scans, tmp_path / "calibrated")
    raw, after = (read_rows(tmp_path / name / "candidates.csv") for name in ("raw", "calibrated"))
    assert len(raw) > 3
    expected = calibrate([float(row["probability"]) for row in raw], np.full(len(raw), 0.5), make(2.0, -1.5))
    np.testing.assert_allclose([float(row["probability"]) for row in after], expected, rtol=1e-12)
    keep = ("seriesuid", "coordX", "coordY", "coordZ", "malignancy")
    assert [[row[name] for name in keep] for row in raw] == [[row[name] for name in keep] for row in after]
    documents = [json.loads((tmp_path / name / "candidates.json").read_text()) for name in ("raw", "calibrated")]
    stated = [{json.dumps(scan["calibration"]) for scan in document["scans"]} for document in documents]
    assert stated == [{"null"}, {'{"temperature": 2.0, "shift": -1.5, "segmentation_weight": 0.0}'}]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store with candidates enough."""
    return make_crop_store(tmp_path_factory.mktemp("store"), cases=10)


def test_tune_calibrates_and_its_thresholds_are_those_of_calibrated_probabilities(many, tmp_path):
    path = write_classifier(tmp_path / "c.onnx", bias=-200.0)
    split = tmp_path / "split.json"
    first, *others = open_store(many).case_ids
    write_split(split, Split(train=(first, *others[1:]), validation=(others[0],)))

    def tune(path, *options):
        words = ["tune", str(path), str(many), "--provider", "cpu", "--json", *options]
        result = CliRunner().invoke(commands(), words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout[result.stdout.index("{") :]), result.stderr

    document, text = tune(path)
    card = open_classifier(path, "cpu").card
    assert card.calibration == document["calibration"]
    assert card.calibration["in_nodules"] >= FEWEST <= card.calibration["elsewhere"]
    assert "expected calibration error" in text
    assert "calibration" in "\n".join(describe(summarize(path)))
    again, _ = tune(path)
    assert again == document, "the network's output is calibrated, not what was calibrated before"
    judged = [judge_case(open_classifier(path, "cpu"), case) for case in open_store(many).values()]
    false = np.sort(np.concatenate([rank_case(case, card.calibration).false for case in judged]))
    for rate in (1, 4):
        allowed = rate * len(judged)
        assert card.thresholds[str(rate)] == (np.nextafter(false[-allowed - 1], 2.0) if len(false) > allowed else 0.0)
    few, text = tune(path, "--split", str(split))
    assert few["calibration"] is None
    assert "no calibration: " in text
    assert open_classifier(path, "cpu").card.calibration is None, "thresholds are those of the output again"


@pytest.mark.parametrize(
    "damage",
    [{"temperature": 0.0}, {"temperature": "hot"}, {"shift": None}, {"ece_after": 2.0}, {"segmentation_weight": -1.0}],
)
def test_a_damaged_calibration_is_refused(damage):
    text = json.dumps({**CROP_CARD, "calibration": {**make(1.0, 0.0), **damage}})
    with pytest.raises(ModelError, match="calibration"):
        decode_crop_metadata(text, "c.onnx")
