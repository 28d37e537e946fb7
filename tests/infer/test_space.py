"""Before a scan is read, the disk must have room for its results."""

import shutil
from types import SimpleNamespace

import numpy as np

from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.run import pipeline
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from tests.infer.networks import write_threshold


def test_a_scan_whose_results_do_not_fit_is_not_read_and_tried_again(tmp_path, monkeypatch):
    model = open_model(write_threshold(tmp_path / "net.onnx"), "cpu")
    for name in ("plain-1.nii", "packed-1.nii.gz"):
        write_nifti(tmp_path / "in" / name, np.zeros((4, 32, 32), dtype=np.int16), (3.0, 1.0, 1.0))
    jobs = gather([tmp_path / "in"], None)[0]
    read = []
    opened = pipeline.open_scan
    monkeypatch.setattr(pipeline, "open_scan", lambda job: read.append(job.name) or opened(job))

    def have(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return {one.name: one for one in infer(model, jobs, tmp_path / "out", InferOptions()).outcomes}

    full = have(4 * 32 * 32 - 1)
    assert full["packed-1.nii.gz"].status == "done", "gzip makes its mask smaller"
    assert full["plain-1.nii"].status == "failed"
    assert "No space left on device: its mask may need " in full["plain-1.nii"].reason
    assert not (tmp_path / "out" / "plain-1.nii").exists()
    assert {one.status for one in have(4 * 32 * 32).values()} == {"done", "skipped"}
    assert have(0)["plain-1.nii"].status == "skipped", "what is done needs nothing"
