"""Thresholds of a classifier: chosen on candidates, written into its file."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError
from slicemill.infer.network.classifier import open_classifier
from slicemill.infer.network.nodules import open_judge
from slicemill.infer.tune_classifier import (
    JudgedCase,
    choose_judged_cases,
    choose_threshold,
    judge_case,
    write_thresholds,
)
from slicemill.store.nodules_file import read_bundle, write_bundle
from slicemill.store.reader import open_store
from tests.infer.networks import write_classifier, write_lung_model
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
        JudgedCase(
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
    chosen = choose_threshold([JudgedCase(false=np.ones(9), nodules=np.array([1.0]))], 1)
    assert (chosen.threshold, chosen.false_alarms, chosen.detected) == (1.0, 9.0, 1)


@pytest.fixture(scope="module")
def crop_store(tmp_path_factory):
    return make_crop_store(tmp_path_factory.mktemp("store"), cases=2)


def test_nodules_and_false_alarms_are_those_of_the_store(crop_store, tmp_path):
    classifier = open_classifier(write_classifier(tmp_path / "c.onnx"), "cpu")
    judged = judge_case(classifier, next(iter(open_store(crop_store).values())))
    assert len(judged.nodules) == 2
    assert len(judged.false) == 6
    assert (judged.nodules > 0).all()


@pytest.mark.parametrize("bundled", [False, True])
def test_the_command_writes_thresholds_into_the_file(crop_store, tmp_path, bundled):
    path = write_classifier(tmp_path / "c.onnx", malignancy=True)
    if bundled:
        segmentation = write_lung_model(tmp_path / "lung.onnx")
        path = tmp_path / "lung.nodules"
        write_bundle(path, segmentation, tmp_path / "c.onnx")

    def reopen():
        return open_judge(path, None if bundled else path, "cpu")

    before = reopen()

    def tune(*options):
        words = ["tune", str(path), str(crop_store), "--provider", "cpu", "--json", *options]
        result = CliRunner().invoke(commands(), words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout[result.stdout.index("{") :])

    assert tune("--dry-run")["written"] == []
    assert reopen().sha256 == before.sha256
    document = tune()
    assert document["written"] == [str(path)]
    after = reopen()
    assert list(after.card.thresholds) == ["1", "4"]
    assert after.card.thresholds["1"] == document["thresholds"][0]["threshold"]
    crops = np.random.default_rng(0).integers(-900, 0, (3, 48, 48, 48)).astype(np.int16)
    np.testing.assert_array_equal(after.run(crops).nodule, before.run(crops).nodule)
    if bundled:
        assert read_bundle(path).segmentation == segmentation.read_bytes()
    write_thresholds(path, after, [])
    assert reopen().card.thresholds == {}


def test_a_store_without_candidates_is_refused(stored):
    with pytest.raises(ConfigError, match="has no case with candidates"):
        choose_judged_cases(open_store(stored), None)
