"""What the TensorRT provider is told, and where its engines are kept.

An engine takes minutes to build and holds for one model, batch, GPU and set of versions only. It is built for exactly one
shape, that of the run's batches, and kept in a folder of that name; timings of kernels are shared by all models of a GPU.
The options are those of onnxruntime's TensorRT provider (its documentation; design notes, RUNTIME section 4).
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
"""Below the home folder."""
LIBRARY = "libnvinfer.so.10"
"""What every onnxruntime-gpu on the package index links, up to 1.31 (RUNTIME section 1.1)."""
FOLDER, TIMINGS = "trt_engine_cache_path", "trt_timing_cache_path"
TENSORRT = {
    "trt_fp16_enable": "0",
    "trt_bf16_enable": "0",
    "trt_int8_enable": "0",
    "trt_cuda_graph_enable": "0",
    "trt_builder_optimization_level": "5",
}
"""Precision is as the file is typed: with all of these off the network is built strongly typed. An engine is built once
and used for thousands of scans, so its builder tries all it knows. CUDA graphs failed at the second batch (issue 20050)."""

Session = TypeVar("Session")


@dataclass(frozen=True, kw_only=True)
class Builder:
    """What an engine is built on, and holds for."""

    gpu: str
    onnxruntime: str
    tensorrt: str

    @property
    def folder(self) -> str:
        """Return a name for a folder.

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
    """Return shapes of inputs as the provider takes them.

    >>> profile({"image": (70, 1, 512, 512, 2), "neighbors": (32, 3)})
    'image:70x1x512x512x2,neighbors:32x3'
    """
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def engine_options(shapes: Mapping[str, tuple[int, ...]], folder: Path) -> dict[str, str]:
    """Return what the provider is told of one model: the only shape that it will see, and where its engine and timings are kept."""
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


def with_engine(told: Mapping[str, str], start: Callable[[Mapping[str, str]], Session]) -> Session:
    """Return what `start` makes of the options, with an engine that is whole; of several runs one builds it, the others wait.

    onnxruntime writes engines and timings in place, so they are built in a folder aside, which takes the engine's name once the session
    stands: a build that is killed leaves nothing that another run would read. An engine that does not start is built again, and
    kept until the new one is there.

    Raises
    ------
    ProviderError
        The folder cannot be made or written.
    """
    if FOLDER not in told:
        return start(told)
    folder = Path(told[FOLDER])
    aside = folder.with_name(f".{folder.name}.part")
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            with contextlib.suppress(Exception):  # whatever is wrong beside the engine, the build says it
                return start(told)
        with _kept_in(folder):
            _emptied(aside)
            for timings in folder.parent.glob("*.timing"):
                shutil.copyfile(timings, aside / timings.name)
        session = start({**told, FOLDER: str(aside), TIMINGS: str(aside)})
        with _kept_in(folder):
            for timings in aside.glob("*.timing"):
                timings.replace(folder.parent / timings.name)
            old = folder.with_name(f".{folder.name}.old")
            _emptied(old)
            if folder.is_dir():
                folder.rename(old / folder.name)
            aside.rename(folder)
            shutil.rmtree(old, ignore_errors=True)  # a process that has it open may keep it
        return session


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _kept_in(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("wb")
    with lock:
        with _kept_in(path):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print_line(f"{path.parent}: another run builds this engine; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProviderError(f"{folder}: TensorRT's engines cannot be kept there: {error.strerror}.") from error


def _emptied(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def gpu_name(device: int) -> str:
    """Return the name of a GPU by its number among those that this process sees.

    Raises
    ------
    ProviderError
        No driver answers, or there is no such GPU.
    """
    name, handle = ctypes.create_string_buffer(256), ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ProviderError(f"--provider tensorrt: no NVIDIA driver answers ({error}).") from error
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(device))
        or driver.cuDeviceGetName(name, ctypes.c_int(len(name)), handle)
    )
    if failed:
        raise ProviderError(f"--provider tensorrt: there is no GPU {device} here (CUDA error {failed}).")
    return name.value.decode(errors="replace")


def tensorrt_version() -> str:
    """Return the version of the TensorRT library that onnxruntime will load.

    Raises
    ------
    ProviderError
        It cannot be loaded.
    """
    try:
        number = int(ctypes.CDLL(LIBRARY).getInferLibVersion())
    except OSError as error:
        raise ProviderError(
            f"--provider tensorrt: {LIBRARY} cannot be loaded ({error}); install TensorRT 10 (10.13 or later) where the "
            "loader finds it, or use --provider cuda."
        ) from error
    return version_of(number)


def version_of(number: int) -> str:
    """Return what getInferLibVersion says in words; TensorRT 10 counts in steps of 10,000, 100 and 1.

    >>> version_of(101601)
    '10.16.1'
    """
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
