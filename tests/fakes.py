"""Stand-ins for hardware and libraries that the test machine does not have."""

import ctypes
from pathlib import Path

import onnxruntime


class CudaRuntime:
    """The functions of the CUDA runtime that `CudaDevice` calls, in main memory. It records copies and devices."""

    def __init__(self):
        self.held, self.copied, self.devices, self.fails, self.cleared = {}, [], set(), "", 0

    def __getattribute__(self, name):
        if name.startswith("cuda") and name == object.__getattribute__(self, "fails"):
            return lambda *_: 2
        return object.__getattribute__(self, name)

    def cudaSetDevice(self, device):  # noqa: N802
        self.devices.add(device.value)
        return 0

    def cudaHostAlloc(self, address, size, flags):  # noqa: N802
        memory = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        address._obj.value = ctypes.addressof(memory)
        self.held[ctypes.addressof(memory)] = memory
        return 0

    def cudaFreeHost(self, address):  # noqa: N802
        del self.held[address.value]
        return 0

    def cudaMemcpy(self, target, source, size, kind):  # noqa: N802
        assert kind.value == 4
        ctypes.memmove(target, source, size.value)
        self.copied.append(size.value)
        return 0

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        return 0

    def cudaGetLastError(self):  # noqa: N802
        self.cleared += 1
        return 0

    @property
    def cudaGetErrorString(self):  # noqa: N802
        def message(code):
            return b"out of memory"

        return message


class CudaDriver:
    """The functions of the CUDA driver that name a GPU; there are two."""

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGet(self, handle, device):  # noqa: N802
        handle._obj.value = 7
        return 0 if device.value < 2 else 101

    def cuDeviceGetName(self, name, size, handle):  # noqa: N802
        name.value = f"NVIDIA H200 at {handle.value}".encode()
        return 0


def build_or_read_engine(options):
    """Do with an engine's file what onnxruntime does: read it if it exists, else write it in pieces, with timings."""
    if "trt_engine_cache_path" not in options:
        return
    engine = Path(options["trt_engine_cache_path"]) / "network.engine"
    if engine.exists():
        if engine.read_text() != "whole":
            raise RuntimeError("could not deserialize engine")
        return
    engine.write_text("wh")
    (Path(options["trt_timing_cache_path"]) / "sm90.timing").write_text("timings")
    engine.write_text("whole")


def play_tensorrt(monkeypatch, home):
    """Let onnxruntime's CPU play TensorRT, with engines below `home`; return the options of its sessions."""
    real, sessions = onnxruntime.InferenceSession, []

    class Session:
        def __init__(self, model, options, providers, enable_fallback):
            assert not enable_fallback
            ((name, provider_options),) = providers
            self.name, self.real = name, real(model, options, providers=["CPUExecutionProvider"])
            if name != "CPUExecutionProvider":
                assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
                sessions.append(provider_options)
                build_or_read_engine(provider_options)

        def get_providers(self):
            return [self.name]

        def __getattr__(self, name):
            return getattr(self.real, name)

    class Options(onnxruntime.SessionOptions):
        """The CPU refuses to start with the fallback to it off, so the entries are only kept."""

        def add_session_config_entry(self, key, value):
            self.entries = {key: value}

        def get_session_config_entry(self, key):
            return self.entries[key]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr("slicemill.infer.network.model.gpu_name", lambda device: f"NVIDIA H200 {device}")
    monkeypatch.setattr("slicemill.infer.network.model.tensorrt_version", lambda: "10.16.1")
    monkeypatch.setattr(Path, "home", lambda: home)
    return sessions
