"""The device of a training, its cores and its precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slicemill.common.errors import ConfigError, UsageError
from slicemill.train.network.processes import ALONE, Processes


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """Return the device of this process; auto is CUDA if there is one.

    Raises
    ------
    UsageError
        The kind of device is unknown.
    ConfigError
        The device cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.count > 1:
        name = f"cuda:{processes.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name}: is unknown. Choose auto, cpu, cuda or cuda:N.") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name}: cannot be used here ({str(error).splitlines()[0]}). Choose cpu, or auto."
        ) from error
    return device


@contextmanager
def use_cores(device: torch.device, processes: Processes = ALONE) -> Iterator[None]:
    """Let torch use this process's share of the cores while the block runs, if the network runs on the CPU.

    One process uses no more threads than OMP_NUM_THREADS or the caller allows. For several, `torchrun` sets it to 1.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        share = max(1, len(os.sched_getaffinity(0)) // processes.count)
        torch.set_num_threads(min(before, share) if processes.count == 1 else share)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def search_algorithms(device: torch.device) -> Iterator[None]:
    """Let cuDNN time its algorithms for each convolution and keep the fastest while the block runs, if it is on a GPU.

    Each new shape is timed again. So use this for batches of one shape, as in training, and not for validation.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the requested precision of the network; auto is bf16 if the hardware supports it."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type != "cpu":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(capable.get("amx_bf16") or capable.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32
