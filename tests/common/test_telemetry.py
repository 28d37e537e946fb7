"""onnxruntime must not report to its maker."""

import os
import re
import subprocess
import sys

from tests.infer.networks import write_threshold
from tests.test_architecture import SOURCES, name_of

LOAD = """
import sys
from pathlib import Path
from slicemill.infer.network.model import open_model
open_model(Path(sys.argv[1]), "cpu")
"""


def test_a_model_leaves_no_identifier_of_the_machine(tmp_path):
    """With its reports on, onnxruntime leaves a device id and a table of events in these folders."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "CI", "GITHUB"))}
    environment |= {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    model = write_threshold(tmp_path / "net.onnx")
    subprocess.run([sys.executable, "-c", LOAD, model], check=True, env=environment)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_reports_are_turned_off_before_each_import():
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\s*(import onnxruntime|from onnxruntime)\b", line):
                before = "\n".join(lines[max(0, number - 2) : number])
                assert "turn_off_telemetry()" in before, f"{name_of(path)}:{number + 1}"
