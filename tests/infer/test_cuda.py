"""What only a GPU can show of inference; skipped by name where there is none. bench/gpu/infer.sh runs these."""

import json
import threading

import nibabel as nib
import numpy as np
import onnxruntime
import pytest

from infer.capacity import Capacity
from infer.gather import gather
from infer.lane import DeviceLane
from infer.model import open_model
from infer.options import Options
from infer.pipeline import infer
from infer.providers import has_nvidia_driver, make_session
from infer.tensorrt import gpu_name
from tests.infer.test_device import flavors  # noqa: F401 (a fixture)
from train.export import export
from train.graph import DEFAULT, Flavor

HERE = has_nvidia_driver() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
pytestmark = pytest.mark.skipif(not HERE, reason="needs a CUDA device and onnxruntime-gpu")
NEAR = 2e-3
"""Share of pixels in which a GPU may label otherwise than the CPU in float32."""


@pytest.fixture(scope="module")
def half(trained, tmp_path_factory):
    """The model in float32, and beside it in float16."""
    path = tmp_path_factory.mktemp("half") / "m.onnx"
    export(trained, path, flavors=(DEFAULT, Flavor(half=True)))
    return path


@pytest.mark.parametrize("name", ["m.onnx", "m.fp16.onnx"])
@pytest.mark.parametrize("batch", [0, 5])
def test_a_run_labels_as_the_cpu_does_in_float32(name, batch, half, collection, tmp_path):
    opened = open_model(half.with_name(name), "cuda")
    jobs = gather([collection])[0]
    assert infer(opened, jobs, tmp_path / "cuda", Options(batch=batch)).count("done") == 6
    infer(open_model(half, "cpu"), jobs, tmp_path / "cpu")
    differing = pixels = 0
    for job in jobs:
        one, other = (np.asarray(nib.load(tmp_path / where / job.name).dataobj) for where in ("cuda", "cpu"))
        differing, pixels = differing + np.count_nonzero(one != other), pixels + one.size
    assert differing <= NEAR * pixels
    assert json.loads((tmp_path / "cuda" / "summary.json").read_text())["provider"] == "cuda"


def test_auto_takes_the_card(model):
    opened = open_model(model, "auto")
    assert (opened.provider, opened.reason) == ("cuda", "the CUDA provider starts")
    assert opened.session.get_providers()[0] == "CUDAExecutionProvider"
    assert gpu_name(0)


def test_two_lanes_at_once_do_not_mix_their_batches(model, rng):
    opened, here = open_model(model, "cuda"), open_model(model, "cpu")
    images = rng.integers(-300, 400, (2, 6, 64, 64)).astype(np.int16)
    neighbors = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]], dtype=np.int32)
    expected = [here.run(image, neighbors).label for image in images]
    wrong: list[float] = []

    def drive(number):
        lane = DeviceLane(opened, Capacity(8, 20), ("label", "tumor"))
        for turn in range(50):
            which = (number + turn) % 2
            lane.image[:6] = images[which]
            label = lane.run(6, neighbors, threading.Semaphore(2)).label
            wrong.append(float(np.count_nonzero(label != expected[which])) / label.size)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 100
    assert max(wrong) <= NEAR


def test_a_session_made_anew_goes_on(model, rng):
    opened = open_model(model, "cuda")
    image, neighbors = rng.integers(-300, 400, (3, 64, 64)).astype(np.int16), np.array([[0, 1, 2]], dtype=np.int32)
    before = DeviceLane(opened, Capacity(2, 6), ("label",))
    before.image[:3] = image
    first = before.run(3, neighbors, threading.Lock()).label.copy()
    opened.rebuild()
    after = DeviceLane(opened, Capacity(2, 6), ("label",))
    after.image[:3] = image
    assert np.array_equal(after.run(3, neighbors, threading.Lock()).label, first)


def test_without_tf32_float32_labels_are_the_cpus(model, rng):
    opened = open_model(model, "cuda")
    opened.session = make_session(model.read_bytes(), model, "cuda", 0, {"use_tf32": "0"})[0]
    image, neighbors = rng.integers(-300, 400, (3, 64, 64)).astype(np.int16), np.array([[0, 1, 2]], dtype=np.int32)
    lane = DeviceLane(opened, Capacity(1, 3), ("label",))
    lane.image[:] = image
    expected = open_model(model, "cpu").run(image, neighbors).label
    assert np.count_nonzero(lane.run(3, neighbors, threading.Lock()).label != expected) <= 1e-3 * expected.size


def test_the_byte_flavor_runs_on_cuda_too(flavors, rng):  # noqa: F811 (a fixture)
    path = flavors.with_name("liver.bytes.fp16.onnx")
    image, neighbors = rng.integers(-300, 400, (3, 64, 64)).astype(np.int16), np.array([[0, 1, 2]], dtype=np.int32)
    lane = DeviceLane(open_model(path, "cuda"), Capacity(1, 3), ("label",))
    lane.image[:] = image
    expected = open_model(flavors, "cpu").run(image, neighbors).label
    assert np.count_nonzero(lane.run(3, neighbors, threading.Lock()).label != expected) <= NEAR * expected.size
