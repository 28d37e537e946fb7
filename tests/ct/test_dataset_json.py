"""`dataset.json` of Decathlon and nnU-Net: read, or refused by what it means."""

import json

import pytest

from slicemill.common.errors import LabelError
from slicemill.ct.dataset_json import read_dataset_description, read_dataset_json
from slicemill.ct.labels import IGNORE


def write(tmp_path, labels, **further):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels, **further}))
    return path


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"0": "background", "1": "liver", "2": "tumor"}, {"liver": 1, "tumor": 2}),
        ({"background": 0, "liver": 1, "tumor": 2}, {"liver": 1, "tumor": 2}),
        ({"background": "0", "liver": "1", "tumor": " 2 "}, {"liver": 1, "tumor": 2}),
        ({"background": 0, "whole liver": [1, 2], "tumor": [2]}, {"whole liver": 1, "tumor": 2}),
        ({"background": 0, "whole liver": ["1", "2"], "tumor": 2}, {"whole liver": 1, "tumor": 2}),
        ({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, {"whole": 1, "core": 2, "enhancing": 3}),
        ({"all": [1, 2], "liver": 1, "tumor": 2}, {"liver": 1, "tumor": 2}),
        ({"left": [1, 2], "cyst": 2, "right": [3, 4], "stone": 4}, {"left": 1, "cyst": 2, "right": 3, "stone": 4}),
    ],
    ids=["Decathlon", "nnU-Net", "quoted", "region", "quoted region", "chain", "union", "two regions"],
)
def test_labels_are_read_in_all_forms(labels, values, tmp_path):
    assert dict(read_dataset_json(write(tmp_path, labels)).values) == values


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": [1, 2], "b": [2, 3]}, "the regions 'a' and 'b' overlap without one containing the other"),
        ({"whole": [1, 2, 3], "tumor": [3]}, r"'whole' has several values that have no name of their own: \[1, 2\]"),
        ({"a": [1], "b": 1}, "two names share the values"),
        ({"0": "background", "1": "a", "2": "a"}, "two values share one name"),
        ({"background": 1, "liver": 2}, "'background' must have the value 0"),
        ({"liver": "one"}, "'liver': 'one' is not a label value"),
        ({"liver": []}, "'liver'.*is not a label value"),
        ({"liver": True}, "'liver': True is not a label value"),
        ({"liver": 300}, "liver=300"),
        (["liver"], "labels must be an object"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_what_it_means(labels, message, tmp_path):
    with pytest.raises(LabelError, match=rf"dataset\.json: .*{message}.*pass --labels"):
        read_dataset_json(write(tmp_path, labels))


def test_a_byte_order_mark_is_read_and_a_key_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"labels": {"liver": 1}}')
    assert dict(read_dataset_json(path).values) == {"liver": 1}
    path.write_text('{"labels": {"liver": 1, "liver": 2}}')
    with pytest.raises(LabelError, match="the key 'liver' occurs twice"):
        read_dataset_json(path)


def test_regions_are_noted_and_plain_labels_are_not(tmp_path):
    described = read_dataset_description(write(tmp_path, {"all": [1, 2], "liver": 1, "tumor": 2}))
    assert "regions are stored as plain labels" in described.notes[0]
    assert "all only joins others" in described.notes[0]
    assert read_dataset_description(write(tmp_path, {"liver": 1})).notes == ()


def test_the_label_ignore_is_neither_organ_nor_tumor(tmp_path):
    labels = read_dataset_json(write(tmp_path, {"background": 0, "liver": 1, "tumor": 2, "ignore": 3}))
    assert (labels.organ, labels.tumor, labels.values[IGNORE]) == ("liver", "tumor", 3)


def test_channels_are_in_order_of_their_numbers(tmp_path):
    assert read_dataset_description(write(tmp_path, {}, modality={"1": "PET", "0": "CT"})).channels == ("CT", "PET")
    assert read_dataset_description(write(tmp_path, {}, channel_names={"0": "CT"})).channels == ("CT",)
    assert read_dataset_description(write(tmp_path, {})).channels == ()
