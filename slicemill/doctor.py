"""`slicemill doctor`: hardware, packages, working execution providers, and required repairs."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from slicemill.common.machine import machine_info

if TYPE_CHECKING:
    from slicemill.infer.runtime.providers import Provider

PRIVACY = (
    "privacy    NIfTI headers may name or describe a person: ingest keeps the geometry fields and blanks free text "
    "(--keep-text keeps it); file names and paths go into stores, tables and reports unchanged"
)

BFLOAT16_GAIN = "our default network was 1.4 times as fast on an AMD EPYC, and 2.6 times on an Intel with AMX"
"""Ratios of bench/results/openvino-avx512.json and openvino.json."""


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
    """Run a tiny network on every provider."""
    from slicemill.common.errors import InputError
    from slicemill.infer.runtime.providers import (
        NAMES,
        Provider,
        describe_runtime,
        has_nvidia_driver,
        import_onnxruntime,
    )

    try:
        runtime = import_onnxruntime()
    except InputError as error:
        return Examination(lines=("provider   none",), repairs=(str(error),))
    lines, repairs = [f"runtime    {describe_runtime(runtime)}"], []
    has_cuda = NAMES["cuda"] in runtime.get_available_providers()
    for name in get_args(Provider)[1:]:  # all but auto
        try:
            run_provider(name)
            lines.append(f"provider   {name}: runs")
        except InputError as error:
            lines.append(f"provider   {name}: {error}")
            if name == "cpu" or (name == "cuda" and has_nvidia_driver() and has_cuda):
                repairs.append(str(error))
    lines.append(f"bfloat16   {describe_bfloat16()}")
    if has_nvidia_driver() and not has_cuda:
        repairs.append(
            "an NVIDIA driver is installed, but onnxruntime has no CUDA: "
            "pip uninstall -y onnxruntime; pip install 'slicemill[gpu]'"
        )
    return Examination(lines=tuple(lines), repairs=tuple(repairs))


def describe_bfloat16() -> str:
    """Return whether `--provider auto` may compute in bfloat16 here, what it would gain, and what it needs."""
    from slicemill.infer.network.bfloat16 import has_bfloat16

    if not has_bfloat16():
        return "this processor has none"
    if find_spec("openvino") is None:
        return f"this processor has it, OpenVINO is missing: pip install 'slicemill[openvino]'; {BFLOAT16_GAIN}"
    return f"--provider auto takes OpenVINO if its labels are those of float32; {BFLOAT16_GAIN}"


def run_provider(name: "Provider") -> None:
    """Run a tiny network with convolutions on a provider, with each form of the bias that a model may have.

    Raises
    ------
    ProviderError
        The provider does not run here.
    """
    from slicemill.common.errors import ProviderError
    from slicemill.infer.runtime.messages import find_cause
    from slicemill.infer.runtime.probe import make_probe, run_probe
    from slicemill.infer.runtime.providers import make_session

    for bias_apart in (False, True):
        session, _, _ = make_session(make_probe(bias_apart=bias_apart), Path("tiny network"), name)
        try:
            run_probe(session)
        except Exception as error:  # runtimes raise many types, some of them private
            raise ProviderError(f"--provider {name}: starts, but fails to run ({find_cause(error)}).") from error
