"""Installed with one extra only, each in its own environment: the stages do not need each other."""

import subprocess
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*words, cwd):
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd=cwd)


def install(folder, extra):
    """Make an environment with slicemill and one extra, and return its bin folder."""
    venv.create(folder, with_pip=True)
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    done = run(*pip, "-c", HERE / "constraints.txt", f"{HERE}[{extra}]", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def absent(tools, *modules):
    code = f"import importlib.util as u; print([n for n in {modules!r} if u.find_spec(n)])"
    return run(tools / "python", "-c", code, cwd=tools).stdout.strip() == "[]"


def test_infer_segments_a_phantom_without_torch_and_dask(model, collection, tmp_path):
    tools = install(tmp_path / "env", "cpu")
    assert absent(tools, "torch", "dask", "distributed")
    done = run(tools / "infer", model, collection / "volume-0.nii", "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 done" in done.stdout
    assert (tmp_path / "out" / "volume-0.nii").stat().st_size == (collection / "segmentation-0.nii").stat().st_size
    done = run(tools / "slicemill", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for words, extra in ((("ingest", collection, "s"), "ingest"), (("train", "s", "r"), "train"),
                         (("demo", "--out", "d"), "ingest,train")):  # fmt: skip
        assert_one_line(run(tools / "slicemill", *words, cwd=tmp_path), extra)
    assert not (tmp_path / "d").exists()


def assert_one_line(done, extra):
    """The command ends with one line that names the extra to install."""
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert f"pip install 'slicemill[{extra}]'" in line


def test_ingest_runs_without_onnxruntime_and_torch(collection, tmp_path):
    tools = install(tmp_path / "env", "ingest")
    assert absent(tools, "torch", "onnxruntime")
    done = run(tools / "slicemill", "ingest", collection, tmp_path / "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 cases: 6 done" in done.stdout
    done = run(tools / "infer", "m.onnx", collection, "--out", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "m.onnx: cannot be read" in done.stderr
    assert_one_line(run(tools / "slicemill", "train", tmp_path / "store", "r", cwd=tmp_path), "train")
