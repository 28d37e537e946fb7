"""Limits of this machine, measured: memory copy, disk, matrix products, convolutions, and copies to a GPU.

They bound the figures of all stages. Products and convolutions run through torch on all cores, in float32 and
bfloat16, at the sizes of the middle of a U-Net. Command: `slicemill bench limits`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import asdict
from torch import nn

from slicemill.bench.harness.clock import Timing, Work, show_progress, time_rounds
from slicemill.bench.harness.cores import count_cores, torch_threads
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.pagecache import drop_from_cache
from slicemill.bench.schema.base import LimitsRecord, MachineLimit, origin

COPY_BYTES = 256 << 20
"""Much more than the private caches of a core."""
DISK_BYTES = 256 << 20
SIDE, CHANNELS, PIXELS, BATCH = 2048, 64, 128, 4
"""A matrix of SIDE x SIDE; a 3x3 convolution of CHANNELS to CHANNELS on a batch of PIXELS x PIXELS."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Work that one part of the machine limits."""

    work: Work
    amount: float
    """Amount of work per round, in the unit times seconds."""
    unit: str

    def record(self, timing: Timing) -> MachineLimit:
        """Return the record."""
        most = round(self.amount / min(timing.seconds), 2)
        return MachineLimit(**asdict(timing.rate(self.amount)), most=most, unit=self.unit)


def run(folder: Path, *, rounds: int) -> Record:
    """Measure the limits and return the record; the measured disk is the one that holds `folder`."""
    limits = make_limits(folder)
    works = {name: limit.work for name, limit in limits.items()}
    with torch_threads(count_cores()), show_progress("limits", len(works), rounds) as log:
        times = time_rounds(works, rounds=rounds, log=log)
    results = {name: limit.record(times[name]) for name, limit in limits.items()}
    return LimitsRecord(**origin(), results=results).as_json()


def make_limits(folder: Path) -> dict[str, Limit]:
    """Return the limits that can be measured here."""
    has_gpu = torch.cuda.is_available()
    copy_gb, conv_gflop = COPY_BYTES / 1e9, convolution_flops() / 1e9
    limits = {
        "memory copy": Limit(work=copy(), amount=copy_gb, unit="GB/s"),
        "disk, read with a cold cache": Limit(work=disk(folder), amount=DISK_BYTES / 1e9, unit="GB/s"),
    }

    def add(name: str, work: Work, gflop: float) -> None:
        limits[name] = Limit(work=work, amount=gflop, unit="GFLOP/s")

    for kind in (torch.float32, torch.bfloat16):
        name = str(kind).removeprefix("torch.")
        add(f"matrix product, {name}", product(kind, "cpu"), 2 * SIDE**3 / 1e9)
        add(f"convolution, {name}", convolution(kind, "cpu"), conv_gflop)
        if has_gpu:
            add(f"convolution, {name}, card", convolution(kind, "cuda"), conv_gflop)
            add(f"matrix product, {name}, card", product(kind, "cuda"), 2 * (4 * SIDE) ** 3 / 1e9)
    if has_gpu:
        limits["copy to the card, pinned"] = Limit(work=copy_to_gpu(), amount=copy_gb, unit="GB/s")
    return limits


def copy() -> Work:
    """Return a function that copies COPY_BYTES in memory, in one thread."""
    source, target = (np.ones(COPY_BYTES, dtype=np.uint8) for _ in range(2))
    return lambda: np.copyto(target, source)


def disk(folder: Path) -> Work:
    """Return a function that reads DISK_BYTES from a file that is dropped from the page cache first."""
    path = folder / "disk"
    path.write_bytes(os.urandom(DISK_BYTES))
    buffer = memoryview(bytearray(8 << 20))

    def work() -> None:
        drop_from_cache([path])
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return work


def product(kind: torch.dtype, device: str) -> Work:
    """Return a function that multiplies two square matrices."""
    side = SIDE if device == "cpu" else 4 * SIDE
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))

    def work() -> Any:
        out = one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return work


def convolution_flops() -> float:
    """Return the floating-point operations of the convolution: two per weight and pixel."""
    return 2.0 * BATCH * CHANNELS * CHANNELS * 9 * PIXELS * PIXELS


def convolution(kind: torch.dtype, device: str) -> Work:
    """Return a function that runs a forward convolution, channels last."""
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, device=device).to(kind)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's annotations
    batch = torch.randn(BATCH, CHANNELS, PIXELS, PIXELS, device=device).to(kind)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def work() -> Any:
        with torch.inference_mode():
            out = layer(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return work


def copy_to_gpu() -> Work:
    """Return a function that copies COPY_BYTES from pinned memory to a GPU."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device="cuda")

    def work() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    return work
