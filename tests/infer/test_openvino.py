"""OpenVINO keeps threads and memory, so its tests run in another process (`inside_openvino.py`)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from slicemill.common.errors import ProviderError
from slicemill.infer.network.model import open_model

HERE = Path(__file__).parents[2]


def test_without_the_package_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        ProviderError, match=r"--provider openvino: the package is not installed.*pip install 'slicemill\[openvino\]'"
    ):
        open_model(model, "openvino")


@pytest.mark.slow
def test_all_that_needs_the_package():
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    words = [sys.executable, "-m", "pytest", "-q", "tests/infer/inside_openvino.py"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
