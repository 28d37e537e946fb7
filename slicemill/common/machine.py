"""Description of the machine: hardware and versions, recorded with benchmarks and trained networks."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TypedDict

PACKAGES = (
    "slicemill",
    "numpy",
    "zarr",
    "numcodecs",
    "nibabel",
    "isal",
    "connected-components-3d",
    "dask",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
)


class Machine(TypedDict):
    """A machine and the versions on it, as written to records; keys in this order."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    caches: dict[str, str]
    """Size of each cache of a core, like ``L2: 1024K``."""
    memory_gib: float
    disk: str
    """File system of the temporary folder, and its free space."""
    gpu: list[str]
    """Name, memory and driver of each NVIDIA GPU."""
    system: str
    python: str
    versions: dict[str, str]
    """Installed packages among PACKAGES."""
    commit: str | None


def machine_info() -> Machine:
    """Describe this machine."""
    import psutil

    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": caches(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "disk": disk(Path(tempfile.gettempdir())),
        "gpu": gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def count_workers(requested: int) -> int:
    """Return a number of worker processes or threads; 0 is one per core.

    >>> count_workers(3), count_workers(0) >= 1
    (3, True)
    """
    return requested or len(os.sched_getaffinity(0))


def format_machine(machine: Machine) -> str:
    """Return the description as two lines of text."""
    memory = f"{machine['memory_gib']} GiB of memory"
    cache = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    gpu = "; ".join(machine["gpu"]) or "no NVIDIA GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    processor = f"{machine['cores']} cores of {machine['cpu']} ({cache or 'caches unknown'})"
    hardware = f"{processor}, {memory}, {machine['disk']}, {gpu}"
    return f"{hardware}\n{machine['system']}, Python {machine['python']}, {versions}, commit {machine['commit']}"


def caches() -> dict[str, str]:
    """Return the size of each cache of the first core, as Linux reports it."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (" ".join(_lines(folder / name)) for name in ("level", "type", "size"))
        sizes[f"L{level}{kind[:1].lower() if kind in ('Data', 'Instruction') else ''}"] = size
    return sizes


def disk(folder: Path) -> str:
    """Return the file system of a folder and its free space."""
    import psutil

    partition = max(
        (part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    free = shutil.disk_usage(folder).free / 2**30
    return f"{partition.fstype if partition else 'unknown file system'}, {free:.0f} GiB free"


def processor() -> str:
    """Return the processor's name."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return the features of the processor as Linux names them, like ``avx2``; empty where they are unknown."""
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def gpus() -> list[str]:
    """Return name, memory and driver of each NVIDIA GPU."""
    return _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])


def versions() -> dict[str, str]:
    """Return the versions of the installed packages among PACKAGES."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def commit() -> str | None:
    """Return the commit of the checkout that this runs from, marked if files changed; None outside a checkout."""
    here = str(Path(__file__).parent)
    if not _output(["git", "-C", here, "ls-files", Path(__file__).name]):
        return None  # installed inside the checkout of another project
    head = _output(["git", "-C", here, "rev-parse", "--short=12", "HEAD"])
    if not head:
        return None
    changed = _output(["git", "-C", here, "status", "--porcelain", "--untracked-files=no"])
    return head[0] + ("-changed" if changed else "")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _output(command: list[str]) -> list[str]:
    program = shutil.which(command[0])
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 (fixed commands)
            [program, *command[1:]], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
