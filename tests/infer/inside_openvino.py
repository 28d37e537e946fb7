"""Another runtime: the file gives the same labels in OpenVINO, and `--provider openvino` runs the engine on it.

`test_openvino.py` runs this in a process of its own.
"""

import json
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pytest
from onnx import helper

from slicemill.common.errors import ModelError
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.network.bfloat16 import MAX_DIFFERENCE, compare_with_float32
from slicemill.infer.network.lanes import estimate_lane_memory, make_lane
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.runtime import openvino as vino
from slicemill.infer.runtime.capacity import batch_capacity
from slicemill.infer.single import segment_volume
from slicemill.store.reader import open_store
from slicemill.train.export.model_file import export
from tests.infer.networks import tensor, write_model


def test_the_memory_of_its_lanes_is_counted(model):
    opened = open_model(model, "openvino")
    taken = estimate_lane_memory(opened, batch_capacity(opened.info, "openvino", 64), ("label",))
    assert taken % 2 == 0
    assert taken > 2 * 64 * 64 * 64 * 4 * 2, "a batch of 64 slices, 4 channels of bfloat16 at the least"


@pytest.mark.parametrize("side", [64, 576])
def test_one_scan_is_compared_with_the_cpu_first(side, model, trained, collection, tmp_path):
    """At 576 pixels a batch has one slice."""
    path = model if side == 64 else tmp_path / "large.onnx"
    if side != 64:
        export(trained, path, size=(side, side))
    opened = open_model(path, "openvino")
    loaded = load_scan(gather([collection / "volume-2.nii"])[0][0])
    found = segment_volume(opened, loaded.volume, loaded.grid.spacing_mm)
    assert opened.parity_checked
    expected = segment_volume(open_model(path, "cpu"), loaded.volume, loaded.grid.spacing_mm)
    assert np.mean(found.label != expected.label) < 0.005


def test_labels_of_another_shape_are_refused(tmp_path):
    more = [tensor([value], name, np.int64) for name, value in (("from", 0), ("to", 1), ("axis", 0))]
    first_slice = [helper.make_node("Slice", ["image", "from", "to", "axis"], ["first"])]
    path = write_model(tmp_path / "m.onnx", {"liver": 1}, first_slice, "first", more)
    opened = open_model(path, "openvino")
    lane = make_lane(opened, batch_capacity(opened.info, "openvino", 4), ("label",))
    windows = np.arange(4, dtype=np.int32)[:, None]
    with pytest.raises(ModelError, match=r"output label has the shape \(1, 16, 16\); expected \(4, 16, 16\)"):
        lane.run(lane.image, windows, nullcontext())


def test_the_file_gives_equal_labels_in_openvino(model, stored):
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ours = open_model(model, "cpu")
    differing = pixels = 0
    for case in open_store(stored).values():
        image = case.image[:]
        volume = np.full((len(image), *ours.info.size), -1000, dtype=np.int16)
        volume[:, : image.shape[1], : image.shape[2]] = image
        last = len(volume) - 1
        window = np.clip(np.arange(len(volume))[:, None] + [-1, 0, 1], 0, last).astype(np.int32)
        found = compiled({"image": volume, "neighbors": window})["label"]
        expected = ours.run(volume, window).label
        differing, pixels = differing + np.count_nonzero(found != expected), pixels + expected.size
    assert differing <= 1e-5 * pixels


def test_the_slices_that_decide_about_bfloat16_are_labeled_alike_in_float32(model):
    """Where OpenVINO computes in bfloat16, the limit is that of `--provider auto`."""
    share = compare_with_float32(open_model(model, "openvino"), open_model(model, "cpu"))
    assert share <= MAX_DIFFERENCE


def test_the_engine_runs_on_openvino_and_says_in_which_precision(model, collection, tmp_path):
    opened = open_model(model, "openvino")
    assert opened.provider == "openvino"
    assert opened.reason in ("requested; computes in bf16", "requested; computes in f32")
    jobs = gather([collection])[0]
    assert infer(opened, jobs, tmp_path / "vino", InferOptions(batch=5)).count("done") == 6
    infer(open_model(model, "cpu"), jobs, tmp_path / "cpu")
    differing = pixels = 0
    for job in jobs:
        one, other = (np.asarray(nib.load(tmp_path / name / job.name).dataobj) for name in ("vino", "cpu"))
        differing, pixels = differing + np.count_nonzero(one != other), pixels + one.size
    assert differing <= 0.005 * pixels
    assert json.loads((tmp_path / "vino" / "summary.json").read_text())["provider"] == "openvino"
    opened.rebuild()
    assert opened.session.get_providers() == [vino.NAME]
