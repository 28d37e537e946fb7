"""What one batch holds: on a GPU this is the one shape of all batches of a run, for which its engine is built."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.errors import ConfigError

if TYPE_CHECKING:
    from infer.model import ModelInfo

CPU_PIXELS = 2 * 512 * 512
"""Pixels in a batch on the CPU: more brings nothing there (design notes, RUNTIME section 3)."""
GPU_PIXELS = 32 * 512 * 512
"""Pixels in a batch on a GPU."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one batch holds at most."""

    labels: int
    """Slices to label."""
    rows: int
    """Slices that go in: those to label and their neighbors, each once."""


def capacity_of(info: "ModelInfo", provider: str, batch: int = 0) -> Capacity:
    """Return what one batch holds: slices to label, and room for their neighbors, which may lie apart."""
    pixels = CPU_PIXELS if provider in ("cpu", "openvino") else GPU_PIXELS
    if info.one_slice and batch > 1:
        raise ConfigError(f"--batch {batch}: {info.name} takes one slice at a time; export it with an open batch axis.")
    labels = 1 if info.one_slice else batch or max(1, pixels // (info.size[0] * info.size[1]))
    return Capacity(labels, min(labels * info.context, 2 * (labels + info.context)))


def shapes_of(info: "ModelInfo", capacity: Capacity) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the graph's inputs for a full batch."""
    height, width = info.size
    image = (capacity.rows, height, width) if info.input == "int16" else (capacity.rows, 1, height, width, 2)
    return {"image": image, "neighbors": (capacity.labels, info.context)} if info.context > 1 else {"image": image}
