"""Options of the TensorRT provider, and the folders of its engines.

An engine takes minutes to build and is valid for one model, batch, GPU and set of versions only. It is built for
exactly one shape, the shape of the run's batches, and kept in a folder named after these. All models of a GPU share the
timings of its kernels. The options are those in the documentation of onnxruntime's TensorRT provider.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slicemill.common.errors import ProviderError
from slicemill.common.terminal import print_line

ENGINES = Path(".cache", "slicemill", "tensorrt")
"""Folder of the engines, relative to the home folder."""
LIBRARY = "libnvinfer.so.10"
"""The library that every onnxruntime-gpu on the package index links, up to 1.31."""
FOLDER, TIMINGS = "trt_engine_cache_path", "trt_timing_cache_path"
TENSORRT = {
    "trt_fp16_enable": "0",
    "trt_bf16_enable": "0",
    "trt_int8_enable": "0",
    "trt_cuda_graph_enable": "0",
    "trt_builder_optimization_level": "5",
}
"""With fp16, bf16 and int8 off, the network is built strongly typed, in the precision of the file. An engine is built
once and used for thousands of scans, so the builder runs at the highest level. CUDA graphs failed at the second batch
(onnxruntime issue 20050)."""

Session = TypeVar("Session")


@dataclass(frozen=True, kw_only=True)
class Builder:
    """The GPU and the versions that an engine is built for."""

    gpu: str
    onnxruntime: str
    tensorrt: str

    @property
    def folder(self) -> str:
        """Return the name of the folder of its engines.

        >>> Builder(gpu="NVIDIA H200", onnxruntime="1.30.0", tensorrt="10.16.1").folder
        'NVIDIA-H200_onnxruntime-1.30.0_tensorrt-10.16.1'
        """
        name = f"{self.gpu}_onnxruntime-{self.onnxruntime}_tensorrt-{self.tensorrt}"
        return re.sub(r"[^\w.-]+", "-", name)


def engine_folder(root: Path, builder: Builder, sha256: str, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Return the folder of the engines of one model, by the hash of its file, for one batch."""
    shape = hashlib.sha256(profile(shapes).encode()).hexdigest()
    return root / ENGINES / builder.folder / f"{sha256[:16]}-{shape[:8]}"


def profile(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Format the shapes of inputs for the provider.

    >>> profile({"image": (70, 1, 512, 512, 2), "neighbors": (32, 3)})
    'image:70x1x512x512x2,neighbors:32x3'
    """
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def engine_options(shapes: Mapping[str, tuple[int, ...]], folder: Path) -> dict[str, str]:
    """Return the options for one model: the only shape of its batches, and the folders of engine and timings."""
    only = profile(shapes)
    return {
        "trt_profile_min_shapes": only,
        "trt_profile_opt_shapes": only,
        "trt_profile_max_shapes": only,
        "trt_engine_cache_enable": "1",
        FOLDER: str(folder),
        "trt_timing_cache_enable": "1",
        TIMINGS: str(folder.parent),
    }


def start_with_engine(options: Mapping[str, str], start: Callable[[Mapping[str, str]], Session]) -> Session:
    """Start a session with a complete engine. If several runs need it, one builds it and the others wait.

    1. A finished engine is used. If it does not start, it is built again and replaced when the new one is complete.
    2. onnxruntime writes engines and timings in place, so it builds them in a temporary folder, with the timings known
       so far.
    3. Once the session starts, the timings move to the folder that all engines of the GPU share.
    4. The temporary folder is renamed to the engine's name. A build that is killed leaves nothing that another run
       reads.

    Raises
    ------
    ProviderError
        The folder cannot be made or written.
    """
    if FOLDER not in options:
        return start(options)
    folder = Path(options[FOLDER])
    aside = folder.with_name(f".{folder.name}.part")
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            with contextlib.suppress(Exception):  # if the cause is not the engine, the build below reports it
                return start(options)
        with _report_disk_errors(folder):
            _make_empty(aside)
            for timings in folder.parent.glob("*.timing"):
                shutil.copyfile(timings, aside / timings.name)
        session = start({**options, FOLDER: str(aside), TIMINGS: str(aside)})
        with _report_disk_errors(folder):
            for timings in aside.glob("*.timing"):
                timings.replace(folder.parent / timings.name)
            old = folder.with_name(f".{folder.name}.old")
            _make_empty(old)
            if folder.is_dir():
                folder.rename(old / folder.name)
            aside.rename(folder)
            shutil.rmtree(old, ignore_errors=True)  # another process may have it open
        return session


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _report_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("wb")
    with lock:
        with _report_disk_errors(path):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print_line(f"{path.parent}: another run is building this engine; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _report_disk_errors(folder: Path) -> Iterator[None]:
    """Convert errors of the file system into a ProviderError that names the folder."""
    try:
        yield
    except OSError as error:
        raise ProviderError(f"{folder}: cannot store TensorRT engines here: {error.strerror}.") from error


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def gpu_name(device: int) -> str:
    """Return the name of a GPU, by its number among those visible to this process.

    Raises
    ------
    ProviderError
        There is no driver, or no such GPU.
    """
    name, handle = ctypes.create_string_buffer(256), ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ProviderError(f"--provider tensorrt: no NVIDIA driver found ({error}).") from error
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(device))
        or driver.cuDeviceGetName(name, ctypes.c_int(len(name)), handle)
    )
    if failed:
        raise ProviderError(f"--provider tensorrt: there is no GPU {device} here (CUDA error {failed}).")
    return name.value.decode(errors="replace")


def tensorrt_version() -> str:
    """Return the version of the TensorRT library that onnxruntime loads.

    Raises
    ------
    ProviderError
        It cannot be loaded.
    """
    try:
        number = int(ctypes.CDLL(LIBRARY).getInferLibVersion())
    except OSError as error:
        raise ProviderError(
            f"--provider tensorrt: {LIBRARY} cannot be loaded ({error}); install TensorRT 10 (10.13 or later) where "
            "the loader finds it, or use --provider cuda."
        ) from error
    return format_version(number)


def format_version(number: int) -> str:
    """Format the number that getInferLibVersion returns; TensorRT 10 counts in steps of 10,000, 100 and 1.

    >>> format_version(101601)
    '10.16.1'
    """
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
