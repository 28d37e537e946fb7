"""Which execution provider runs: the one asked for, proved, or an error that names the repair.

onnxruntime lists providers that cannot start, and runs on the CPU without a word when they do not (its issue 23372).
So a session is made for one provider only, with its fallback switched off, and is asked afterwards what it runs on.
"""

import ctypes
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from slicemill.common.errors import ModelError, ProviderError, UsageError
from slicemill.infer.runtime.capacity import HOSTS, threads_of_session
from slicemill.infer.runtime.openvino import NAME, VinoSession
from slicemill.infer.runtime.tensorrt import TENSORRT, with_engine

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
NAMES: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": NAME,
}
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
CUDA = {
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "prefer_nhwc": "1",
    "fuse_conv_bias": "1",
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "1",
}
"""One shape for the whole run lets cuDNN search once; NHWC is what tensor cores take; a bias fused into its convolution saves a pass
over memory; an arena that doubles took 32 GB for a need of 16. Advice of the design notes, RUNTIME section 4, with its sources: no
GPU has measured them here yet, which `bench/gpu/infer.sh` does. Float32 convolutions use TF32, as onnxruntime's and torch's do."""
QUIET = 4
"""Log level fatal: what onnxruntime would print is in the exception that is shown."""

NOWHERE = "/dev/null/none"
"""Where onnxruntime looks for weights that a model keeps in other files: a folder that cannot be, so that no path in a model is followed."""


def runtime() -> Any:
    """Return the module onnxruntime.

    Raises
    ------
    ProviderError
        It is missing, or two packages wrote over each other.
    """
    installed = installed_runtimes()
    if len(installed) > 1:
        raise ProviderError(
            f"{' and '.join(installed)} are both installed and overwrite each other. Repair: pip uninstall -y {' '.join(installed)}; "
            "then pip install 'slicemill[gpu]' on a machine with an NVIDIA driver, else 'slicemill[cpu]'."
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime cannot be imported ({error}); pip install 'slicemill[cpu]', or [gpu] with an NVIDIA driver."
        ) from error
    if not hasattr(onnxruntime, "get_available_providers"):
        raise ProviderError(
            "onnxruntime is half removed. Repair: pip install --force-reinstall 'slicemill[cpu]' (or [gpu])."
        )
    return onnxruntime


def installed_runtimes() -> list[str]:
    """Return which of the packages that provide onnxruntime are installed, with versions."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            importlib.metadata.version(name)
            found.append(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver answers."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return bool(driver.cuInit(0) == 0)
    except OSError:
        return False


def make_session(
    model: bytes, path: Path, provider: Provider, device: int = 0, more: Mapping[str, str] | None = None
) -> tuple[Any, Provider, str]:
    """Return a session, the provider that it runs on, and why that one; `more` is what its provider is told beside the usual.

    On a CPU several runs at a time take all cores (`slicemill.infer.runtime.capacity`); one alone may not.

    Raises
    ------
    UsageError
        There is no such provider, or the CPU, which was asked for, has no such device.
    ProviderError
        The provider asked for does not run here, or nothing that auto may choose has such a device.
    ModelError
        The bytes are no ONNX model.
    """
    if provider == "openvino":
        options_for(provider, device)
        session = VinoSession(model, path, _session(model, path, "cpu"))
        return session, provider, f"asked for; computes in {session.precision}"
    if provider != "auto":
        return _session(model, path, provider, device, more), provider, "asked for"
    reason = no_cuda()
    if reason is None:
        try:
            return _session(model, path, "cuda", device, more), "cuda", "the CUDA provider starts"
        except ProviderError as error:
            reason = f"CUDA does not start: {error}"
    if device:
        raise ProviderError(f"--devices {device}: auto would take the CPU, which is one device, 0: {reason}.")
    return _session(model, path, "cpu"), "cpu", reason


def no_cuda() -> str | None:
    """Return why CUDA need not be tried, or None."""
    if NAMES["cuda"] not in runtime().get_available_providers():
        return "this onnxruntime has no CUDA provider"
    return None if has_nvidia_driver() else "no NVIDIA driver answers"


def options_for(provider: str, device: int) -> dict[str, str]:
    """Return what a provider is told: which GPU, and how to compute there.

    Raises
    ------
    UsageError
        The CPU has no device of that number.
    """
    if provider in HOSTS:
        if device:
            raise UsageError(
                f"--devices {device}: the CPU is one device, 0; name GPUs with --provider cuda or tensorrt."
            )
        return {}
    return {"device_id": str(device), **(CUDA if provider == "cuda" else TENSORRT)}


def check_name(provider: str) -> None:
    """Refuse what is no provider's name, nor auto.

    Raises
    ------
    UsageError
        It is none.
    """
    if provider != "auto" and provider not in NAMES:
        raise UsageError(f"--provider {provider}: choose one of auto, {', '.join(NAMES)}.")


def listed(provider: str) -> str:
    """Return onnxruntime's name of a provider that this onnxruntime was built with, which need not start.

    Raises
    ------
    UsageError
        There is no such provider.
    ProviderError
        This onnxruntime was built without it.
    """
    check_name(provider)
    name = NAMES[provider]
    if name not in runtime().get_available_providers():
        raise ProviderError(
            f"--provider {provider}: this onnxruntime ({', '.join(installed_runtimes())}) has no {name}; pip uninstall -y onnxruntime, "
            "then pip install 'slicemill[gpu]', or use --provider cpu."
        )
    return name


def _session(model: bytes, path: Path, provider: str, device: int = 0, more: Mapping[str, str] | None = None) -> Any:
    module, name = runtime(), listed(provider)
    told = options_for(provider, device) | dict(more or {})
    options = module.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads_of_session()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        module.preload_dlls()  # those that pip brought as packages, where torch has not loaded them
    try:
        session = with_engine(told, lambda now: module.InferenceSession(model, options, providers=[(name, dict(now))]))
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime raises many types, some of them private
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if provider == "cpu":
            raise ModelError(f"{path}: is not an ONNX model that onnxruntime can run ({reason}).") from error
        raise ProviderError(
            f"--provider {provider}: does not start here ({reason}). See `slicemill doctor`, or use --provider cpu."
        ) from error
    active = session.get_providers()[0]
    if active != name:
        raise ProviderError(
            f"--provider {provider}: onnxruntime fell back to {active}. See `slicemill doctor`, or use --provider cpu."
        )
    return session
