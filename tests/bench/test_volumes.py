"""Readers of MetaImage and NRRD compared: equal voxels on a small scan, and a table and a record by the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.harness import subject
from slicemill.bench.records.readme import KINDS
from slicemill.bench.schema.base import read_record
from slicemill.bench.stages import volumes
from slicemill.common.files import to_json


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(subject, "SIZE", 48)


def test_the_command_ends_in_a_table_and_a_record(tmp_path):
    path = tmp_path / "volumes.json"
    done = CliRunner().invoke(bench, ["volumes", "--rounds", "2", "--slices", "8", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert "ours, times as fast as SimpleITK" in done.output
    assert "| .mhd with .zraw |" in done.output
    record = json.loads(path.read_text())
    assert json.loads(to_json(read_record(KINDS["volumes"], record).as_json())) == record
    assert set(record["formats"]) == {case.name for case in volumes.CASES}
    assert set(record["formats"][".nrrd, gzip"]["ours over"]) == {"SimpleITK", "pynrrd"}


def test_readers_that_differ_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(volumes, "read_simpleitk", lambda _: np.zeros(1))
    with pytest.raises(RuntimeError, match=r"SimpleITK reads the voxels of .mhd with .zraw"):
        volumes.run(tmp_path, subject.phantom_subject(8, size=48), rounds=1)
