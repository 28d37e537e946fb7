"""The metadata of a model of kind crops: what is written, and what is refused with its file, key and rule."""

import json

import pytest

from slicemill.common.errors import ModelError
from slicemill.store.crop_card import CropCard, decode_crop_metadata
from slicemill.store.model_card import ModelCard, decode_metadata

LEAST = {"kind": "crops", "contract": 1, "crop_mm": 48.0, "spacing_mm": 1.0, "window_hu": [-1000, 400]}


def decode(**changes):
    return decode_crop_metadata(json.dumps(LEAST | changes), "m.onnx")


def test_what_was_written_is_read_back():
    card = CropCard(
        window_hu=(-1000.0, 400.0),
        thresholds={"1": 0.8, "4": 0.6},
        segmentation_sha256="ab" * 32,
        parity={"crops": 64, "max_probability_difference": 1e-6, "limit": 1e-3},
        training={"epochs": 3, "validation": {"auc": 0.9}},
        license="none",
    )
    assert decode_crop_metadata(json.dumps(card.as_json()), "m.onnx") == card
    assert list(card.as_json())[:2] == ["kind", "contract"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"contract": 2}, "has contract 2 of kind crops; this version of slicemill supports 1"),
        ({"crop_mm": 32.0}, "takes crops of 32 mm with samples every 1 mm"),
        ({"spacing_mm": 0.5}, "samples every 0.5 mm"),
        ({"window_hu": [400, -1000]}, "must be below"),
        ({"window_hu": [400]}, "window_hu"),
        ({"thresholds": {"1": 1.5}}, "thresholds"),
        ({"thresholds": {"many": 0.5}}, "'many' is not a number of false alarms"),
        ({"thresholds": {"-1": 0.5}}, "'-1' is not a number of false alarms"),
        ({"segmentation_sha256": "../x"}, "segmentation_sha256"),
        ({"colour": "red"}, "the key `colour` is unknown"),
    ],
)
def test_metadata_that_do_not_fit_are_refused_by_file_and_rule(changes, reason):
    with pytest.raises(ModelError, match="m.onnx") as raised:
        decode(**changes)
    assert reason in str(raised.value)


def test_each_kind_refuses_the_other_in_one_line():
    card = ModelCard(labels={"tumor": 2}, tumor="tumor", context=1, input="int16", postprocess={})
    with pytest.raises(ModelError, match=r"m.onnx: segments slices; a classifier of candidates is needed") as raised:
        decode_crop_metadata(json.dumps(card.as_json()), "m.onnx")
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match=r"m.onnx: is of kind crops: it judges candidates") as raised:
        decode_metadata(json.dumps(LEAST), "m.onnx")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "7"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ModelError, match="m.onnx"):
        decode_crop_metadata(text, "m.onnx")
