"""Execution providers: start the requested one and check that it runs, or raise an error with the fix.

onnxruntime lists providers that cannot start, and falls back to the CPU silently when they do not start (its issue
23372). So a session is made for one provider only, with the fallback off, and its active provider is checked.
"""

import contextlib
import ctypes
import importlib.metadata
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from slicemill.common.errors import ModelError, ProviderError, UsageError
from slicemill.common.extras import explain_import
from slicemill.common.telemetry import turn_off_telemetry
from slicemill.infer.runtime.capacity import HOSTS, session_threads
from slicemill.infer.runtime.messages import find_cause
from slicemill.infer.runtime.onnx_file import has_transpose_bias
from slicemill.infer.runtime.openvino import NAME, OpenvinoSession
from slicemill.infer.runtime.probe import make_probe, run_probe
from slicemill.infer.runtime.tensorrt import TENSORRT, start_with_engine

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
NAMES: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": NAME,
}
"""onnxruntime's names of the providers."""
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
CUDA = {
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "prefer_nhwc": "1",
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "1",
}
"""Options of the CUDA provider; `provider_options` adds `fuse_conv_bias`, which depends on the model. All batches of a
run have one shape, so cuDNN searches once. Tensor cores take NHWC. An arena that doubles took 32 GB where 16 were
needed. Convolutions in float32 use TF32, as onnxruntime and torch do by default. Not measured on a GPU yet; see
`bench/gpu/one.sh`."""
LIBRARIES = {"cuda": "libonnxruntime_providers_cuda.so", "tensorrt": "libonnxruntime_providers_tensorrt.so"}
"""onnxruntime's libraries of providers, in its folder `capi`."""
SHARED_LIBRARY = "libonnxruntime_providers_shared.so"
"""Their common library, which they expect to be loaded."""
INSTALL = {
    "cuda": "pip install 'slicemill[gpu]' installs CUDA and cuDNN; libcuda.so.1 comes with the NVIDIA driver",
    "tensorrt": "Install TensorRT 10 where the loader finds it",
}
"""How to install a library that is missing."""
NEWER = (
    "It is newer than this onnxruntime: export it with a lower opset_version or ir_version, or install a newer "
    "onnxruntime."
)
QUIET = 4
"""Log level fatal: the exception already contains what onnxruntime would print."""
NOWHERE = "/dev/null/none"
"""Folder where onnxruntime looks for weights in other files. It cannot exist, so no path in a model is followed."""


def import_onnxruntime() -> Any:
    """Return the module onnxruntime.

    Raises
    ------
    ProviderError
        It is missing, or two packages overwrote each other in one folder.
    """
    installed = installed_runtimes()
    if len(set(installed.values())) < len(installed):
        raise ProviderError(
            f"{' and '.join(installed)} are both installed and overwrite each other's files. "
            f"Repair: pip uninstall -y {' '.join(installed)}; "
            "then pip install 'slicemill[gpu]' on a machine with an NVIDIA driver, else 'slicemill[cpu]'."
        )
    missing = ProviderError(
        "onnxruntime is not installed; pip install 'slicemill[cpu]', or [gpu] with an NVIDIA driver."
    )
    turn_off_telemetry()
    with explain_import("onnxruntime", missing):
        import onnxruntime
    if not hasattr(onnxruntime, "get_available_providers"):
        raise ProviderError(
            "onnxruntime is half removed. Repair: pip install --force-reinstall 'slicemill[cpu]' (or [gpu])."
        )
    onnxruntime.set_default_logger_severity(QUIET)
    return onnxruntime


def installed_runtimes() -> dict[str, Path]:
    """Return the installed packages that provide onnxruntime, each with the folder that it was installed to."""
    installed = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            folder = importlib.metadata.distribution(name).locate_file("onnxruntime")
            installed[name] = Path(str(folder)).resolve()
    return installed


def describe_runtime(module: Any) -> str:
    """Return the version and folder of the imported onnxruntime, and the packages in other folders that it hides."""
    folder = Path(module.__file__).resolve().parent
    hidden = [f"{name} in {other}" for name, other in installed_runtimes().items() if other != folder]
    hides = f"; it hides {' and '.join(hidden)}, which comes later on the import path" if hidden else ""
    return f"onnxruntime {module.__version__} in {folder}{hides}"


@cache
def load_libraries(module: Any) -> None:
    """Load the CUDA libraries that pip installed as packages, once; onnxruntime does not find them by itself.

    What onnxruntime prints is dropped: `explain_missing_library` finds the reason, if a provider does not run.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        module.preload_dlls()


def explain_missing_library(module: Any, provider: str) -> str | None:
    """Return the loader's reason why the library of a provider cannot be loaded, or None if it can.

    onnxruntime only logs that reason and leaves the provider out.
    """
    if provider not in LIBRARIES:
        return None
    folder = Path(module.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / SHARED_LIBRARY), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / LIBRARIES[provider]))
    except OSError as error:
        return str(error)
    return None


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is installed and works."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return bool(driver.cuInit(0) == 0)
    except OSError:
        return False


def make_session(
    model: bytes, path: Path, provider: Provider, device: int = 0, more: Mapping[str, str] | None = None
) -> tuple[Any, Provider, str]:
    """Return a session, its provider, and the reason for that provider.

    On a CPU several runs at once use all cores (`slicemill.infer.runtime.capacity`); a single run may not.

    Parameters
    ----------
    model
        The bytes of the model file.
    path
        The file, for messages.
    more
        Options of the provider that are added to the defaults or replace them.

    Raises
    ------
    UsageError
        There is no such provider, or the CPU was requested and has no such device, or two options exclude each other.
    ProviderError
        The requested provider does not run here, or no provider that auto may choose has such a device.
    ModelError
        The bytes are not an ONNX model.
    """
    if provider == "openvino":
        provider_options(provider, device, model)  # refuses a device number
        session = OpenvinoSession(model, path, _session(model, path, "cpu"))
        return session, provider, f"requested; computes in {session.precision}"
    if provider != "auto":
        return _session(model, path, provider, device, more), provider, "requested"
    reason = explain_missing_cuda()
    if reason is None:
        try:
            return _session(model, path, "cuda", device, more), "cuda", "the CUDA provider runs"
        except ProviderError as error:
            reason = f"CUDA does not run: {error}"
    if device:
        raise ProviderError(f"--device {device}: auto would use the CPU, whose only device is 0: {reason}.")
    return _session(model, path, "cpu"), "cpu", reason


def explain_missing_cuda() -> str | None:
    """Return the reason why CUDA cannot start here, or None if it may start."""
    if NAMES["cuda"] not in import_onnxruntime().get_available_providers():
        return "this onnxruntime has no CUDA provider"
    return None if has_nvidia_driver() else "no NVIDIA driver found"


def provider_options(provider: Provider, device: int, model: bytes) -> dict[str, str]:
    """Return the options of a provider: which GPU, and how to compute there.

    A bias that is fused into its convolution saves a pass over memory. A ConvTranspose with a fused bias fails in
    onnxruntime since its pull request 21752, in 1.31.1 too: cuDNN refuses the graph. So biases are fused only in models
    in which no ConvTranspose has one, such as the flavors for GPUs that `slicemill export` writes.

    Parameters
    ----------
    model
        The bytes of the model file.

    Raises
    ------
    UsageError
        The CPU has no device of that number.
    """
    if provider in HOSTS:
        if device:
            raise UsageError(
                f"--device {device}: the CPU has only device 0; to choose GPUs, use --provider cuda or tensorrt."
            )
        return {}
    if provider == "tensorrt":
        return {"device_id": str(device), **TENSORRT}
    try:
        fuse = not has_transpose_bias(model)
    except ValueError:  # onnxruntime reports what is wrong with the file
        fuse = False
    return {"device_id": str(device), **CUDA, "fuse_conv_bias": str(int(fuse))}


def check_options(options: Mapping[str, str]) -> None:
    """Check that options of the CUDA provider give right results together.

    Raises
    ------
    UsageError
        A fused bias is combined with NCHW. onnxruntime then clears the output on another stream than it computes on.
    """
    if options.get("fuse_conv_bias") == "1" and options.get("prefer_nhwc") == "0":
        raise UsageError("fuse_conv_bias=1 with prefer_nhwc=0: onnxruntime may give wrong results; change one of them.")


def check_name(provider: str) -> None:
    """Check that a provider exists.

    Raises
    ------
    UsageError
        It is neither auto nor the name of a provider.
    """
    if provider != "auto" and provider not in NAMES:
        raise UsageError(f"--provider {provider}: choose one of auto, {', '.join(NAMES)}.")


def require_listed(provider: str) -> str:
    """Return onnxruntime's name of a provider that this onnxruntime was built with; it may still fail to start.

    Raises
    ------
    UsageError
        There is no such provider.
    ProviderError
        This onnxruntime was built without it.
    """
    check_name(provider)
    name = NAMES[provider]
    if name not in import_onnxruntime().get_available_providers():
        raise ProviderError(
            f"--provider {provider}: {describe_runtime(import_onnxruntime())} has no {name}; "
            "pip uninstall -y onnxruntime, then pip install 'slicemill[gpu]', or use --provider cpu."
        )
    return name


def _session(
    model: bytes, path: Path, provider: Provider, device: int = 0, more: Mapping[str, str] | None = None
) -> Any:
    module, name = import_onnxruntime(), require_listed(provider)
    settings = provider_options(provider, device, model) | dict(more or {})
    check_options(settings)
    if provider != "cpu":
        load_libraries(module)
    try:
        if provider == "cuda":
            _probe(module, name, settings)
        session = start_with_engine(settings, lambda final: _start(module, model, name, final))
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime raises many types, some of them private
        if provider == "cpu":
            reason = find_cause(error)
            way_out = f" {NEWER}" if any(word in reason for word in ("IR version", "opset")) else ""
            raise ModelError(f"{path}: is not an ONNX model that onnxruntime can run ({reason}).{way_out}") from error
        reason = explain_missing_library(module, provider) or find_cause(error)
        raise ProviderError(
            f"--provider {provider}: does not run here ({reason}). {_way_out(provider, reason)}"
        ) from error
    active = session.get_providers()[0]
    if active != name:
        reason = explain_missing_library(module, provider) or "for a reason that onnxruntime does not give"
        raise ProviderError(
            f"--provider {provider}: onnxruntime fell back to {active} ({reason}). {_way_out(provider, reason)}"
        )
    return session


def _way_out(provider: Provider, reason: str) -> str:
    install = f"{INSTALL[provider]}. " if provider in INSTALL and ".so" in reason else ""
    return f"{install}See `slicemill doctor`, or use --provider cpu."


def _start(module: Any, model: bytes, name: str, settings: Mapping[str, str]) -> Any:
    """Start a session on one provider. Every fallback is off, also that of onnxruntime's Python layer."""
    options = module.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = session_threads()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    if name != NAMES["cpu"]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return module.InferenceSession(model, options, providers=[(name, dict(settings))], enable_fallback=False)


def _probe(module: Any, name: str, settings: Mapping[str, str]) -> None:
    """Run a tiny network with the options of the real one.

    A CUDA graph is left out: it needs inputs that stay on the GPU.
    """
    model = make_probe(bias_apart=settings.get("fuse_conv_bias") == "1")
    run_probe(
        _start(module, model, name, {key: value for key, value in settings.items() if key != "enable_cuda_graph"})
    )
