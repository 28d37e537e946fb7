"""`slicemill info`: what a file or folder is."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, InputError, ModelError
from slicemill.info import describe, summarize
from slicemill.train import info as run_info
from slicemill.train.run import setup


def test_a_scan_is_described_by_its_header(tmp_path):
    import nibabel as nib

    path = tmp_path / "volume-3.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 6, 4), np.int16), np.diag([0.5, 2.0, 5.0, 1.0])), path)
    scan = summarize(path)
    assert (scan.kind, scan.shape, scan.spacing_mm, scan.size_mm) == ("scan", (4, 6, 8), (5, 2, 0.5), (20, 12, 4))
    assert (scan.dtype, scan.axes, scan.name_suggests) == ("int16", "RAS", "image")
    assert any("4 of 6 x 8 pixels" in line for line in describe(scan))


def test_a_model_is_described_without_onnxruntime(model):
    summary = summarize(model)
    assert summary.card.labels == {"liver": 1, "tumor": 2}
    lines = describe(summary)
    assert any("liver=1, tumor=2; organ liver, tumor tumor" in line for line in lines)
    assert any("2 epochs; validation Dice: liver" in line for line in lines)


def test_a_network_from_elsewhere_is_named_as_such(tmp_path):
    from slicemill.infer.runtime.probe import make_probe

    path = tmp_path / "net.onnx"
    path.write_bytes(make_probe(bias_apart=False))
    assert summarize(path).card is None
    assert "net.toml" in describe(summarize(path))[-1]


def test_a_run_is_described_with_its_progress(trained, stored):
    summary = summarize(trained)
    assert (summary.epochs_done, summary.config.epochs) == (2, 2)
    assert summary.trained_on.store == str(stored)
    assert any("2 of 2 epochs" in line for line in describe(summary))


def test_the_files_of_a_run_are_those_of_training():
    assert (run_info.CONFIG, run_info.MODEL, run_info.METRICS) == (setup.CONFIG, setup.MODEL, setup.METRICS)


def test_what_is_none_of_them_is_refused(collection, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff")
    for path, kind, message in (
        (tmp_path / "nothing", ConfigError, "there is no such file or folder"),
        (tmp_path / "notes.txt", ConfigError, "is neither a scan .* nor an ONNX model"),
        (tmp_path / "bad.onnx", ModelError, "is not an ONNX model"),
        (tmp_path, ConfigError, "neither a slice store nor the folder of a training run.$"),
        (collection, ConfigError, "12 scans and masks; `slicemill ingest .* --dry-run`"),
    ):
        with pytest.raises(kind, match=message):
            summarize(path)


def test_damaged_metrics_of_a_run_are_named(trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(InputError, match="metrics.csv: is damaged"):
        summarize(tmp_path / "run")


def test_the_command_prints_lines_or_json_of_each_kind(model, trained, stored, collection):
    for path, kind in ((model, "model"), (trained, "run"), (stored, "store"), (collection / "volume-0.nii", "scan")):
        done = CliRunner().invoke(commands(), ["info", str(path)])
        assert done.output.startswith(f"{kind} ")
        done = CliRunner().invoke(commands(), ["info", str(path), "--json"])
        assert json.loads(done.output)["kind"] == kind
