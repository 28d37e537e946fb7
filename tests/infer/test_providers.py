"""Providers that start and do not run, installations of onnxruntime, and the messages about them."""

import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from slicemill.common.errors import ProviderError
from slicemill.infer.runtime import providers
from slicemill.infer.runtime.messages import find_cause
from slicemill.infer.runtime.onnx_file import add_output, find_logits, has_transpose_bias
from slicemill.infer.runtime.probe import make_probe, run_probe
from slicemill.infer.runtime.providers import (
    describe_runtime,
    explain_missing_library,
    import_onnxruntime,
    installed_runtimes,
    load_libraries,
    make_session,
)

SIGNATURE = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, Status> "
    "onnxruntime::CudaCall(ERRTYPE, const char*, SUCCTYPE, int) [with ERRTYPE = cudaError; bool THRW = true; "
    "SUCCTYPE = cudaError; std::conditional_t<THRW, void, common::Status> = void] "
)
FROM_OPTIONS = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static "
    "onnxruntime::CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions("
    "const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
)
WHILE = "[ONNXRuntimeError] : {} : Non-zero status code returned while running {} node. Name:'n' Status Message: "
MESSAGES = [
    (
        WHILE.format("11 : EP_FAIL", "ConvTranspose")
        + SIGNATURE * 2
        + "CUDNN_FE failure 1: ATTRIBUTE_NOT_SET ; GPU=0 ; hostname=lab-7 ; file=conv_transpose.cc ; expr=validate();",
        "ConvTranspose: CUDNN_FE failure 1: ATTRIBUTE_NOT_SET",
    ),
    (
        SIGNATURE + "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=lab-7 ; file=a.cc",
        "CUDA failure 700: an illegal memory access was encountered",
    ),
    (
        WHILE.format("9 : NOT_IMPLEMENTED", "Conv") + "/onnxruntime_src/onnxruntime/core/cuda_kernel.h:296 static "
        "cudnnContext* onnxruntime::cuda::CudaKernel::RequireCudnnHandle(cudnnHandle_t) [ONNXRuntimeError] : 9 : "
        "NOT_IMPLEMENTED : cuDNN is unavailable: dlopen failed for libcudnn.so: No such file or directory",
        "cuDNN is unavailable: dlopen failed for libcudnn.so: No such file or directory",
    ),
    (
        FROM_OPTIONS + 'provider_options_utils.h:187 Parse Failed to parse provider option "device_id": '
        "cuda_execution_provider_info.cc:71 operator() Invalid device ID: 7, must be between 0 (inclusive) and 1.",
        'Failed to parse provider option "device_id": Invalid device ID: 7, must be between 0 (inclusive) and 1',
    ),
    (
        FROM_OPTIONS + 'provider_options_utils.h:182 Parse Unknown provider option: "nonsense".',
        'Unknown provider option: "nonsense"',
    ),
    (
        "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::Register(const Options&) Please install.",
        "Please install",
    ),
]
"""Messages of onnxruntime-gpu 1.31.1, and what is left of them."""


@pytest.mark.parametrize(("message", "cause"), MESSAGES)
def test_of_a_long_message_the_cause_is_left(message, cause):
    assert find_cause(RuntimeError(message)) == cause


def test_a_long_cause_keeps_its_end():
    names = ", ".join(f"layer {number}" for number in range(60))
    assert find_cause(RuntimeError(f"weights of {names} do not fit")).endswith("layer 59 do not fit")
    longest = find_cause(RuntimeError("a" * 5000 + "the end"))
    assert (longest[:3], longest[-7:], len(longest) < 2100) == ("aaa", "the end", True)


class TestProbe:
    @pytest.mark.parametrize("bias_apart", [False, True])
    def test_it_is_a_valid_network_with_both_convolutions(self, bias_apart):
        content = make_probe(bias_apart=bias_apart)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert [node.op_type for node in model.graph.node] == ["Conv", "ConvTranspose", "Add"][: 2 + bias_apart]
        assert len(model.graph.node[1].input) == 3 - bias_apart
        run_probe(make_session(content, "probe", "cpu")[0])

    def test_a_bias_is_found_in_the_graph_in_inner_graphs_and_in_functions(self):
        model = onnx.load_from_string(make_probe(bias_apart=False))
        node = model.graph.node[1]
        helper = onnx.helper
        inner = helper.make_graph([node], "inner", [], [])
        branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=helper.make_graph([], "e", [], []))
        loop = helper.make_node("Loop", ["x"], ["y"], body=helper.make_graph([branch], "body", [], []))
        function = helper.make_function("own", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)])
        graphs = [helper.make_graph(nodes, "g", [], []) for nodes in ([node], [branch], [loop], [])]
        models = [helper.make_model(graph) for graph in graphs]
        assert [has_transpose_bias(one.SerializeToString()) for one in models] == [True, True, True, False]
        models[3].functions.append(function)
        assert has_transpose_bias(models[3].SerializeToString())
        node.input[2] = ""
        assert not has_transpose_bias(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString())

    @pytest.mark.parametrize("content", [b"no model", b"\x3a\xff\x01", b"\x3a\x05ab", b"\xff" * 12, b"\x0b", b"\x3a"])
    def test_bytes_that_are_not_protobuf_are_an_error(self, content):
        with pytest.raises(ValueError, match="not a protobuf message"):
            has_transpose_bias(content)

    def test_logits_are_an_output_on_request(self):
        content = make_probe(bias_apart=False)
        assert find_logits(content) is None
        model = onnx.load_from_string(content)
        model.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["best"], axis=1))
        model.graph.node.append(onnx.helper.make_node("Identity", ["best"], ["label"]))
        content = model.SerializeToString()
        assert find_logits(content) == "y"
        session = make_session(add_output(content, "c"), "probe", "cpu")[0]
        assert [output.name for output in session.get_outputs()] == ["y", "c"]
        (found,) = session.run(["c"], {"x": np.zeros((1, 3, 8, 8), np.float32)})
        assert found.shape == (1, 8, 8, 8)


@pytest.fixture
def nvidia_driver(monkeypatch):
    """An NVIDIA driver, and an onnxruntime built with CUDA."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(providers, "has_nvidia_driver", lambda: True)


class Unable:
    """A session on CUDA that starts; its convolutions fail."""

    def __init__(self, model, options, providers, enable_fallback):
        ((self.name, _),) = providers
        self.real = None
        if self.name == "CPUExecutionProvider":
            self.real = REAL(model, options, providers=providers, enable_fallback=enable_fallback)

    def get_providers(self):
        return [self.name]

    def run(self, names, feed):
        if self.real is None:
            raise RuntimeError(MESSAGES[2][0])
        return self.real.run(names, feed)

    def __getattr__(self, name):
        return getattr(self.real, name)


REAL = onnxruntime.InferenceSession
PROBE = make_probe(bias_apart=False)


class TestCudaThatDoesNotRun:
    """Sessions start without cuDNN and fail at the first convolution."""

    @pytest.fixture(autouse=True)
    def unable(self, nvidia_driver, monkeypatch):
        monkeypatch.setattr(onnxruntime, "InferenceSession", Unable)
        monkeypatch.setattr(providers, "explain_missing_library", lambda *_: None)

    def test_it_is_refused_with_the_reason(self):
        with pytest.raises(ProviderError, match=r"cuda: does not run here \(cuDNN is unavailable: dlopen failed"):
            make_session(PROBE, Path("probe.onnx"), "cuda")

    def test_auto_takes_the_cpu_and_says_why(self):
        _, provider, reason = make_session(PROBE, Path("probe.onnx"), "auto")
        assert provider == "cpu"
        assert "CUDA does not run: --provider cuda: does not run here (cuDNN is unavailable" in reason

    def test_doctor_says_so_and_asks_for_a_repair(self, monkeypatch):
        from slicemill import doctor

        found = doctor.examine_providers()
        assert any("cuda: --provider cuda: does not run here (cuDNN is unavailable" in line for line in found.lines)
        assert any("cuDNN is unavailable" in repair for repair in found.repairs)


class TestLibraries:
    def test_a_library_that_is_missing_is_named_with_the_way_out(self, nvidia_driver, monkeypatch):
        def load(path, mode=0):
            if path.endswith("cuda.so"):
                raise OSError("libcublasLt.so.13: cannot open shared object file")

        monkeypatch.setattr(providers.ctypes, "CDLL", load)
        assert explain_missing_library(onnxruntime, "openvino") is None
        assert explain_missing_library(onnxruntime, "tensorrt") is None
        with pytest.raises(
            ProviderError,
            match=r"does not run here \(libcublasLt.so.13: cannot open.*\). pip install 'slicemill\[gpu\]'",
        ):
            make_session(PROBE, Path("probe.onnx"), "cuda")

    def test_what_onnxruntime_prints_while_it_loads_libraries_is_not_printed(self, nvidia_driver, monkeypatch, capfd):
        calls = []

        def preload():
            calls.append("loaded")
            sys.stdout.write("Failed to load libcublasLt.so.13")

        monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
        for provider in ("cuda", "tensorrt"):
            load_libraries.cache_clear()
            with pytest.raises(ProviderError):
                make_session(PROBE, Path("probe.onnx"), provider)
        assert (capfd.readouterr(), calls) == (("", ""), ["loaded"] * 2)


def install(folder, name):
    """Install a distribution of onnxruntime into a folder, as far as its metadata say."""
    information = folder / f"{name.replace('-', '_')}-1.30.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.30.0\n")


class TestInstallations:
    @pytest.fixture(autouse=True)
    def path(self, monkeypatch):
        import_onnxruntime()
        monkeypatch.setattr(sys, "path", [])

    def test_two_packages_in_one_folder_overwrite_each_other(self, tmp_path):
        for name in ("onnxruntime", "onnxruntime-gpu"):
            install(tmp_path / "site", name)
        (tmp_path / "lib64").symlink_to(tmp_path / "site")
        for folders in (["site"], ["site", "lib64"], ["lib64", "site"]):
            sys.path[:] = [str(tmp_path / folder) for folder in folders]
            with pytest.raises(ProviderError, match="overwrite each other's files"):
                import_onnxruntime()

    def test_two_packages_in_different_folders_do_not_and_the_hidden_one_is_named(self, tmp_path):
        install(tmp_path / "image", "onnxruntime")
        install(tmp_path / "own", "onnxruntime-gpu")
        sys.path[:] = [str(tmp_path / "own"), str(tmp_path / "image")]
        assert import_onnxruntime() is onnxruntime
        assert installed_runtimes() == {
            "onnxruntime": tmp_path / "image" / "onnxruntime",
            "onnxruntime-gpu": tmp_path / "own" / "onnxruntime",
        }
        imported = types.SimpleNamespace(__version__="1.31.1", __file__=str(tmp_path / "own/onnxruntime/__init__.py"))
        assert describe_runtime(imported) == (
            f"onnxruntime 1.31.1 in {tmp_path}/own/onnxruntime; it hides onnxruntime in {tmp_path}/image/onnxruntime, "
            "which comes later on the import path"
        )

    def test_one_package_is_no_conflict(self, tmp_path):
        install(tmp_path, "onnxruntime-gpu")
        sys.path[:] = [str(tmp_path)]
        assert import_onnxruntime() is onnxruntime
