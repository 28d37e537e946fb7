"""Instruction counts of the hot loops: the output of the tools is parsed correctly, and the loops do their work."""

import json
import shutil
import stat
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.records.compare import compare
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages import instructions
from slicemill.bench.stages.instructions import LOOPS, choose_counter, count_instructions
from slicemill.common.errors import ConfigError


def tool(folder, name, text, status=0):
    """Write a program of this name into `folder` that prints a text on stderr."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write({text!r})\nraise SystemExit({status})\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


PERF = "12345678,,instructions:u,100,100.00,,\n"
NO_PERF = "<not supported>,,instructions:u,0,100.00,,\n"
VALGRIND = "==7== Cachegrind\n==7== I   refs:      90,232,390\n"


def test_perf_counts_where_it_may_and_valgrind_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="neither works here"):
        choose_counter()
    tool(tmp_path, "valgrind", VALGRIND)
    assert (choose_counter(), count_instructions("valgrind", ["true"])) == ("valgrind", 90_232_390)
    tool(tmp_path, "perf", NO_PERF)
    assert choose_counter() == "valgrind"
    tool(tmp_path, "perf", PERF)
    assert (choose_counter(), count_instructions("perf", ["true"])) == ("perf", 12_345_678)


def test_a_loop_that_fails_gives_no_count(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tool(tmp_path, "valgrind", f"ValueError: no\n{VALGRIND}", status=1)
    with pytest.raises(ConfigError, match="valgrind did not count `true`: ValueError: no"):
        count_instructions("valgrind", ["true"])


@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_does_its_work(name, tmp_path, monkeypatch):
    subject = phantom_subject(8, size=64)
    subject.write(tmp_path / "8", ".nii.gz")
    np.save(tmp_path / "8" / "label.npy", subject.label)
    subject.store(tmp_path / "store")
    monkeypatch.setattr(instructions, "DEEP", 8)
    LOOPS[name][1](tmp_path, 8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_counts_hardly_differ_from_run_to_run():
    one, other = (
        count_instructions("valgrind", [sys.executable, "-S", "-E", "-c", "sum(range(100000))"]) for _ in range(2)
    )
    assert abs(one / other - 1) < 0.01


def record_of(counter, **counts):
    return {
        "benchmark": "instructions",
        "date": "2026-11-28T20:00:00+00:00",
        "counter": counter,
        "unit": "slices",
        "results": {
            name: {"what": name, "instructions_a_slice": count, "runs": [0, 32 * count]}
            for name, count in counts.items()
        },
        "machine": {"cpu": "a", "cores": 2, "versions": {}},
    }


def test_two_counts_are_compared_without_an_interval(tmp_path):
    old, new = record_of("perf", ingest=2_000_000, read=4_000_000), record_of("perf", ingest=1_000_000, read=4_040_000)
    changes = compare(old, new)
    assert [(change.name, change.ratio, change.verdict) for change in changes] == [
        ("ingest", 2.0, "faster"),
        ("read", pytest.approx(0.990099), "no difference"),
    ]
    with pytest.raises(ConfigError, match="perf counted in one record and valgrind in the other"):
        compare(old, record_of("valgrind", ingest=1_000_000))
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, record in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(record))
    text = CliRunner().invoke(bench, ["compare", *map(str, paths)])
    assert text.exit_code == 0
    assert "faster" in text.output
    assert "| read | read | 4.00 |" in format_record(old)
