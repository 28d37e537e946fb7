"""Names of label values: parsed, read, refused, and turned into parts of file names."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import LabelError, UsageError
from slicemill.ct.dataset_json import read_dataset_json
from slicemill.ct.labels import LITS_LABELS, Labels, labels_from_json, make_labels, parse_labels


def test_tumor_is_found_by_its_name_and_organ_is_what_is_left():
    labels = make_labels({"pancreas": 1, "cancer": 2})
    assert (labels.organ, labels.tumor) == ("pancreas", "cancer")


@pytest.mark.slow
@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 255), max_size=6))
def test_parts_of_file_names_are_safe_and_no_two_are_one(values):
    labels = Labels({name: value for value, name in {value: name for name, value in values.items()}.items()})
    parts = labels.file_names()
    assert list(parts) == list(labels.values)
    assert len({part.casefold() for part in (*parts.values(), "background")}) == len(parts) + 1
    assert not [part for part in parts.values() if not part or set(part) & set("/\\: \0\n")]


def test_a_part_of_a_file_name_that_is_taken_gets_another_one():
    assert list(Labels({"a b": 2, "a_b_2": 3, "A_B_2": 4}).file_names().values()) == ["a_b_2_2", "a_b_2", "A_B_2_4"]


def test_three_labels_leave_the_organ_open():
    assert make_labels({"a": 1, "b": 2, "tumor": 3}).organ is None


def test_no_two_labels_share_a_file_name_and_none_leaves_its_folder():
    labels = Labels({"a b": 2, "a_b_2": 3, "../x": 4, "a/b": 5, "liver": 6})
    found = labels.file_names()
    assert list(found) == list(labels.values)
    assert (found["a_b_2"], found["liver"]) == ("a_b_2", "liver")
    assert len(set(found.values())) == 5
    assert not any("/" in name or " " in name for name in found.values())


@pytest.mark.parametrize(
    "text", ["liver", "liver=", "=1", "liver=x", "liver=1,liver=2", "liver=1,tumor=1", "liver=0", "liver=256"]
)
def test_labels_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError, match="label"):
        parse_labels(text)


def test_an_organ_that_is_no_label_is_refused():
    with pytest.raises(UsageError, match="--organ spleen: the labels are liver=1, tumor=2"):
        parse_labels("liver=1,tumor=2", organ="spleen")


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "liver", "2": "cancer"}, {"background": 0, "liver": 1, "cancer": 2}]
)
def test_both_forms_of_dataset_json_are_read(labels, tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    assert read_dataset_json(path) == Labels(values={"liver": 1, "cancer": 2}, organ="liver", tumor="cancer")


def test_a_broken_dataset_json_is_one_clear_error(tmp_path):
    (tmp_path / "dataset.json").write_text("[")
    with pytest.raises(LabelError, match="pass --labels"):
        read_dataset_json(tmp_path / "dataset.json")


def test_labels_survive_json():
    assert labels_from_json(json.loads(json.dumps(LITS_LABELS.as_json()))) == LITS_LABELS
