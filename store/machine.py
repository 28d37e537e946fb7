"""The card of a machine: what a figure was measured on, and what a network was trained with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("slicemill", "numpy", "zarr", "numcodecs", "nibabel", "isal", "connected-components-3d", "dask", "torch", "onnx", "onnxruntime",
            "onnxruntime-gpu")  # fmt: skip


def card() -> dict[str, Any]:
    """Return processor, cores, memory, GPU, versions and commit."""
    import psutil

    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


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
