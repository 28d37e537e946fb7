"""Measured growth of cost, and the estimated cost of a collection."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.records.plan import (
    KNOWN,
    OBJECTS,
    Collection,
    Inputs,
    estimate_cost,
    measured_over_model,
    read_inputs,
    worker_pace,
)
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages.scaling import fit
from slicemill.common.errors import ConfigError
from slicemill.store.reader import open_store

RESULTS = Path(__file__).parents[2] / "bench" / "results"
INPUTS = Inputs(
    slice_seconds=0.004,
    scan_seconds=0.1,
    share=1.0,
    task_seconds=0.0,
    slice_bytes=200_000,
    reads_per_second=2000,
    labelled_per_second=10,
    cores=2,
)


def test_a_fit_is_that_of_numpy(rng):
    xs, ys = rng.random(20), rng.random(20)
    line = fit(xs, ys)
    slope, start = np.polyfit(xs, ys, 1)
    assert (line.slope, line.start) == (pytest.approx(slope, abs=1e-9), pytest.approx(start, abs=1e-6))
    assert line.r2 == pytest.approx(np.corrcoef(xs, ys)[0, 1] ** 2, abs=1e-5)
    assert fit([1, 2, 3], [5, 5, 5]).r2 == 1


def test_cost_is_in_proportion_to_slices_and_workers():
    small, large = (Collection(name="", scans=100 * times, slices=30_000 * times) for times in (1, 10))
    one = estimate_cost(small, INPUTS, 4)
    assert one.ingest_hours == pytest.approx((30_000 * 0.004 + 100 * 0.1) / 4 / 3600)
    assert estimate_cost(large, INPUTS, 4).ingest_hours == pytest.approx(10 * one.ingest_hours)
    assert estimate_cost(small, INPUTS, 8).ingest_hours == pytest.approx(one.ingest_hours / 2)
    assert estimate_cost(small, INPUTS, 200).ingest_hours == estimate_cost(small, INPUTS, 100).ingest_hours
    assert one.store_gb == pytest.approx(6.0)
    assert one.infer_hours == pytest.approx(30_000 / (2 * 10 * 3600))
    assert (one.objects, one.epoch_requests) == (700, 60_000)


def test_a_case_has_the_documented_number_of_objects(stored):
    case = open_store(stored)["volume-1"]
    assert case.label is not None
    assert len([path for path in (stored / "scans.zarr" / "volume-1").rglob("*") if path.is_file()]) == OBJECTS


def test_the_collections_have_the_sizes_of_their_names():
    lits, terabyte, trial = KNOWN
    assert lits.slices * 512 * 512 * 3 == pytest.approx(46.1e9, rel=0.01)
    assert terabyte.slices * 512 * 512 * 3 == pytest.approx(1e12, rel=1e-3)
    assert trial.scans == 126_000


@pytest.mark.slow
def test_scale_is_measured_and_a_plan_follows_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr("slicemill.bench.stages.scaling.LENGTHS", {True: (1, 300, 900)})
    monkeypatch.setattr("slicemill.bench.stages.scaling.CASES", {True: (1, 3)})
    monkeypatch.setattr("slicemill.bench.stages.scaling.TASKS", {True: 200})
    monkeypatch.setattr("slicemill.bench.stages.scaling.FILES", {True: (20, 3000)})
    monkeypatch.setattr("slicemill.bench.stages.scaling.MANY", {True: (3, 9)})
    phantom_subject(6, size=64).write(tmp_path / "scans", ".nii")
    words = ["scale", "--quick", "--json", str(tmp_path / "scale.json"), "--picture", str(tmp_path / "s.png")]
    done = CliRunner().invoke(bench, [*words, "--data", str(tmp_path / "scans")])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "scale.json").read_text())
    assert record["slices"]["measured"]["900"]["cpu_seconds"] > record["slices"]["measured"]["1"]["cpu_seconds"]
    assert record["slices"]["cpu_seconds"]["slope"] > 0
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert "ms a slice" in format_record(record)
    assert "µs a file" in format_record(record)
    assert record["files"]["seconds"]["slope"] > 0
    assert set(record["growth"]) == {"store opened", "ledger skipped", "cases evaluated", "cases measured"}
    assert "ms a case" in format_record(record)
    assert "a case" not in format_record({key: value for key, value in record.items() if key != "growth"})
    assert "a file" not in format_record({key: value for key, value in record.items() if key != "files"})
    with pytest.raises(ConfigError, match="nearly all start-up"):
        worker_pace({"1": 3.1, "2": 3.05}, 3.0)
    assert worker_pace({"1": 7.0, "2": 5.5}, 3.0) == 0.8
    start = record["cases"]["seconds"]["start"]
    record["workers"] = {"1": start + 4.0, "2": start + 2.5}  # three small scans cannot show it
    (tmp_path / "scale.json").write_text(json.dumps(record))
    store = json.loads((RESULTS / "store.json").read_text())
    store["bytes"]["compact"], store["slices"] = 3000, 10
    lits = json.loads((RESULTS / "lits.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(store))
    (tmp_path / "lits.json").write_text(json.dumps(lits))
    files = [f"--{name}={tmp_path / name}.json" for name in ("scale", "store", "lits")]
    done = CliRunner().invoke(bench, ["plan", *files])
    assert done.exit_code == 0, done.output
    assert "National Lung Screening Trial" in done.output
    assert "of the estimated time" in done.output
    inputs = read_inputs(record, store, None)
    assert inputs.slice_bytes == 300
    assert measured_over_model(inputs, {**lits, "seconds": 0.0}) == 0
    with pytest.raises(ConfigError, match="bench scale is needed"):
        read_inputs(store, store, None)
    assert CliRunner().invoke(bench, ["plan", *files, "--scans", "3"]).exit_code == 2
