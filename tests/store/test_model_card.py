"""The metadata of a model file: what is written, and what is refused with its file, key and rule."""

import json

import pytest

from slicemill.common.errors import ModelError
from slicemill.store.model_card import SUFFIXES, ModelCard, PostprocessRules, decode_metadata, network_name

LEAST = {"contract": 1, "input": "int16", "context": 3, "labels": {"liver": 1}, "postprocess": {}}


def decode(**changes):
    return decode_metadata(json.dumps(LEAST | changes), "m.onnx")


def test_metadata_without_a_value_are_left_out_but_for_those_that_are_always_there():
    card = ModelCard(labels={"tumor": 2}, tumor="tumor", context=1, input="bytes", precision="fp16", postprocess={})
    assert json.dumps(card.as_json()) == (
        '{"contract": 1, "labels": {"tumor": 2}, "organ": null, "tumor": "tumor", "context": 1, '
        '"context_spacing_mm": null, "spacing_mm": null, "input": "bytes", "precision": "fp16", "postprocess": {}}'
    )


def test_what_was_written_is_read_back():
    card = ModelCard(
        labels={"liver": 1, "tumor": 2},
        organ="liver",
        tumor="tumor",
        window_hu=(-200.0, 300.0),
        context=5,
        context_spacing_mm=2.5,
        input="int16",
        precision="fp32",
        postprocess={"largest_organ": True, "min_lesion_ml": 0.5},
        training={"epochs": 2, "minutes": 1.5, "best_epoch": 1, "validation": {"validation_dice": 0.5}},
        tuned={
            "cases": 1,
            "before": {"organ_dice": 0.5, "tumor_dice": None},
            "chosen": {"organ_dice": 1.0, "tumor_dice": None},
        },
    )
    read = decode_metadata(json.dumps(card.as_json()), "m.onnx")
    assert read == card
    assert read.rules == PostprocessRules(largest_organ=True, min_lesion_ml=0.5)


def test_a_key_of_a_later_version_is_refused_by_name():
    with pytest.raises(ModelError, match=r"m\.onnx: .*the key `later` is unknown"):
        decode(later="key")


def test_a_model_needs_five_keys():
    card = decode()
    assert (card.label_set.table().tolist(), card.rules, card.training) == ([0, 1], PostprocessRules(), None)
    for key in LEAST:
        with pytest.raises(ModelError, match="m.onnx: "):
            decode_metadata(json.dumps({name: value for name, value in LEAST.items() if name != key}), "m.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contract": 2}, "has contract 2, input int16; this version of slicemill supports contract 1"),
        ({"input": ["int16"]}, r"has contract 1, input \['int16'\]"),
        ({"context": "3"}, r"incomplete or damaged; export it again: Expected `int`, got `str` - at `\$.context`"),
        ({"spacing_mm": 0}, r"incomplete or damaged; .* - at `\$.spacing_mm`"),
        ({"labels": {"liver": 300}}, "label liver=300: a label value must be between 1 and 255"),
        ({"postprocess": {"smooth": 1}}, r"its post-processing has rules that this version does not know \(smooth\)"),
        ({"postprocess": {"min_lesion_ml": "much"}}, r".*post-processing rules are invalid: .* at `\$.min_lesion_ml`"),
        ({"unknown": 1}, "the value of `unknown` is 1, which is also the value of a label"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_named_by_file_key_and_rule(changes, message):
    with pytest.raises(ModelError, match=f"^m.onnx: {message}|^m.onnx: its slicemill metadata are {message}"):
        decode(**changes)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ModelError, match="^m.onnx: .*[Ee]xport it again"):
        decode_metadata(text, "m.onnx")


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_all_flavors_share_the_name_of_their_network(suffix, tmp_path):
    assert network_name(tmp_path / f"liver{suffix}") == "liver"
