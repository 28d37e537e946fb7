"""What a run has found so far: losses, which voxels went where, the last loss of every slice; part of every checkpoint."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slicemill.common.errors import ConfigError
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap
from slicemill.train.data.sampling import Pool, SlicePosition
from slicemill.train.network.processes import Processes


@dataclass(frozen=True, kw_only=True)
class SliceLosses:
    """The loss of every slice of a pool when it was last trained on: float32[n], NaN if it never was."""

    drawn_by: Tensor
    """As it was when the epoch began, which is what the epoch was drawn by."""
    latest: Tensor

    def parts(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds."""
        return {"losses_drawn_by": self.drawn_by, "losses_latest": self.latest}


def no_losses(pool: Pool) -> SliceLosses:
    """Return the losses before the first step."""
    never = torch.full((len(pool.places),), math.nan)
    return SliceLosses(drawn_by=never, latest=never.clone())


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step gave, still on the device."""

    places: list[SlicePosition]
    """Of the whole batch."""
    loss: Tensor
    """float[]."""
    by_slice: Tensor
    """float[b], of this process's slices."""


@dataclass(kw_only=True)
class Tally:
    """Of one epoch; grows from step to step."""

    voxels: Tensor
    """int64[k, k], by true and predicted class, of this process's slices."""
    losses: list[float] = field(default_factory=list)
    """One a step."""
    seconds: float = 0.0
    """Spent on the steps."""
    waited: float = 0.0
    """Of these, spent on waiting for the loader."""

    @property
    def step(self) -> int:
        """Return how many batches are done."""
        return len(self.losses)

    def note(self, step: Step | None, by_slice: SliceLosses, pool: Pool, processes: Processes) -> None:
        """Put down a step's loss and the loss of each of its slices, whichever process had them.

        Raises
        ------
        ConfigError
            The loss is no number.
        """
        if step is None:
            return
        loss = float(step.loss)
        if not math.isfinite(loss):
            named = ", ".join(f"{place.case_id} z={place.z}" for place in step.places)
            raise ConfigError(f"step {self.step + 1}: the loss is {loss}; the slices are {named}. Lower learning_rate.")
        self.losses.append(loss)
        share = len(step.by_slice)
        whole = torch.zeros(share * processes.count, device=step.by_slice.device)
        whole[processes.rank * share : (processes.rank + 1) * share] = step.by_slice
        numbers = [pool.number[place.case_id, place.z] for place in step.places]
        by_slice.latest[numbers] = processes.together(whole).cpu()

    def as_json(self, processes: Processes) -> dict[str, Any]:
        """Return the fields for a checkpoint, with the voxels of all processes."""
        voxels = processes.together(self.voxels.clone()).tolist()
        return {"losses": self.losses, "seconds": self.seconds, "waited": self.waited, "voxels": voxels}


def tally_from_json(document: dict[str, Any] | None, classes: int, device: torch.device, processes: Processes) -> Tally:
    """Return the tally of a checkpoint, or an empty one; the first process goes on with the voxels of all."""
    zeros = torch.zeros((classes, classes), dtype=torch.long, device=device)
    if document is None:
        return Tally(voxels=zeros)
    return Tally(
        voxels=torch.tensor(document["voxels"], device=device) if processes.first else zeros,
        losses=list(document["losses"]),
        seconds=document["seconds"],
        waited=document["waited"],
    )


def region_overlaps(voxels: Tensor, labels: Labels) -> dict[str, Overlap]:
    """Return the overlap of each region (`Labels.regions`) from counts int64[k, k] by true and predicted class.

    >>> from slicemill.ct.labels import LITS_LABELS
    >>> region_overlaps(torch.tensor([[5, 1, 0], [0, 4, 0], [0, 2, 3]]), LITS_LABELS)["tumor"]
    Overlap(true_positive=3, false_positive=0, false_negative=2)
    """
    counts = voxels.cpu()
    order = labels.table().tolist()
    found = {}
    for name, values in labels.regions().items():
        inside = torch.tensor([value in values for value in order])
        both = int(counts[inside][:, inside].sum())
        found[name] = Overlap(both, int(counts[:, inside].sum()) - both, int(counts[inside].sum()) - both)
    return found
