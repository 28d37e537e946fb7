"""GPUs without one: options of providers, folders of engines, and lanes with a GPU in main memory (`tests.fakes`)."""

import gc
import json
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest

from slicemill.bench.harness.networks import export_network
from slicemill.common.errors import ModelError, ProviderError, UsageError
from slicemill.ct.labels import LITS_LABELS
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network import lanes
from slicemill.infer.network.lanes import DeviceLane, HostLane
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer as segment_all
from slicemill.infer.runtime import providers, tensorrt
from slicemill.infer.runtime.capacity import Capacity, batch_capacity, input_shapes
from slicemill.infer.runtime.cuda_memory import CudaDevice, open_cuda_device
from slicemill.infer.runtime.probe import make_probe
from slicemill.infer.runtime.providers import make_session, provider_options
from slicemill.infer.runtime.tensorrt import Builder, engine_folder, engine_options, start_with_engine
from slicemill.train.config import Config
from slicemill.train.export.graph import DEFAULT, Flavor
from slicemill.train.network.step import build_network
from tests.fakes import CudaDriver, CudaRuntime, build_or_read_engine, play_tensorrt
from tests.infer.test_parts import changed

BUILDER = Builder(gpu="NVIDIA H200", onnxruntime="1.30.0", tensorrt="10.16.1")
SHAPES = {"image": (14, 1, 64, 64, 2), "neighbors": (4, 3)}


@pytest.fixture
def cuda_runtime(monkeypatch):
    """A GPU in main memory."""
    runtime = CudaRuntime()
    monkeypatch.setattr(lanes, "open_cuda_device", lambda _, device: CudaDevice(runtime, device))
    monkeypatch.setattr(lanes, "DEVICE_MEMORY", "cpu")
    return runtime


def guided(path, *flavors):
    """Write a small network whose labels are those of coarse HU, in some flavors."""
    config = Config(width=4, depth=3)
    network = build_network(LITS_LABELS, config)
    for flavor in flavors:
        export_network(path.with_name(path.name.removesuffix(".onnx") + flavor.suffix), network, config, 64, flavor)
    return path


def blocks(rng, count):
    """Return int16[n, 64, 64], HU, of blocks of background, organ and tumor, and their labels."""
    label = rng.integers(0, 3, (count, 8, 8))
    large = np.kron(label, np.ones((1, 8, 8), dtype=int))
    image = np.array([-100, 100, 200])[large] + rng.integers(-10, 10, large.shape)
    return image.astype(np.int16), large.astype(np.uint8)


@pytest.fixture(scope="module")
def flavors(tmp_path_factory) -> Path:
    """A model with its byte flavor in the same folder."""
    return guided(tmp_path_factory.mktemp("flavors") / "liver.onnx", DEFAULT, Flavor(half=True, bytes_in=True))


@pytest.fixture
def tensorrt_sessions(monkeypatch, tmp_path):
    """TensorRT played by the CPU: the options of its sessions."""
    return play_tensorrt(monkeypatch, tmp_path)


class TestOptions:
    def test_cuda_searches_convolutions_once_and_never_by_default(self):
        options = provider_options("cuda", 3, make_probe(bias_apart=True))
        assert options["device_id"] == "3"
        assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
        assert (options["prefer_nhwc"], options["fuse_conv_bias"], options["cudnn_conv_use_max_workspace"]) == (
            "1",
            "1",
            "1",
        )
        assert options["arena_extend_strategy"] == "kSameAsRequested"
        assert "enable_cuda_graph" not in options

    def test_biases_are_fused_only_where_no_transposed_convolution_has_one(self, flavors):
        def fused(model):
            return provider_options("cuda", 0, model)["fuse_conv_bias"]

        assert fused(flavors.read_bytes()) == fused(make_probe(bias_apart=False)) == "0"
        assert (
            fused(flavors.with_name("liver.bytes.fp16.onnx").read_bytes()) == fused(make_probe(bias_apart=True)) == "1"
        )
        assert fused(b"no model") == "0"

    @pytest.mark.parametrize("provider", ["cuda", "auto"])
    def test_a_fused_bias_is_never_combined_with_nchw(self, provider, flavors, monkeypatch):
        """onnxruntime then clears the output on another stream than it computes on."""
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(providers, "has_nvidia_driver", lambda: True)
        model = flavors.with_name("liver.bytes.fp16.onnx")
        with pytest.raises(UsageError, match="fuse_conv_bias=1 with prefer_nhwc=0: onnxruntime may give wrong results"):
            make_session(model.read_bytes(), model, provider, 0, {"prefer_nhwc": "0"})

    def test_an_engine_is_built_for_exactly_one_shape(self):
        options = engine_options(SHAPES, Path("a", "b"))
        only = "image:14x1x64x64x2,neighbors:4x3"
        assert [options[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")] == [only] * 3
        assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", "a/b")
        assert (options["trt_timing_cache_enable"], options["trt_timing_cache_path"]) == ("1", "a")

    def test_precision_is_the_files(self):
        options = provider_options("tensorrt", 0, b"")
        assert {options[f"trt_{kind}_enable"] for kind in ("fp16", "bf16", "int8")} == {"0"}

    def test_every_value_is_text_as_onnxruntime_wants(self):
        every = [
            provider_options("cuda", 1, b""),
            provider_options("tensorrt", 1, b""),
            engine_options(SHAPES, Path("a", "b")),
        ]
        assert {type(value) for options in every for value in options.values()} == {str}

    def test_whatever_an_engine_depends_on_names_its_folder(self):
        def folder(builder=BUILDER, sha256="a" * 64, **shapes):
            return engine_folder(Path("home"), builder, sha256, SHAPES | shapes)

        others = [
            folder(replace(BUILDER, gpu="NVIDIA A100")),
            folder(replace(BUILDER, onnxruntime="1.31.0")),
            folder(replace(BUILDER, tensorrt="10.13.0")),
            folder(sha256="b" * 64),
            folder(neighbors=(8, 3)),
        ]
        assert folder() == folder()
        assert len({folder(), *others}) == 6
        assert len({one.parent for one in [folder(), *others[3:]]}) == 1, "timings are shared by the models of a GPU"
        assert all(len(one.relative_to("home").parts) == 5 for one in others)

    @pytest.mark.parametrize("kind", ["int16", "bytes"])
    def test_the_shapes_are_those_of_a_full_batch(self, kind, flavors):
        path = flavors if kind == "int16" else flavors.with_name("liver.bytes.fp16.onnx")
        opened = open_model(path, "cpu")
        capacity = batch_capacity(opened.info, "tensorrt", 4)
        feed = opened.feed(np.zeros((capacity.rows, 64, 64), np.int16), np.zeros((capacity.labels, 3), np.int32))
        assert input_shapes(opened.info, capacity) == {name: array.shape for name, array in feed.items()}
        expected = {given.name: len(given.shape) for given in onnx_inputs(path)}
        assert {name: len(shape) for name, shape in input_shapes(opened.info, capacity).items()} == expected


def onnx_inputs(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()


class TestTensorrt:
    def test_it_takes_the_byte_flavor_and_its_options_name_batch_and_folder(self, flavors, tensorrt_sessions, tmp_path):
        opened = open_model(flavors, "tensorrt", 1, 4)
        assert opened.provider == "tensorrt"
        assert opened.info.name == "liver.bytes.fp16.onnx"
        assert opened.info.input == "bytes"
        (options,) = tensorrt_sessions
        assert options["trt_profile_opt_shapes"] == "image:12x1x64x64x2,neighbors:4x3"
        assert options["device_id"] == "1"
        opened.rebuild()
        again = tensorrt_sessions[1]
        assert {key for key in options if options[key] != again[key]} == {
            "trt_engine_cache_path",
            "trt_timing_cache_path",
        }
        folder = Path(again["trt_engine_cache_path"])
        assert folder.is_relative_to(tmp_path)
        assert opened.info.sha256[:16] in folder.name
        assert "NVIDIA-H200-1" in folder.parent.name
        assert onnxruntime.__version__ in folder.parent.name
        assert sorted(path.name for path in folder.iterdir()) == ["network.engine"]
        assert not Path(options["trt_engine_cache_path"]).exists(), "it was built aside, and renamed"

    def test_without_a_byte_flavor_it_is_refused_with_the_way_out(self, flavors, tensorrt_sessions, tmp_path):
        (tmp_path / "m.onnx").write_bytes(flavors.read_bytes())
        with pytest.raises(ModelError, match=r"takes int16.*m.bytes.fp16.onnx is not in its folder.*export --bytes"):
            open_model(tmp_path / "m.onnx", "tensorrt")
        assert not tensorrt_sessions

    def test_a_byte_flavor_of_another_training_is_refused(self, flavors, tensorrt_sessions, tmp_path):
        (tmp_path / "m.onnx").write_bytes(flavors.read_bytes())
        other = flavors.with_name("liver.bytes.fp16.onnx")
        changed(other, tmp_path / "m.bytes.fp16.onnx", lambda metadata: metadata.update(training={"epochs": 99}))
        with pytest.raises(
            ModelError, match=r"m.bytes.fp16.onnx: is not the byte flavor of m.onnx, .*differ: training"
        ):
            open_model(tmp_path / "m.onnx", "tensorrt")
        changed(flavors, tmp_path / "m.bytes.fp16.onnx", lambda metadata: metadata)
        with pytest.raises(ModelError, match=r"is not the byte flavor of m.onnx, .*differ: input or size"):
            open_model(tmp_path / "m.onnx", "tensorrt")

    def test_the_engine_labels_through_device_lanes_as_the_cpu_does(
        self, flavors, tensorrt_sessions, cuda_runtime, collection, tmp_path
    ):
        opened = open_model(flavors, "tensorrt", 0, 4)
        jobs = gather([collection])[0]
        assert segment_all(opened, jobs, tmp_path / "there", InferOptions(batch=4)).count("done") == 6
        segment_all(open_model(opened.path, "cpu"), jobs, tmp_path / "here", InferOptions(batch=4))
        for job in jobs:
            one, other = (np.asarray(nib.load(tmp_path / name / job.name).dataobj) for name in ("there", "here"))
            assert np.array_equal(one, other), job.name
        summary = json.loads((tmp_path / "there" / "summary.json").read_text())
        assert summary["provider"] == "tensorrt"
        assert 0 < summary["device_busy"] <= 1
        assert summary["device_busy"] * summary["seconds"] <= 1.01 * summary["stages"]["device"]["seconds"] + 0.01
        assert cuda_runtime.copied

    def test_of_several_runs_one_builds_and_the_others_wait(self, tmp_path):
        options = engine_options(SHAPES, tmp_path / "engines" / "one")
        began, entered, go_on = threading.Event(), [], threading.Event()

        def start(now):
            entered.append(now["trt_engine_cache_path"])
            began.set()
            assert go_on.wait(5)

        threads = [threading.Thread(target=start_with_engine, args=(options, start)) for _ in range(2)]
        threads[0].start()
        assert began.wait(5)
        threads[1].start()
        threads[1].join(0.2)
        assert len(entered) == 1
        go_on.set()
        for thread in threads:
            thread.join(5)
        assert entered == [str(tmp_path / "engines" / ".one.part"), options["trt_engine_cache_path"]]

    @pytest.mark.parametrize("when", ["while it was built", "before there were timings", "in place"])
    def test_an_engine_left_half_is_built_again(self, when, tmp_path):
        folder = tmp_path / "engines" / "one"
        options = engine_options(SHAPES, folder)
        where = folder if when == "in place" else folder.with_name(".one.part")
        where.mkdir(parents=True)
        (where / "network.engine").write_text("wh")
        if when == "while it was built":
            (folder.parent / "sm90.timing").write_text("of another model")
        calls = []

        def start(now):
            calls.append(now["trt_engine_cache_path"])
            build_or_read_engine(now)
            return "a session"

        assert start_with_engine(options, start) == "a session"
        assert calls[-1] == str(folder.with_name(".one.part"))
        assert (folder / "network.engine").read_text() == "whole"
        assert (folder.parent / "sm90.timing").read_text() == "timings"
        assert start_with_engine(options, start) == "a session"
        assert calls[-1] == str(folder)
        assert sorted(path.name for path in folder.parent.iterdir()) == [".one.lock", "one", "sm90.timing"]

    def test_an_engine_stays_when_something_else_keeps_it_from_starting(self, tmp_path):
        options = engine_options(SHAPES, tmp_path / "engines" / "one")
        start_with_engine(options, build_or_read_engine)

        def start(now):
            raise MemoryError("the GPU is full")

        with pytest.raises(MemoryError, match="the GPU is full"):
            start_with_engine(options, start)
        assert (tmp_path / "engines" / "one" / "network.engine").read_text() == "whole"

    def test_a_home_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ProviderError, match=r"cannot store TensorRT engines here: File exists"):
            start_with_engine(engine_options(SHAPES, tmp_path / "file" / "a"), pytest.fail)

    def test_what_is_missing_is_named(self, monkeypatch):
        def absent(name):
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(tensorrt.ctypes, "CDLL", absent)
        with pytest.raises(ProviderError, match=r"libnvinfer.so.10 cannot be loaded .*install TensorRT 10"):
            tensorrt.tensorrt_version()
        with pytest.raises(ProviderError, match=r"no NVIDIA driver found \(libcuda.so.1"):
            tensorrt.gpu_name(0)

    def test_the_gpu_is_named_by_its_driver(self, monkeypatch):
        monkeypatch.setattr(tensorrt.ctypes, "CDLL", lambda _: CudaDriver())
        assert tensorrt.gpu_name(1) == "NVIDIA H200 at 7"
        with pytest.raises(ProviderError, match="there is no GPU 2 here"):
            tensorrt.gpu_name(2)


class TestCudaDevice:
    def test_a_room_is_zero_and_is_freed_with_its_last_view(self):
        runtime = CudaRuntime()
        room = CudaDevice(runtime, 0).allocate_pinned((2, 3), np.int16)
        assert room.tolist() == [[0, 0, 0], [0, 0, 0]]
        view = room[1:].view(np.uint8)
        del room
        gc.collect()
        assert len(runtime.held) == 1
        view[:] = 1
        del view
        gc.collect()
        assert not runtime.held

    @pytest.mark.parametrize("name", ["cudaHostAlloc", "cudaMemcpy", "cudaStreamSynchronize", "cudaSetDevice"])
    def test_a_call_that_fails_is_an_error_with_its_name(self, name):
        runtime = CudaRuntime()
        runtime.fails = name
        with pytest.raises(ProviderError, match=rf"{name} failed on GPU 5: out of memory \(error 2\)"):
            allocate_and_copy(CudaDevice(runtime, 5))
        assert runtime.cleared == 1

    def test_a_runtime_that_is_not_there_is_named(self):
        class Built:
            cuda_version = "99.0"

        with pytest.raises(ProviderError, match=r"libcudart.so.99 cannot be loaded"):
            open_cuda_device(Built, 0)


def allocate_and_copy(device):
    array = device.allocate_pinned((4,), np.uint8)
    device.copy(array.ctypes.data, array.ctypes.data + 2, 2)


class TestLane:
    @pytest.mark.parametrize("name", ["liver.onnx", "liver.bytes.fp16.onnx"])
    def test_batches_of_any_filling_are_labelled_as_on_the_host(self, name, flavors, cuda_runtime, rng):
        opened, capacity = open_model(flavors.with_name(name), "cpu"), Capacity(4, 12)
        there, here = (kind(opened, capacity, ("label", "tumor")) for kind in (DeviceLane, HostLane))
        for rows, count in ((12, 4), (5, 2), (3, 1), (12, 4)):
            image, label = blocks(rng, rows)
            neighbors = rng.integers(0, rows, (count, 3)).astype(np.int32)
            there.image[:rows] = here.image[:rows] = image
            one, other = (lane.run(lane.image[:rows], neighbors, threading.Lock()) for lane in (there, here))
            assert np.array_equal(one.label, other.label)
            assert np.array_equal(one.tumor, other.tumor)
            assert np.array_equal(one.label, label[neighbors[:, 1]])
        assert cuda_runtime.devices == {0}

    def test_only_rows_that_count_go_up_and_only_labels_that_are_asked_for_come_down(self, flavors, cuda_runtime):
        lane = DeviceLane(open_model(flavors, "cpu"), Capacity(4, 12), ("label",))
        cuda_runtime.copied.clear()
        lane.run(lane.image[:3], np.zeros((1, 3), np.int32), threading.Lock())
        with pytest.raises(ValueError, match="uploads only the first rows of its buffer"):
            lane.run(np.zeros((3, 64, 64), np.int16), np.zeros((1, 3), np.int32), threading.Lock())
        assert cuda_runtime.copied == [3 * 64 * 64 * 2, 4 * 3 * 4, 64 * 64]
