"""Batch size and concurrency per provider. GPU batches have one shape, which the provider optimizes for."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slicemill.common.errors import ConfigError

if TYPE_CHECKING:
    from slicemill.store.model_card import ModelInfo

HOSTS = ("cpu", "openvino")
"""Providers that compute on the processor."""
CPU_PIXELS = 2 * 512 * 512
"""Pixels in a batch on the CPU; more gains nothing there (`slicemill bench constants`)."""
GPU_PIXELS = 32 * 512 * 512
"""Pixels in a batch on a GPU."""
CPU_LANES = 8
"""Maximum number of batches that run at once on a CPU.

Each holds intermediate results, 0.4 GB with the default network at 512x512.
Measured on two-core machines only."""
LANES = 2
"""Batches in progress on other devices by default: one computes while the other is emptied and filled.

Not measured on a GPU yet; `python -m slicemill.bench.stages.infer_gpu --lanes 3` tries another number."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of one batch."""

    labels: int
    """Slices to label."""
    rows: int
    """Input slices: those to label and their context, each once."""


def batch_capacity(info: "ModelInfo", provider: str, batch: int = 0) -> Capacity:
    """Return the limits of a batch; `batch` is the requested number of slices to label, 0 for the provider's default.

    Raises
    ------
    ConfigError
        The model takes one slice at a time, but more were requested.
    """
    pixels = CPU_PIXELS if provider in HOSTS else GPU_PIXELS
    if info.one_slice and batch > 1:
        raise ConfigError(f"--batch {batch}: {info.name} takes one slice at a time; export it with an open batch axis.")
    labels = 1 if info.one_slice else batch or max(1, pixels // (info.size[0] * info.size[1]))
    return Capacity(labels, min(labels * info.context, 2 * (labels + info.context)))


def count_lanes(provider: str) -> int:
    """Return the default number of batches in progress at once; `open_model` takes another one.

    On a CPU every core labels its own batch, without waiting for others at each layer. On two cores this gives 1.06
    times the slices of one batch on all cores with the default network, and as many with a small one (`slicemill bench
    infer`, row `whole`). Reading and writing delay one batch only.
    """
    return min(len(os.sched_getaffinity(0)), CPU_LANES) if provider == "cpu" else LANES


def session_threads() -> int:
    """Return the number of threads for a session on the CPU.

    A run uses the thread that calls it, and all runs share the rest of these. So lanes and session threads together
    equal the cores; more than CPU_LANES of them has not been measured.
    """
    cores = len(os.sched_getaffinity(0))
    return cores - min(cores, CPU_LANES) + 1


def input_shapes(info: "ModelInfo", capacity: Capacity) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the graph's inputs for a full batch."""
    height, width = info.size
    image = (capacity.rows, height, width) if info.input == "int16" else (capacity.rows, 1, height, width, 2)
    return {"image": image, "neighbors": (capacity.labels, info.context)} if info.context > 1 else {"image": image}
