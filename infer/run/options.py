"""How a run is to be done, and how much it may take."""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from slicemill.common.errors import ConfigError, UsageError
from slicemill.infer.slices.assembly import Plan
from slicemill.infer.slices.tiles import PLAIN, Manner

MAX_READERS, MAX_WRITERS = 8, 8
MAX_GB = 1e6
WORKING_BYTES = 16
"""Bytes a voxel that post-processing may take for a while, in noise of three labels; next to nothing in labels of organs."""


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """Settings of a run."""

    overwrite: bool = False
    retry_failed: bool = False
    manner: Manner = PLAIN
    postprocess: bool = True
    """Whether labels are post-processed as the model's metadata ask."""
    separate: bool = False
    """Whether each label is also written as a file of its own, 0 and 1."""
    batch: int = 0
    """Slices in a batch; 0 fits the provider (`slicemill.infer.runtime.capacity`)."""
    readers: int = 0
    """Threads that decode; 0 is one for every two cores, two at least."""
    writers: int = 0
    """Threads that post-process and write; 0 is as many."""
    devices: tuple[int, ...] = (0,)
    """Numbers of the GPUs that share the work, each with a session of its own."""
    part: str = ""
    """What ends the names of the summaries of one of several runs into one folder."""
    max_memory_gb: float = 0.0
    """What the whole process may take, GB; 0 is half of what is free."""

    def __post_init__(self) -> None:
        """Check that nothing is negative, or more than any machine has."""
        for name in ("batch", "readers", "writers"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)}: must not be negative.")
        if not 0 <= self.max_memory_gb <= MAX_GB:
            raise UsageError(
                f"--max-memory {self.max_memory_gb:g}: must not be negative, nor more than {MAX_GB:g} GB; 0 is half of what is free."
            )
        if not self.devices or len(set(self.devices)) != len(self.devices) or min(self.devices) < 0:
            raise UsageError(
                f"--devices {','.join(map(str, self.devices))}: expected numbers of GPUs, each once, like 0,1."
            )

    def of_worker(self, index: int) -> "InferOptions":
        """Return the same for one of several workers: its summary has a name of its own."""
        return replace(self, part=f"{self.part}-worker-{index}")

    def as_json(self) -> dict[str, Any]:
        """Return what changes the outputs; a scan that was done with others is done again."""
        changed = {name: True for name, on in asdict(self.manner).items() if on}
        changed |= {"separate": True} if self.separate else {}
        return changed | ({} if self.postprocess else {"postprocess": False})


def threads_of(asked: int, most: int) -> int:
    """Return how many threads read, or write."""
    return asked or max(2, min(most, len(os.sched_getaffinity(0)) // 2))


def memory_of(plan: Plan) -> int:
    """Return the bytes that a scan takes at most, from its first voxel to its mask."""
    nz, ny, nx = plan.shape
    height, width = plan.seen_shape
    kept = len(plan.table) if plan.manner.probability else 0
    own = 2 + 1 + (plan.tumor is not None) + kept + WORKING_BYTES
    return nz * (own * ny * nx + (0 if plan.resampling is None else 2 * height * width))


def memory_for_scans(asked_gb: float, lanes_bytes: int) -> int:
    """Return the bytes that scans may take together, once the model is in memory and but for what its lanes are going to take.

    Raises
    ------
    ConfigError
        The process takes more already than was asked for.
    """
    import psutil

    if not asked_gb:
        return int(psutil.virtual_memory().available // 2)
    taken = int(psutil.Process().memory_info().rss) + lanes_bytes
    left = round(asked_gb * 1e9) - taken
    if left <= 0:
        raise ConfigError(
            f"--max-memory {asked_gb:g}: the model alone takes {taken / 1e9:.2f} GB with this batch; give more, or a smaller --batch."
        )
    return left
