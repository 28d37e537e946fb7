"""The card of a machine: what a figure was measured on, and what a network was trained with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PACKAGES = ("slicemill", "numpy", "zarr", "numcodecs", "nibabel", "isal", "connected-components-3d", "dask", "torch", "onnx", "onnxruntime",
            "onnxruntime-gpu")  # fmt: skip


def machine_info() -> dict[str, Any]:
    """Return processor, cores, caches, memory, disk, GPU, versions and commit."""
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


def format_machine(machine: dict[str, Any]) -> str:
    """Return a card in a line or two."""
    memory = f"{machine['memory_gib']} GiB of memory"
    cache = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    gpu = "; ".join(machine["gpu"]) or "no NVIDIA GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    first = f"{machine['cores']} cores of {machine['cpu']} ({cache or 'caches unknown'}), {memory}, {machine['disk']}, {gpu}"
    return f"{first}\n{machine['system']}, Python {machine['python']}, {versions}, commit {machine['commit']}"


def caches() -> dict[str, str]:
    """Return the size of each cache of the first core, as Linux tells it."""
    found = {}
    for place in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (" ".join(_lines(place / name)) for name in ("level", "type", "size"))
        found[f"L{level}{kind[:1].lower() if kind in ('Data', 'Instruction') else ''}"] = size
    return found


def disk(folder: Path) -> str:
    """Return the file system that a folder lies on, and how much is free."""
    import psutil

    at = max(
        (part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    free = shutil.disk_usage(folder).free / 2**30
    return f"{at.fstype if at else 'unknown file system'}, {free:.0f} GiB free"


def processor() -> str:
    """Return the processor's name."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Return the names of NVIDIA cards that answer."""
    return _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the checkout that this runs from, marked when it was changed; None outside a checkout."""
    here = str(Path(__file__).parent)
    if not _output(["git", "-C", here, "ls-files", Path(__file__).name]):
        return None  # installed below someone else's checkout
    found = _output(["git", "-C", here, "rev-parse", "--short=12", "HEAD"])
    if not found:
        return None
    return found[0] + (
        "-changed" if _output(["git", "-C", here, "status", "--porcelain", "--untracked-files=no"]) else ""
    )


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
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 (fixed commands)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
