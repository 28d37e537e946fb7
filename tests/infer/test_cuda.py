"""What only a GPU can show of inference; skipped by name where there is none. bench/gpu/one.sh runs some of these."""

import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest

from slicemill.common.errors import ProviderError
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.lanes import DeviceLane
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.runtime.probe import make_probe, run_probe
from slicemill.infer.runtime.providers import has_nvidia_driver, make_session
from slicemill.infer.runtime.tensorrt import gpu_name
from slicemill.train.export.graph import DEFAULT, Flavor
from tests.infer.test_device import blocks, flavors, guided  # noqa: F401 (one is a fixture)

HERE = has_nvidia_driver() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
pytestmark = pytest.mark.skipif(not HERE, reason="needs a CUDA device and onnxruntime-gpu")
WINDOWS = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]], dtype=np.int32)
NEAR = 2e-3
"""Share of pixels in which a GPU may label otherwise than the CPU in float32."""


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A model in float32, and its flavor in float16."""
    return guided(tmp_path_factory.mktemp("half") / "m.onnx", DEFAULT, Flavor(half=True))


@pytest.mark.parametrize("name", ["m.onnx", "m.fp16.onnx"])
@pytest.mark.parametrize("batch", [0, 5])
def test_a_run_labels_as_the_cpu_does_in_float32(name, batch, half, collection, tmp_path):
    opened = open_model(half.with_name(name), "cuda")
    jobs = gather([collection])[0]
    assert infer(opened, jobs, tmp_path / "cuda", InferOptions(batch=batch)).count("done") == 6
    infer(open_model(half, "cpu"), jobs, tmp_path / "cpu")
    differing = pixels = 0
    for job in jobs:
        one, other = (np.asarray(nib.load(tmp_path / where / job.name).dataobj) for where in ("cuda", "cpu"))
        differing, pixels = differing + np.count_nonzero(one != other), pixels + one.size
    assert differing <= NEAR * pixels
    assert json.loads((tmp_path / "cuda" / "summary.json").read_text())["provider"] == "cuda"


def test_auto_takes_the_card(model):
    opened = open_model(model, "auto")
    assert (opened.provider, opened.reason) == ("cuda", "the CUDA provider runs")
    assert opened.session.get_providers()[0] == "CUDAExecutionProvider"
    assert gpu_name(0)


def test_two_lanes_at_once_do_not_mix_their_batches(half, rng):
    opened = open_model(half, "cuda")
    given = [blocks(rng, 6) for _ in range(2)]
    wrong: list[int] = []

    def drive(number):
        lane = DeviceLane(opened, Capacity(8, 20), ("label", "tumor"))
        for turn in range(50):
            image, label = given[(number + turn) % 2]
            lane.image[:6] = image
            found = lane.run(lane.image[:6], WINDOWS, threading.Semaphore(2)).label
            wrong.append(int(np.count_nonzero(found != label[1:5])))

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 100


def test_a_rebuilt_session_labels_as_before(half, rng):
    opened = open_model(half, "cuda")
    image, label = blocks(rng, 6)
    for _ in range(2):
        lane = DeviceLane(opened, Capacity(4, 6), ("label",))
        lane.image[:] = image
        assert np.array_equal(lane.run(lane.image[:6], WINDOWS, threading.Lock()).label, label[1:5])
        opened.rebuild()


@pytest.mark.parametrize("name", ["m.onnx", "m.fp16.onnx"])
@pytest.mark.parametrize(
    "more", [{}, {"use_tf32": "0"}, {"prefer_nhwc": "0", "fuse_conv_bias": "0"}, {"fuse_conv_bias": "0"}]
)
def test_no_setting_of_the_provider_changes_labels(more, name, half, rng):
    path = half.with_name(name)
    opened = open_model(path, "cuda")
    fused = opened.session.get_provider_options()["CUDAExecutionProvider"]["fuse_conv_bias"]
    assert fused == ("1" if name == "m.fp16.onnx" else "0"), "only the flavors for GPUs have their biases apart"
    opened.session = make_session(path.read_bytes(), path, "cuda", 0, more)[0]
    image, label = blocks(rng, 6)
    lane = DeviceLane(opened, Capacity(4, 6), ("label",))
    lane.image[:] = image
    assert np.array_equal(lane.run(lane.image[:6], WINDOWS, threading.Lock()).label, label[1:5])


@pytest.mark.parametrize("bias_apart", [False, True])
def test_the_probe_runs(bias_apart):
    run_probe(make_session(make_probe(bias_apart=bias_apart), Path("probe"), "cuda")[0])


def test_a_gpu_that_does_not_exist_and_a_wrong_option_are_named(half):
    for device, more, message in ((99, {}, "Invalid device ID: 99"), (0, {"nonsense": "1"}, 'option: "nonsense"')):
        with pytest.raises(ProviderError, match=f"--provider cuda: does not run here .*{message}"):
            make_session(half.read_bytes(), half, "cuda", device, more)


def test_the_byte_flavor_runs_on_cuda_too(flavors, rng):  # noqa: F811 (a fixture)
    image, label = blocks(rng, 6)
    lane = DeviceLane(open_model(flavors.with_name("liver.bytes.fp16.onnx"), "cuda"), Capacity(4, 6), ("label",))
    lane.image[:] = image
    assert np.array_equal(lane.run(lane.image[:6], WINDOWS, threading.Lock()).label, label[1:5])
