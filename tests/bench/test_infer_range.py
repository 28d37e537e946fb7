"""The comparison of the organ's range with all slices runs, is checked for equal masks, and ends in a table."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from slicemill.bench.harness.networks import MARKED, HuSampler, export_graph
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages import infer_range
from slicemill.ct.phantom_canvas import PhantomSpec
from slicemill.infer.network.model import open_model
from tests.infer.networks import write_model


def test_an_engine_that_is_not_installed_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    engines, not_run = infer_range.open_engines(write_model(tmp_path / "m.onnx", {"liver": 1}))
    assert engines == {}
    assert set(not_run) == set(infer_range.OPENVINO.values())
    assert all("the package is not installed" in reason for reason in not_run.values())


@pytest.mark.slow
def test_a_row_compares_the_masks_of_all_contenders(tmp_path):
    config = replace(MARKED, context=1)
    path = export_graph(tmp_path / "m.onnx", HuSampler(config).eval(), config, 64)
    spec = PhantomSpec(seed=0, shape=(60, 64, 64), height_mm=590.0, middle_mm=40.0, trunk=True)
    scans = infer_range.write_scans(tmp_path / "trunk", spec)
    model, log = open_model(path, "cpu"), []
    row = infer_range.measure_row(model, {"another": open_model(path, "cpu")}, scans, 1, log.append)
    assert (row.slices, row.equal) == (120, True)
    assert row.labeled < 0.75 * row.slices
    assert row.engines["another"].labels_differing == 0
    assert len(log) == 2 * 4, "a warm-up and a round of range, all, network and the other engine"
    values, counts = np.unique(scans.masks(infer_range.ALL), return_counts=True)
    assert set(values) == {0, 1, 2}
    assert counts.sum() == 120 * 64 * 64


@pytest.mark.slow
def test_both_kinds_of_scans_are_measured(tmp_path, monkeypatch):
    same = "another engine"  # OpenVINO would keep threads and memory in this process
    monkeypatch.setattr(
        infer_range, "open_engines", lambda path: ({same: open_model(path, "cpu")}, {"OpenVINO, bfloat16": "a reason"})
    )
    record = infer_range.run(tmp_path, slices=60, rounds=1, size=64)
    trunk, abdomen = record["rows"]["trunk"], record["rows"]["abdomen"]
    assert record["unit"] == "slices of 64x64"
    assert trunk["slices"] == 120
    assert trunk["labeled"] < 0.75 * trunk["slices"]
    assert trunk["liver_share"] < abdomen["liver_share"]
    assert all(row["equal"] for row in record["rows"].values())
    assert trunk["engines"][same]["labels_differing"] == 0
    assert abdomen["engines"] == {}
    shown = format_record(record)
    assert "| trunk |" in shown
    assert "OpenVINO, bfloat16: not run (a reason)" in shown
