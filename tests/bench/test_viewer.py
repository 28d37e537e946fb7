"""The benchmark of the viewer."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages.viewer import run
from slicemill.common.errors import ConfigError

CHROMIUM = Path("/usr/bin/chromium")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"Chromium ({CHROMIUM}) is not here")
def test_the_viewer_is_scrolled_and_turned(tmp_path):
    path = tmp_path / "viewer.json"
    options = ["--slices", "24", "--side", "96", "--rounds", "2", "--json", str(path)]
    done = CliRunner().invoke(bench, ["viewer", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["slices"], record["rounds"]) == ("viewer", 24, 2)
    assert 0 < record["frame_ms"] <= record["slow_frame_ms"]
    assert record["turn_ms"] > 0
    # a slice takes at least one frame
    assert record["slices_per_second"] <= 1.3 * 1000 / record["frame_ms"]
    assert "slices a second" in format_record(record)


def test_a_browser_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--browser .*none: there is no such program; install Chromium"):
        run(tmp_path, slices=2, side=32, rounds=1, browser=tmp_path / "none")
