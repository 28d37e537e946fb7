"""Installed with one extra only, in an environment of its own: the stages do not need each other."""

import subprocess
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def install(folder, extra):
    """Make an environment with slicemill and one extra, and return its bin folder."""
    venv.create(folder, with_pip=True)
    program = folder / "bin" / "python"
    words = [
        program,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        HERE / "constraints.txt",
        f"{HERE}[{extra}]",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def absent(bin_folder, *modules):
    code = f"import importlib.util as u; print([n for n in {modules!r} if u.find_spec(n)])"
    return (
        subprocess.run(
            [bin_folder / "python", "-c", code], capture_output=True, text=True, check=True, cwd=bin_folder
        ).stdout.strip()
        == "[]"
    )


def test_infer_segments_a_phantom_without_torch_and_dask(model, collection, tmp_path):
    tools = install(tmp_path / "env", "cpu")
    assert absent(tools, "torch", "dask", "distributed")
    words = [tools / "infer", model, collection / "volume-0.nii", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 done" in done.stdout
    assert (tmp_path / "out" / "volume-0.nii").stat().st_size == (collection / "segmentation-0.nii").stat().st_size
    done = subprocess.run([tools / "slicemill", "doctor"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_ingest_runs_without_onnxruntime_and_torch(collection, tmp_path):
    tools = install(tmp_path / "env", "ingest")
    assert absent(tools, "torch", "onnxruntime")
    done = subprocess.run(
        [tools / "slicemill", "ingest", collection, tmp_path / "store"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "6 cases: 6 done" in done.stdout
    done = subprocess.run(
        [tools / "infer", "m.onnx", collection, "--out", "x"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "m.onnx: cannot be read" in done.stderr
