"""What this machine has, what really starts on it, and what to repair."""

import os
import shutil
import tempfile
from pathlib import Path

from slicemill.common.machine import machine_info

TINY_MODEL = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX model of one Relu, opset 17."""
PRIVACY = (
    "privacy    NIfTI headers may name or describe a person: geometry fields are kept, free text is blanked (ingest --keep-text keeps it); "
    "file names and paths go into stores, tables and reports as they are"
)


def examine() -> tuple[list[str], list[str]]:
    """Return the lines to show, and the repairs that are needed."""
    machine = machine_info()
    lines = [
        f"processor  {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB memory",
        f"disk       {free_gb(Path.cwd()):,.0f} GB free here, {free_gb(Path(tempfile.gettempdir())):,.0f} GB in {tempfile.gettempdir()}",
        f"gpu        {'; '.join(machine['gpu']) or 'no NVIDIA card answers'}",
        f"python     {machine['python']} on {machine['system']}",
        *(f"package    {name} {version}" for name, version in machine["versions"].items()),
    ]
    said, repairs = providers()
    if not os.access(Path.cwd(), os.W_OK):
        repairs.append(f"{Path.cwd()} cannot be written")
    return [*lines, *said, PRIVACY], repairs


def free_gb(folder: Path) -> float:
    """Return the free space of a folder's disk."""
    return shutil.disk_usage(folder).free / 1e9


def providers() -> tuple[list[str], list[str]]:
    """Start a session of a tiny model on every provider, and say which run."""
    from slicemill.common.errors import InputError
    from slicemill.infer.runtime.providers import NAMES, has_nvidia_driver, installed_runtimes, make_session, runtime

    try:
        runtime()
    except InputError as error:
        return ["provider   none"], [str(error)]
    lines, repairs = [], []
    for name in NAMES:
        try:
            make_session(TINY_MODEL, Path("tiny model"), name)  # type: ignore[arg-type]
            lines.append(f"provider   {name}: starts")
        except InputError as error:
            lines.append(f"provider   {name}: {error}")
            if name == "cpu" or (name == "cuda" and has_nvidia_driver() and "onnxruntime-gpu" in installed_runtimes()):
                repairs.append(str(error))
    if has_nvidia_driver() and "onnxruntime-gpu" not in installed_runtimes():
        repairs.append(
            "an NVIDIA driver answers, but onnxruntime has no CUDA: pip uninstall -y onnxruntime; pip install 'slicemill[gpu]'"
        )
    return lines, repairs
