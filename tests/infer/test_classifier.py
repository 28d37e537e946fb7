"""Models of kind crops: opened, run in batches, and refused where they do not fit the contract."""

import json

import numpy as np
import pytest
from onnx import TensorProto

from slicemill.common.errors import ModelError
from slicemill.infer.network.classifier import BATCH, open_classifier
from slicemill.infer.network.model import open_model
from slicemill.info import describe, summarize
from tests.infer.networks import CROP_CARD, write_classifier


def make_crops(count):
    return np.random.default_rng(3).integers(-1000, 400, (count, 48, 48, 48)).astype(np.int16)


def test_probabilities_do_not_depend_on_the_batch(tmp_path):
    classifier = open_classifier(write_classifier(tmp_path / "cls.onnx", malignancy=True), "cpu")
    crops = make_crops(BATCH + 3)
    together = classifier.run(crops)
    assert together.nodule.shape == together.malignancy.shape == (BATCH + 3,)
    alone = [classifier.run(crops[index : index + 1]).nodule[0] for index in range(len(crops))]
    np.testing.assert_allclose(together.nodule, alone, atol=1e-6)
    middle = crops[:, 20:28, 20:28, 20:28].astype(np.float64).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(together.nodule, 1 / (1 + np.exp(-(middle + 400) / 100)), atol=1e-5)


def test_no_crops_have_no_probabilities(tmp_path):
    scores = open_classifier(write_classifier(tmp_path / "cls.onnx"), "cpu").run(make_crops(0))
    assert (len(scores.nodule), scores.malignancy) == (0, None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"side": 32}, "do not fit the contract: crop int16"),
        ({"kind": TensorProto.FLOAT}, "do not fit the contract"),
        ({"batch": 1}, "do not fit the contract"),
        ({"card": False}, "has no slicemill metadata"),
        ({"card": CROP_CARD | {"contract": 7}}, "has contract 7 of kind crops"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(tmp_path, settings, reason):
    with pytest.raises(ModelError, match=reason):
        open_classifier(write_classifier(tmp_path / "cls.onnx", **settings), "cpu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.onnx: cannot be read"):
        open_classifier(tmp_path / "none.onnx", "cpu")


def test_each_loader_refuses_the_other_kind(tmp_path, model):
    with pytest.raises(ModelError, match="segments slices; a classifier of candidates is needed"):
        open_classifier(model, "cpu")
    with pytest.raises(ModelError, match="is of kind crops: it judges candidates"):
        open_model(write_classifier(tmp_path / "cls.onnx"), "cpu")


def test_info_describes_a_classifier(tmp_path):
    card = CROP_CARD | {"thresholds": {"1": 0.75}, "training": {"epochs": 4, "validation": {"auc": 0.91}}}
    lines = describe(summarize(write_classifier(tmp_path / "cls.onnx", card=card)))
    text = "\n".join(lines)
    for part in ("judges candidates", "cubes of 48 mm", "0.750 for 1 false alarms a scan", "4 epochs; validation: auc"):
        assert part in text


def test_info_refuses_damaged_metadata_of_a_classifier(tmp_path):
    path = write_classifier(tmp_path / "cls.onnx", card=json.loads(json.dumps(CROP_CARD)) | {"window_hu": "wide"})
    with pytest.raises(ModelError, match="window_hu"):
        summarize(path)
