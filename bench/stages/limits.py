"""What this machine can do at most, measured: memory copy, disk, matrix products, convolutions, and copies to a card.

No figure of a stage means much without these. Products and convolutions go through torch with all cores, in float32 and in
bfloat16, on the sizes that a U-Net has in its middle.
"""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slicemill.bench.harness.clock import Timing, interleaved
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.pagecache import drop
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress

COPY_BYTES = 256 << 20
"""Well past the last cache that a core has to itself."""
DISK_BYTES = 256 << 20
SIDE, CHANNELS, PIXELS, BATCH = 2048, 64, 128, 4
"""A matrix of SIDE x SIDE; a convolution 3x3 of CHANNELS to CHANNELS on a batch of PIXELS x PIXELS."""


def run(folder: Path, *, rounds: int) -> Record:
    """Measure the limits and return the record; `folder` lies on the disk that is measured."""
    cards = torch.cuda.is_available()
    work: dict[str, tuple[Callable[[], object], float, str]] = {
        "memory copy": (copy(), COPY_BYTES / 1e9, "GB/s"),
        "disk, read with a cold cache": (disk(folder), DISK_BYTES / 1e9, "GB/s"),
    }
    for kind in (torch.float32, torch.bfloat16):
        name = str(kind).removeprefix("torch.")
        work[f"matrix product, {name}"] = (product(kind, "cpu"), 2 * SIDE**3 / 1e9, "GFLOP/s")
        work[f"convolution, {name}"] = (convolution(kind, "cpu"), convolution_flops() / 1e9, "GFLOP/s")
        if cards:
            work[f"convolution, {name}, card"] = (convolution(kind, "cuda"), convolution_flops() / 1e9, "GFLOP/s")
            work[f"matrix product, {name}, card"] = (product(kind, "cuda"), 2 * (4 * SIDE) ** 3 / 1e9, "GFLOP/s")
    if cards:
        work["copy to the card, pinned"] = (to_card(), COPY_BYTES / 1e9, "GB/s")
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        with progress("limits", (rounds + 1) * len(work), "runs") as advance:
            contenders = {name: timed for name, (timed, _, _) in work.items()}
            times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name))
    finally:
        torch.set_num_threads(before)
    return {
        "benchmark": "limits",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "results": {name: result(times[name], amount, unit) for name, (_, amount, unit) in work.items()},
        "machine": machine_info(),
    }


def result(timing: Timing, amount: float, unit: str) -> Record:
    """Return a limit's record: a rate is that of the best round, since nothing makes a machine faster than it is."""
    return {**timing.as_json(amount), "most": round(amount / min(timing.seconds), 2), "unit": unit}


def copy() -> Callable[[], object]:
    """Return a copy of COPY_BYTES in memory, one thread."""
    source, target = (np.ones(COPY_BYTES, dtype=np.uint8) for _ in range(2))
    return lambda: np.copyto(target, source)


def disk(folder: Path) -> Callable[[], object]:
    """Return a read of DISK_BYTES of a file that the system has been asked to forget."""
    path = folder / "disk"
    path.write_bytes(os.urandom(DISK_BYTES))
    buffer = memoryview(bytearray(8 << 20))

    def work() -> None:
        drop([path])
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return work


def product(kind: torch.dtype, device: str) -> Callable[[], object]:
    """Return a product of two square matrices."""
    side = SIDE if device == "cpu" else 4 * SIDE
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))

    def work() -> Any:
        out = one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return work


def convolution_flops() -> float:
    """Return the floating-point operations of the convolution: two a weight and pixel."""
    return 2.0 * BATCH * CHANNELS * CHANNELS * 9 * PIXELS * PIXELS


def convolution(kind: torch.dtype, device: str) -> Callable[[], object]:
    """Return a forward convolution, channels last."""
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, device=device).to(kind)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch leaves this one out
    given = torch.randn(BATCH, CHANNELS, PIXELS, PIXELS, device=device).to(kind)
    given = given.contiguous(memory_format=torch.channels_last)

    def work() -> Any:
        with torch.inference_mode():
            out = layer(given)
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return work


def to_card() -> Callable[[], object]:
    """Return a copy of COPY_BYTES from pinned memory to a card."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device="cuda")

    def work() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    return work
