"""Thresholds and crops at the export of a classifier."""

import dataclasses

import numpy as np
import pytest

from slicemill.infer.calibration import fit_calibration
from slicemill.infer.tune_classifier import ChosenThreshold, ClassifierTuning, write_tuning
from slicemill.store.crop_card import CropCard, decode_crop_metadata
from slicemill.store.nodules_file import write_bundle
from slicemill.train.export.earlier import describe_thresholds, keep_thresholds, read_earlier_card
from tests.infer.networks import CROP_CARD, write_classifier

WEIGHTS, OTHER = "a" * 64, "b" * 64
FITTED = fit_calibration(
    np.append(np.linspace(0.3, 1, 20), np.linspace(0, 0.6, 20)), np.linspace(0.2, 0.9, 40), np.arange(40) < 20
)
CHOSEN = ClassifierTuning(
    calibration=FITTED,
    thresholds=(ChosenThreshold(rate=1, threshold=0.75, false_alarms=0.5, detected=3, nodules=4),),
)
TUNED = {"cases": 3, "part": "validation", "nodules": 4}


@pytest.fixture(params=["c.onnx", "lung.nodules"])
def tuned_file(request, tmp_path):
    """A classifier, alone and in a file of both models, with thresholds."""
    path = classifier = write_classifier(tmp_path / "c.onnx", card={**CROP_CARD, "weights_sha256": WEIGHTS})
    if request.param.endswith(".nodules"):
        path = tmp_path / request.param
        write_bundle(path, classifier, classifier)
    write_tuning(path, read_earlier_card(path), CHOSEN, TUNED)
    return path


def test_thresholds_of_the_replaced_file_are_kept_for_equal_weights_and_candidates(tuned_file):
    earlier = read_earlier_card(tuned_file)
    kept = keep_thresholds(earlier, WEIGHTS, None)
    assert (kept.thresholds, kept.tuned, kept.calibration) == ({"1": 0.75}, TUNED, FITTED)
    named = dataclasses.replace(earlier, segmentation_sha256=WEIGHTS)
    assert keep_thresholds(named, WEIGHTS, WEIGHTS).thresholds == {"1": 0.75}
    assert keep_thresholds(earlier, WEIGHTS, OTHER).thresholds == {"1": 0.75}
    for changed in (keep_thresholds(earlier, OTHER, None), keep_thresholds(named, WEIGHTS, OTHER)):
        assert (changed.thresholds, changed.tuned, changed.calibration) == ({}, None, None)


def test_dropped_thresholds_are_named(tuned_file):
    earlier = read_earlier_card(tuned_file)
    fresh = CropCard(window_hu=(-1000, 400))
    assert "those of the replaced file were of other weights" in describe_thresholds(tuned_file, earlier, fresh)
    assert "those of the replaced file, which" in describe_thresholds(tuned_file, earlier, earlier)
    line = describe_thresholds(tuned_file, None, fresh)
    assert line.startswith("thresholds: none; choose them with `slicemill tune")


def test_files_of_other_kinds_have_no_thresholds_to_keep(tmp_path):
    assert read_earlier_card(tmp_path / "absent.onnx") is None
    for name in ("text.onnx", "text.nodules"):
        (tmp_path / name).write_bytes(b"\xff no model")
        assert read_earlier_card(tmp_path / name) is None
    assert read_earlier_card(write_classifier(tmp_path / "bare.onnx", card=False)) is None


def test_the_metadata_name_the_cases_of_the_thresholds():
    card = CropCard(window_hu=(-1000, 400), thresholds={"1": 0.5}, tuned=TUNED)
    from slicemill.common.files import to_json

    assert decode_crop_metadata(to_json(card.as_json()), "c.onnx") == card
