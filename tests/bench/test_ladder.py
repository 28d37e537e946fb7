"""The picture of the ladder: only rungs that a record measured, and the names of the others."""

import json
from pathlib import Path

import pytest
from PIL import Image

from slicemill.bench.records.ladder import (
    NETWORK_RECORDS,
    Ladder,
    draw_ladder,
    ladder_of_network,
    ladder_of_range,
    read_ladders,
)
from tests.bench.made_up import range_record

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_the_rungs_of_a_range_are_its_ratios_of_cpu_time_in_order():
    record = range_record(engines={"OpenVINO, float32": 3.3}, not_run={"OpenVINO, bfloat16": "no such processor"})
    ladder = ladder_of_range(record)
    assert list(ladder.speedups.items()) == [
        ("all slices", 1.0),
        ("organ's range", 3.0),
        ("organ's range, OpenVINO, float32", 3.3),
    ]
    assert ladder.left_out == {"OpenVINO, bfloat16": "no such processor"}
    assert "liver in 0.27 of the slices" in ladder.title


def test_an_engine_that_was_not_run_is_no_rung():
    assert list(ladder_of_range(range_record()).speedups) == ["all slices", "organ's range"]


@pytest.mark.parametrize("name", NETWORK_RECORDS)
def test_the_rungs_of_the_bare_network_are_those_of_the_committed_records(name):
    document = json.loads((RESULTS / f"{name}.json").read_text())
    number_format = {"f32": "float32", "bf16": "bfloat16"}[document["precision"]]
    key = "over onnxruntime fp32"
    expected = document.get(f"{key}, CPU time", document[key])
    assert ladder_of_network(document).speedups == {"onnxruntime, float32": 1.0, f"OpenVINO, {number_format}": expected}


def test_a_record_that_is_missing_is_named_and_the_others_are_shown(tmp_path):
    (tmp_path / "openvino.json").write_text((RESULTS / "openvino.json").read_text())
    (ladder,) = read_ladders(tmp_path)
    assert list(ladder.speedups) == ["onnxruntime, float32", "OpenVINO, bfloat16"]
    assert ladder.left_out == dict.fromkeys(
        ["infer-range.json", "openvino-avx2.json", "openvino-avx512.json"], "no such record"
    )


def test_the_committed_picture_is_there():
    with Image.open(RESULTS / "ladder.png") as picture:
        assert picture.size[0] == 990


def test_the_picture_has_a_bar_a_rung_and_names_what_is_left_out(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars, labels = [], []
    barh, set_xlabel = Axes.barh, Axes.set_xlabel
    monkeypatch.setattr(Axes, "barh", lambda self, *args, **more: bars.append(args) or barh(self, *args, **more))
    monkeypatch.setattr(
        Axes, "set_xlabel", lambda self, *args, **more: labels.append(args) or set_xlabel(self, *args, **more)
    )
    ladders = [
        Ladder(title="one", speedups={"all": 1.0, "range": 2.5}, left_out={"bfloat16": "no such processor"}),
        Ladder(title="two", speedups={"a": 1.0, "b": 2.0}),
    ]
    draw_ladder(tmp_path / "ladder.png", ladders)
    assert bars == [(["all", "range"], [1.0, 2.5]), (["a", "b"], [1.0, 2.0])]
    assert labels == [("not measured: bfloat16 (no such processor)",), ("",)]
    with Image.open(tmp_path / "ladder.png") as picture:
        assert picture.size[0] == 990
