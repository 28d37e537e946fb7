"""Comparisons of components, with equal results on a small volume, and of typed documents, both through commands."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.records.readme import KINDS, format_record
from slicemill.bench.schema.base import read_record
from slicemill.bench.stages import components
from slicemill.common.files import to_json


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(components, "SHAPE", (8, 48, 48))


def test_every_mask_is_compared_with_6_and_26_neighbors():
    record = components.run(rounds=1)
    assert {name: list(rows) for name, rows in record["masks"].items()} == {
        name: ["6", "26"] for name in ("tumors", "liver", "noise")
    }
    for rows in record["masks"].values():
        for row in rows.values():
            assert set(row["seconds"]) == {"runs", "cc3d", "cc3d, no sizes"}
            assert row["over runs"]["cc3d"]["cpu"] > 0
    assert format_record(record).count("| liver |") == 2


def test_components_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(components, "sizes_by_runs", lambda *_: np.ones(1))
    with pytest.raises(RuntimeError, match="6-connected components of runs are those of cc3d"):
        components.run(rounds=1)


def test_components_and_documents_are_commands_that_end_in_a_table_and_a_record(tmp_path):
    for name, words in (("components", "cc3d over runs"), ("documents", "| msgspec |")):
        path = tmp_path / f"{name}.json"
        done = CliRunner().invoke(bench, [name, "--rounds", "2", "--json", str(path)])
        assert done.exit_code == 0, done.output
        assert words in done.output
        record = json.loads(path.read_text())
        assert (record["benchmark"], record["rounds"]) == (name, 2)
        assert json.loads(to_json(read_record(KINDS[name], record).as_json())) == record
    assert record["added_ms"]["msgspec"] > 0


def test_sizes_of_runs_are_those_of_cc3d(rng):
    mask = rng.random((6, 20, 20)) < 0.3
    for connectivity in (6, 26):
        by_runs = components.sizes_by_runs(mask, connectivity)
        assert np.array_equal(np.sort(by_runs), np.sort(components.sizes_by_cc3d(mask, connectivity)))
