"""`slicemill doctor`: hardware, packages, working execution providers, and required repairs."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from slicemill.common.machine import machine_info

TINY_MODEL = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX model of one Relu, opset 17."""
PRIVACY = (
    "privacy    NIfTI headers may name or describe a person: ingest keeps the geometry fields and blanks free text "
    "(--keep-text keeps it); file names and paths go into stores, tables and reports unchanged"
)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Findings and repairs."""

    lines: tuple[str, ...]
    """Findings, a line each."""
    repairs: tuple[str, ...]
    """Required repairs; empty if nothing is wrong."""


def examine() -> Examination:
    """Examine the machine, the installed packages and the execution providers."""
    machine, here, temporary = machine_info(), Path.cwd(), Path(tempfile.gettempdir())
    lines = (
        f"processor  {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB memory",
        f"disk       {free_gb(here):,.0f} GB free here, {free_gb(temporary):,.0f} GB in {temporary}",
        f"gpu        {'; '.join(machine['gpu']) or 'no NVIDIA GPU found'}",
        f"python     {machine['python']} on {machine['system']}",
        *(f"package    {name} {version}" for name, version in machine["versions"].items()),
    )
    providers = examine_providers()
    blocked = () if os.access(here, os.W_OK) else (f"{here} cannot be written",)
    return Examination(
        lines=(*lines, *providers.lines, PRIVACY),
        repairs=(*providers.repairs, *blocked),
    )


def free_gb(folder: Path) -> float:
    """Return the free space of a folder's disk, GB."""
    return shutil.disk_usage(folder).free / 1e9


def examine_providers() -> Examination:
    """Start a session of a tiny model on every provider."""
    from slicemill.common.errors import InputError
    from slicemill.infer.runtime.providers import (
        Provider,
        has_nvidia_driver,
        import_onnxruntime,
        installed_runtimes,
        make_session,
    )

    try:
        import_onnxruntime()
    except InputError as error:
        return Examination(lines=("provider   none",), repairs=(str(error),))
    lines, repairs = [], []
    gpu_runtime = "onnxruntime-gpu" in installed_runtimes()
    for name in get_args(Provider)[1:]:  # all but auto
        try:
            make_session(TINY_MODEL, Path("tiny model"), name)
            lines.append(f"provider   {name}: starts")
        except InputError as error:
            lines.append(f"provider   {name}: {error}")
            if name == "cpu" or (name == "cuda" and has_nvidia_driver() and gpu_runtime):
                repairs.append(str(error))
    if has_nvidia_driver() and not gpu_runtime:
        repairs.append(
            "an NVIDIA driver is installed, but onnxruntime has no CUDA: "
            "pip uninstall -y onnxruntime; pip install 'slicemill[gpu]'"
        )
    return Examination(lines=tuple(lines), repairs=tuple(repairs))
