"""Counts of an epoch in progress: losses, voxels by class, the last loss of every slice; part of checkpoints."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slicemill.common.errors import ConfigError
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap
from slicemill.train.data.sampling import Pool, SlicePosition
from slicemill.train.data.transfers import HostCopy, copy_to_host
from slicemill.train.network.processes import Processes
from slicemill.train.network.step import StepResult
from slicemill.train.run.checkpoint import TallyRecord


@dataclass(frozen=True, kw_only=True)
class SliceLosses:
    """The last training loss of every slice of a pool: float32[n], NaN before its first step."""

    at_epoch_start: Tensor
    """The losses when the epoch began; the slices of the epoch are drawn by them."""
    latest: Tensor
    """The current losses."""
    mined: Tensor | None = None
    """float32[n, 5], what mining found last (`slicemill.train.run.mining`); None in a run without mining."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint contains."""
        mined = {} if self.mined is None else {"mined": self.mined}
        return {"losses_drawn_by": self.at_epoch_start, "losses_latest": self.latest, **mined}


def no_losses(pool: Pool, *, mining: bool) -> SliceLosses:
    """Return the losses before the first step."""
    never = torch.full((len(pool.slices),), math.nan)
    mined = torch.zeros((len(pool.slices), 5)) if mining else None
    return SliceLosses(at_epoch_start=never, latest=never.clone(), mined=mined)


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """A step whose losses are on their way to the host.

    They are read one step later. A plain read would wait for all work of the GPU so far, which is then the next step.
    """

    positions: list[SlicePosition]
    """The slices of the batch of all processes."""
    losses: HostCopy
    """float32[1 + b]: the loss, and the cross-entropy of each of these slices."""


def begin_record(positions: list[SlicePosition], result: StepResult, processes: Processes) -> PendingStep:
    """Start to copy the losses of a step to the host. `positions` are the slices of the batch of all processes."""
    share = len(result.by_slice)
    batch = torch.zeros(share * processes.count, device=result.by_slice.device)
    batch[processes.rank * share : (processes.rank + 1) * share] = result.by_slice
    losses = torch.cat([result.loss[None], processes.sum(batch)])
    return PendingStep(positions=positions, losses=copy_to_host(losses))


@dataclass(kw_only=True)
class Tally:
    """The counts of one epoch, updated at each step."""

    voxels: Tensor
    """int64[k, k], pixels of this process by true and predicted class."""
    losses: list[float] = field(default_factory=list)
    """The loss of each step."""
    seconds: float = 0.0
    """Time spent on the steps."""
    waited: float = 0.0
    """Part of this time spent waiting for the loader, seconds."""

    @property
    def step(self) -> int:
        """Return the number of steps recorded."""
        return len(self.losses)

    def record(self, step: PendingStep, by_slice: SliceLosses, pool: Pool) -> None:
        """Add the loss of a step, and update the loss of each of its slices, including those of other processes.

        Raises
        ------
        ConfigError
            The loss is not finite.
        """
        losses = step.losses.wait()
        loss = float(losses[0])
        if not math.isfinite(loss):
            named = ", ".join(f"{position.case_id} z={position.z}" for position in step.positions)
            raise ConfigError(f"step {self.step + 1}: the loss is {loss}; the slices are {named}. Lower learning_rate.")
        self.losses.append(loss)
        numbers = [pool.number[position.case_id, position.z] for position in step.positions]
        by_slice.latest[numbers] = losses[1:]

    def as_record(self, processes: Processes) -> TallyRecord:
        """Return the counts for a checkpoint, with the pixels of all processes."""
        voxels = processes.sum(self.voxels.clone()).tolist()
        return TallyRecord(losses=self.losses, seconds=self.seconds, waited=self.waited, voxels=voxels)


def resume_tally(record: TallyRecord | None, classes: int, device: torch.device, processes: Processes) -> Tally:
    """Return the tally of a checkpoint, or an empty one. Rank 0 gets the pixels of all."""
    zeros = torch.zeros((classes, classes), dtype=torch.long, device=device)
    if record is None:
        return Tally(voxels=zeros)
    return Tally(
        voxels=torch.tensor(record.voxels, device=device) if processes.first else zeros,
        losses=list(record.losses),
        seconds=record.seconds,
        waited=record.waited,
    )


def region_overlaps(voxels: Tensor, labels: Labels) -> dict[str, Overlap]:
    """Return the overlap of each region (`Labels.regions`) from counts int64[k, k] by true and predicted class.

    >>> from slicemill.ct.labels import LITS_LABELS
    >>> region_overlaps(torch.tensor([[5, 1, 0], [0, 4, 0], [0, 2, 3]]), LITS_LABELS)["tumor"]
    Overlap(true_positive=3, false_positive=0, false_negative=2)
    """
    counts = voxels.cpu()
    values_by_class = labels.table().tolist()
    overlaps = {}
    for name, values in labels.regions().items():
        inside = torch.tensor([value in values for value in values_by_class])
        both = int(counts[inside][:, inside].sum())
        overlaps[name] = Overlap(both, int(counts[:, inside].sum()) - both, int(counts[inside].sum()) - both)
    return overlaps
