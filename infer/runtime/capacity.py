"""What one batch holds, and how many are at work: on a GPU its shape is the one of all batches of a run, for which its engine is built."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slicemill.common.errors import ConfigError

if TYPE_CHECKING:
    from slicemill.store.model_card import ModelCard

HOSTS = ("cpu", "openvino")
"""Providers that compute on the processor."""
CPU_PIXELS = 2 * 512 * 512
"""Pixels in a batch on the CPU: more brings nothing there (design notes, RUNTIME section 3; `slicemill bench constants`)."""
GPU_PIXELS = 32 * 512 * 512
"""Pixels in a batch on a GPU."""
CPU_LANES = 8
"""Batches at work at a time on a CPU, at most: each holds what the network computes in between, 0.4 GB with the default one at 512x512.

No machine of more than two cores has measured it."""
LANES = 2
"""The same on other devices: one computes while the other is emptied and filled."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one batch holds at most."""

    labels: int
    """Slices to label."""
    rows: int
    """Slices that go in: those to label and their neighbors, each once."""


def capacity_of(info: "ModelCard", provider: str, batch: int = 0) -> Capacity:
    """Return what one batch holds: slices to label, and room for their neighbors, which may lie apart."""
    pixels = CPU_PIXELS if provider in HOSTS else GPU_PIXELS
    if info.one_slice and batch > 1:
        raise ConfigError(f"--batch {batch}: {info.name} takes one slice at a time; export it with an open batch axis.")
    labels = 1 if info.one_slice else batch or max(1, pixels // (info.size[0] * info.size[1]))
    return Capacity(labels, min(labels * info.context, 2 * (labels + info.context)))


def lanes_on(provider: str) -> int:
    """Return how many batches are at work at a time.

    On a CPU every core labels slices of its own, without waiting for others at each layer: 1.06 times the slices of all cores in one batch
    with the default network on two cores, as many with a light one (`slicemill bench infer`, row `whole`). Reading and
    writing delay one batch only.
    """
    return min(len(os.sched_getaffinity(0)), CPU_LANES) if provider == "cpu" else LANES


def threads_of_session() -> int:
    """Return the threads that a session on the CPU is told: a run takes the thread that calls it, and all runs share the rest of these.

    So lanes and these threads are as many as there are cores; more than CPU_LANES of them has not been measured.
    """
    cores = len(os.sched_getaffinity(0))
    return cores - min(cores, CPU_LANES) + 1


def shapes_of(info: "ModelCard", capacity: Capacity) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the graph's inputs for a full batch."""
    height, width = info.size
    image = (capacity.rows, height, width) if info.input == "int16" else (capacity.rows, 1, height, width, 2)
    return {"image": image, "neighbors": (capacity.labels, info.context)} if info.context > 1 else {"image": image}
