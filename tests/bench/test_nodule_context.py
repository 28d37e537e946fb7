"""The study of context: what is trained and scored, the difference of two networks, and its table."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.records.readme import KINDS, format_record
from slicemill.bench.schema.base import read_record
from slicemill.bench.studies import nodule_context
from slicemill.bench.studies.nodule_context import ContextStudy, score_candidates
from slicemill.common.errors import ConfigError, UsageError
from slicemill.measure.evaluation.findings import Findings
from slicemill.measure.evaluation.froc import ScanHits, compare_cpm
from slicemill.store.reader import open_store
from slicemill.store.split import Split, write_split
from slicemill.train.config import Config, read_config
from tests.train.crop_store import make_crop_store


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A store of four scans, their folder, and a split with two test cases."""
    root = tmp_path_factory.mktemp("study")
    store = make_crop_store(root, cases=4)
    first, second, *tested = open_store(store).case_ids
    write_split(root / "split.json", Split(train=(first,), validation=(second,), test=tuple(tested)))
    return store, root / "lungs", root / "split.json"


def answer(study_out, commands):
    """Return a stand-in for the commands: with seven slices, every nodule is found; with one, a third as many."""

    def run(_self, words, _log):
        words = [str(word) for word in words]
        commands.append(words)
        if words[0] != "infer":
            return
        found = study_out / f"{words[1].rsplit('/', 1)[1].removesuffix('.onnx')}-found"
        found.mkdir()
        lines = ["seriesuid,coordX,coordY,coordZ,probability"]
        store = open_store(study_out.parent / "store")
        for case_id in read_split_test(study_out.parent / "split.json"):
            nodules = [point.xyz_mm for point in store[case_id].points]
            chosen = nodules if "context-7" in words[1] else nodules[:1]
            lines += [f"{case_id},{x},{y},{z},0.9" for x, y, z in chosen]
            lines += [f"{case_id},{1000 + k},0,0,0.95" for k in range(0 if "context-7" in words[1] else 3)]
        (found / "candidates.csv").write_text("\n".join(lines) + "\n")

    return run


def read_split_test(path):
    return json.loads(path.read_text())["test"]


def test_only_the_context_differs_and_the_scores_are_of_the_test_cases(collection, monkeypatch, tmp_path):
    store, scans, split = collection
    out, commands = store.parent / "out", []
    monkeypatch.setattr(nodule_context.CommandRunner, "run_slicemill", answer(out, commands))
    settings = tmp_path / "settings.toml"
    settings.write_text("steps = 5\nepochs = 2\nwidth = 4\n")
    words = ["nodule-context", str(store), "--scans", str(scans), "--split", str(split), "--out", str(out),
             "--config", str(settings)]  # fmt: skip
    done = CliRunner().invoke(bench, words)
    assert done.exit_code == 0, done.output
    assert [command[0] for command in commands] == ["train", "export", "infer"] * 2
    seven, one = (read_config(out / f"context-{context}-seed-0.toml") for context in (7, 1))
    assert seven.replace(context=1) == one
    assert (seven.steps, seven.context_spacing_mm, seven.window_low) == (5, 2.5, -1000.0)
    infer = next(command for command in commands if command[0] == "infer")
    assert [word.rsplit("/", 1)[1] for word in infer if word.endswith(".mhd")] == [
        f"{case_id}.mhd" for case_id in read_split_test(split)
    ]
    record = read_record(KINDS["nodule-context"], json.loads((out / "nodule-context.json").read_text()))
    assert (record.scans, record.nodules, record.steps, record.width) == (2, 4, 10, 4)
    first, second = record.scores
    assert (first.cpm, first.found, first.false_alarms, first.over_first) == (1.0, 4, 0, None)
    assert (second.found, second.false_alarms) == (2, 6)
    assert second.over_first == pytest.approx(second.cpm - 1, abs=1e-4)
    low, high = second.over_first_interval
    assert low <= second.over_first <= high < 0
    table = format_record(record.as_json())
    assert "| 7 | 0 | 1.000 | - |" in table
    assert f"| 1 | 0 | {second.cpm:.3f} | {second.over_first:+.3f} [" in table


def test_all_candidates_are_counted_beyond_the_100_of_the_cpm():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.uniform(100, 900, (285, 3)), np.linspace(1, 0.1, 285)])
    rows[200, :3] = rows[220, :3] = 10, 10, 10
    rows[230, :3] = 50, 50, 50
    nodules = np.array([[10.0, 10, 10, 6], [30, 30, 30, 6]])
    findings = Findings(
        scans=("a", "b"), included={"a": nodules, "b": np.empty((0, 4))}, excluded={"a": np.array([[50.0, 50, 50, 6]])}
    )
    scored = score_candidates({"a": rows}, findings)
    assert (scored.found, scored.false_alarms) == (1, 285 - 3)
    assert (len(scored.hits[0].found), len(scored.hits[0].false)) == (0, 100)


def test_what_cannot_be_compared_is_refused(collection, tmp_path, monkeypatch):
    store, scans, split = collection
    base = {"store": store, "scans": scans, "split": split, "out": tmp_path / "out", "config": Config(steps=5)}
    for unequal in (Config(), Config(steps=5, max_minutes=1.0), Config(steps=5, patience=2)):
        with pytest.raises(UsageError, match="compared after equal steps"):
            ContextStudy(**base | {"config": unequal})
    for wrong in ({"contexts": (7,)}, {"contexts": (7, 7)}, {"contexts": (7, 2)}, {"seeds": ()}):
        with pytest.raises(UsageError):
            ContextStudy(**base | wrong)
    with pytest.raises(ConfigError, match="--scans must be the folder"):
        nodule_context.run(ContextStudy(**base | {"scans": tmp_path}))
    first, second, *_ = open_store(store).case_ids
    write_split(tmp_path / "split.json", Split(train=(first,), validation=(second,)))
    with pytest.raises(ConfigError, match="names no test cases"):
        nodule_context.run(ContextStudy(**base | {"split": tmp_path / "split.json"}))
    empty = SimpleNamespace(included={"a": np.empty((0, 4))})
    monkeypatch.setattr(nodule_context, "read_store_findings", lambda *_: empty)
    with pytest.raises(ConfigError, match="test cases have no nodule"):
        nodule_context.run(ContextStudy(**base))


def test_the_interval_of_a_difference_is_that_of_pairs():
    rng = np.random.default_rng(0)

    def draw(shift):
        return [
            ScanHits(found=tuple(scores[scores > 0.5]), missed=int((scores <= 0.5).sum()), false=tuple(rng.random(3)))
            for scores in (np.clip(base + shift, 0, 1) for base in bases)
        ]

    bases = [rng.random(4) for _ in range(60)]
    better, worse = draw(0.2), draw(0.0)
    ahead, behind = compare_cpm(better, worse), compare_cpm(worse, better)
    assert ahead.difference == pytest.approx(-behind.difference)
    assert 0 < ahead.interval[0] < ahead.difference < ahead.interval[1]
    np.testing.assert_allclose(ahead.interval, [-behind.interval[1], -behind.interval[0]])
    patients = [f"p{number // 10}" for number in range(60)]
    by_patient = compare_cpm(better, worse, patients)
    assert by_patient.difference == ahead.difference
    assert by_patient.interval != ahead.interval
    same = compare_cpm(worse, worse)
    assert (same.difference, same.interval) == (0.0, (0.0, 0.0)), "pairs, so that scans that are hard do not count"


@pytest.mark.slow
def test_the_study_runs_and_goes_on(collection, tmp_path):
    store, scans, split = collection
    settings = tmp_path / "settings.toml"
    settings.write_text("steps = 2\nepochs = 1\nwidth = 2\ndepth = 2\ncrop = 32\nspacing_mm = 0.0\nmining = 0\n")
    out = tmp_path / "out"
    words = ["nodule-context", str(store), "--scans", str(scans), "--split", str(split), "--out", str(out),
             "--config", str(settings)]  # fmt: skip
    for _ in range(2):
        done = CliRunner().invoke(bench, words)
        assert done.exit_code == 0, done.output
    assert len(json.loads((out / "nodule-context.json").read_text())["scores"]) == 2
