"""Thresholds of a classifier: chosen on candidates, written into its file."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError
from slicemill.ct.crops import cut_crop
from slicemill.ct.points import Point
from slicemill.infer.calibration import NotCalibrated
from slicemill.infer.network.classifier import open_classifier
from slicemill.infer.network.nodules import open_judge
from slicemill.infer.tune_classifier import (
    ClassifierTuning,
    RankedCase,
    choose_judged_cases,
    choose_threshold,
    judge_case,
    rank_case,
    write_tuning,
)
from slicemill.measure.evaluation.luna16 import find_hits
from slicemill.store.crop_card import CropCard
from slicemill.store.nodules_file import read_bundle, write_bundle
from slicemill.store.reader import open_store
from slicemill.store.split import Split, write_split
from slicemill.store.tables import points_sha256
from tests.infer.networks import CROP_CARD, write_classifier
from tests.train.crop_store import make_crop_store


def brute(judged, rate):
    """Return the best detection of any threshold with at most `rate` false alarms a scan."""
    false, nodules = (np.concatenate([getattr(case, name) for case in judged]) for name in ("false", "nodules"))
    tried = [0.0, *np.nextafter(np.concatenate([false, nodules]), 2), *false, *nodules]
    return max(int((nodules >= one).sum()) for one in tried if one >= 0 and (false >= one).sum() <= rate * len(judged))


@pytest.mark.parametrize("seed", range(8))
def test_a_threshold_detects_as_many_nodules_as_any_with_so_few_false_alarms(seed):
    rng = np.random.default_rng(seed)
    judged = [
        RankedCase(
            false=np.round(rng.random(rng.integers(0, 12)), 1),
            nodules=np.append(np.round(rng.random(rng.integers(0, 4)), 1), -1.0),
        )
        for _ in range(5)
    ]
    for rate in (1, 4):
        chosen = choose_threshold(judged, rate)
        assert chosen.false_alarms <= rate
        assert chosen.detected == brute(judged, rate)


def test_false_alarms_that_no_threshold_excludes_are_counted():
    chosen = choose_threshold([RankedCase(false=np.ones(9), nodules=np.array([1.0]))], 1)
    assert (chosen.threshold, chosen.false_alarms, chosen.detected) == (1.0, 9.0, 1)


@pytest.fixture(scope="module")
def crop_store(tmp_path_factory):
    return make_crop_store(tmp_path_factory.mktemp("store"), cases=2)


def test_nodules_and_false_alarms_are_those_of_the_store(crop_store, tmp_path):
    classifier = open_classifier(write_classifier(tmp_path / "c.onnx"), "cpu")
    judged = judge_case(classifier, next(iter(open_store(crop_store).values())))
    ranked, true = rank_case(judged, None), judged.probability[judged.is_nodule]
    assert len(ranked.nodules) == 2
    assert len(ranked.false) == 6
    assert len(true) >= 2
    assert ranked.nodules.max() == true.max()
    assert (ranked.nodules > 0).all()
    assert np.isnan(judged.means).all(), "the table has no mean of a segmentation"


def test_the_command_writes_thresholds_into_the_file(crop_store, tmp_path):
    path = write_classifier(tmp_path / "c.onnx", malignancy=True)
    before = open_classifier(path, "cpu")

    def tune(*options):
        words = ["tune", str(path), str(crop_store), "--provider", "cpu", "--json", *options]
        result = CliRunner().invoke(commands(), words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout[result.stdout.index("{") :])

    assert tune("--dry-run")["written"] == []
    assert open_classifier(path, "cpu").sha256 == before.sha256
    document = tune()
    after = open_classifier(path, "cpu")
    assert list(after.card.thresholds) == ["1", "4"]
    assert after.card.tuned == {"cases": 2, "part": "all", "nodules": 4}
    assert after.card.thresholds["1"] == document["thresholds"][0]["threshold"]
    assert after.card.sensitivity == {str(one["rate"]): one["detected"] / 4 for one in document["thresholds"]}
    crops = np.random.default_rng(0).integers(-900, 0, (3, 48, 48, 48)).astype(np.int16)
    np.testing.assert_array_equal(after.run(crops).nodule, before.run(crops).nodule)
    write_tuning(path, after.card, ClassifierTuning(calibration=NotCalibrated(reason=""), thresholds=()), None)
    assert open_classifier(path, "cpu").card.thresholds == {}


def test_a_file_of_both_models_gets_the_thresholds(crop_store, tmp_path):
    segmentation = tmp_path / "lung.onnx"
    segmentation.write_bytes(b"another model, which stays as it is")
    classifier, bundle = write_classifier(tmp_path / "c.onnx"), tmp_path / "lung.nodules"
    write_bundle(bundle, segmentation, classifier)
    for path in (bundle, classifier):
        result = CliRunner().invoke(commands(), ["tune", str(path), str(crop_store), "--provider", "cpu"])
        assert result.exit_code == 0, result.output
    card = open_classifier(classifier, "cpu").card
    assert card.thresholds
    assert open_judge(bundle, None, "cpu").card == card
    assert read_bundle(bundle).segmentation == segmentation.read_bytes()
    bundle.write_bytes(b"nothing")
    result = CliRunner().invoke(commands(), ["tune", str(bundle), str(crop_store), "--provider", "cpu"])
    assert result.exit_code
    assert "is not a file of two models" in f"{result.output} {result.exception}"


def test_the_store_of_the_training_needs_a_split(crop_store, tmp_path):
    store = open_store(crop_store)
    first, second = store.case_ids
    split = tmp_path / "split.json"
    write_split(split, Split(train=(first,), validation=(second,)))
    trained = {**CROP_CARD, "store_sha256": points_sha256(store)}
    path = write_classifier(tmp_path / "c.onnx", card=trained)
    words = ["tune", str(path), str(crop_store), "--provider", "cpu"]
    result = CliRunner().invoke(commands(), words)
    assert result.exit_code
    assert "Pass the split of its run" in " ".join(f"{result.output} {result.exception}".split())
    assert open_classifier(path, "cpu").card.thresholds == {}
    result = CliRunner().invoke(commands(), [*words, "--split", str(split)])
    assert result.exit_code == 0, result.output
    assert open_classifier(path, "cpu").card.tuned == {"cases": 1, "part": "validation", "nodules": 2}
    other = open_classifier(write_classifier(path, card={**trained, "store_sha256": "0" * 64}), "cpu")
    assert len(choose_judged_cases(store, None, other.card)) == 2


@pytest.mark.parametrize("seed", range(5))
def test_detections_and_false_alarms_are_those_of_froc(crop_store, tmp_path, seed):
    """Nodules and excluded findings that overlap, candidates closer than 2 mm, of both classes, some far away."""
    rng = np.random.default_rng(seed)
    real = next(iter(open_store(crop_store).values()))
    middle = real.affine[:3, :3] @ np.array([32.0, 30.0, 20.0]) + real.affine[:3, 3]
    points = [
        Point(
            id=str(number),
            kind="excluded" if number % 4 == 3 else "nodule",
            xyz_mm=tuple(middle + rng.normal(0, 5, 3)),
            diameter_mm=None if number == 1 else float(rng.uniform(6, 18)),
        )
        for number in range(8)
    ]
    places = middle + rng.normal(0, 6, (40, 3))
    places[20:] = places[:20] + rng.normal(0, 0.5, (20, 3))
    table = np.column_stack([places, rng.integers(0, 2, 40), np.arange(40) + 2, np.full(40, np.nan)])
    case = SimpleNamespace(candidates=table, points=points, image=real.image, affine=real.affine)
    classifier = open_classifier(write_classifier(tmp_path / "c.onnx"), "cpu")
    judged = rank_case(judge_case(classifier, case), None)
    volume = real.image[:]
    crops = np.stack([cut_crop(volume, real.affine, place) for place in places])
    scored = np.column_stack([places, classifier.run(crops).nodule])
    stacked = {
        kind: np.array([(*one.xyz_mm, one.diameter_mm or -1) for one in points if one.kind == kind])
        for kind in ("nodule", "excluded")
    }
    hits = find_hits(scored, stacked["nodule"], stacked["excluded"])
    found = judged.nodules[judged.nodules >= 0]
    assert len(judged.nodules) == len(hits.found) + hits.missed
    np.testing.assert_allclose(found, hits.found, rtol=1e-5)
    np.testing.assert_allclose(judged.false, hits.false, rtol=1e-5)
    assert len(hits.false) > 3
    assert len(found) > 2


def test_a_store_without_candidates_is_refused(stored):
    with pytest.raises(ConfigError, match="has no case with candidates"):
        choose_judged_cases(open_store(stored), None, CropCard(window_hu=(-1000, 400)))
