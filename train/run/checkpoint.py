"""Checkpoints: tensors as safetensors, the rest as JSON in the header; no pickle; files are written atomically."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from slicemill.common.documents import from_json, to_document
from slicemill.common.errors import ModelError
from slicemill.common.files import atomic_write, open_regular, to_json
from slicemill.train.run.metrics import Cell, EpochMetrics, metrics_from_row

BEST, LAST = "best.safetensors", "last.safetensors"
LONGEST_CAUSE = 120
"""Characters of a cause in a message: torch lists all weights that differ."""


@dataclass(frozen=True, kw_only=True)
class TallyRecord:
    """The counts of an epoch in progress, as stored (`slicemill.train.run.tally.Tally`)."""

    losses: list[float]
    """The loss of each step so far."""
    seconds: float
    """Time spent on the steps."""
    waited: float
    """Part of this time spent waiting for the loader, seconds."""
    voxels: list[list[int]]
    """Pixels by true and predicted class, of all processes."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The progress of a run."""

    epoch: int = 0
    """Number of completed epochs."""
    seconds: float = 0.0
    """Training time so far."""
    best_score: float = -1.0
    """Highest validation Dice; -1 before the first epoch ends."""
    best_epoch: int = 0
    """The epoch that reached it."""
    history: Sequence[EpochMetrics] = ()
    """The metrics of each completed epoch."""
    tally: TallyRecord | None = None
    """The epoch in progress; None between epochs."""
    scaler: Mapping[str, float | int] = field(default_factory=dict)
    """State of the fp16 loss scaler; empty in other precisions."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.csv``."""
        return [metrics.as_row() for metrics in self.history]


@dataclass(frozen=True, kw_only=True)
class _StateDocument:
    """A `State` as stored: metrics are rows."""

    epoch: int
    seconds: float
    best_score: float
    best_epoch: int
    rows: list[dict[str, Cell]]
    tally: TallyRecord | None = None
    scaler: dict[str, float | int] = field(default_factory=dict)


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the weights of a network."""
    with atomic_write(path) as aside:
        save_file(_on_cpu(network.state_dict()), aside)


def load_weights(path: Path, network: nn.Module) -> None:
    """Read weights into a network.

    Raises
    ------
    ModelError
        The file is damaged or belongs to another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{path}: is not a checkpoint of this network ({_find_cause(error)}). Another version may have trained it; "
            "train again into another folder."
        ) from error


def _find_cause(error: Exception) -> str:
    """Return the first line of a message that is not the heading of a list, shortened."""
    lines = [line.strip() for line in str(error).splitlines()]
    cause = next((line for line in lines if line and not line.endswith(":")), type(error).__name__).rstrip(".")
    return cause if len(cause) <= LONGEST_CAUSE else f"{cause[:LONGEST_CAUSE]}..."


def save_progress(run: Path, state: State, parts: Mapping[str, nn.Module | Tensor], optimizer: Optimizer) -> None:
    """Write weights, optimizer and state as one file, so that a kill cannot leave them inconsistent.

    `parts` maps names to modules and plain tensors.
    """
    save_checkpoint(run, to_document(_document_of(state)), parts, optimizer)


def save_checkpoint(
    run: Path, document: Mapping[str, Any], parts: Mapping[str, nn.Module | Tensor], optimizer: Optimizer
) -> None:
    """Write modules, tensors, optimizer and a document as one file."""
    tensors: dict[str, Tensor] = {}
    for part, holder in parts.items():
        part_tensors = {"": holder} if isinstance(holder, Tensor) else holder.state_dict()
        tensors |= {f"{part}.{name}": tensor for name, tensor in part_tensors.items()}
    for index, memory in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in memory.items()}
    with atomic_write(run / LAST) as aside:
        save_file(_on_cpu(tensors), aside, metadata={"state": to_json(document)})


def load_progress(run: Path, parts: Mapping[str, nn.Module | Tensor], optimizer: Optimizer) -> State:
    """Restore the parts and the optimizer from the last checkpoint, and return its state, empty for a new run.

    Raises
    ------
    ModelError
        The checkpoint is damaged or belongs to another network or store.
    """
    if not (run / LAST).exists():
        return State()
    try:
        state = read_state(run)
    except ModelError as error:
        raise ModelError(f"{run}: its checkpoint cannot be read ({error}); start again with --overwrite.") from error
    load_checkpoint(run, parts, optimizer)
    return state


def load_checkpoint(run: Path, parts: Mapping[str, nn.Module | Tensor], optimizer: Optimizer) -> None:
    """Restore the parts and the optimizer from the last checkpoint.

    Raises
    ------
    ModelError
        The checkpoint is damaged or belongs to another network or store.
    """
    try:
        tensors = load_file(run / LAST)
        for part, holder in parts.items():
            prefix = f"{part}."
            part_tensors = {
                name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
            }
            if not part_tensors:
                raise ValueError(f"it lacks {part}; an earlier version wrote it")
            if isinstance(holder, Tensor):
                holder.copy_(part_tensors[""])
            else:
                holder.load_state_dict(part_tensors)
        optimizer.load_state_dict(
            {"state": _optimizer_memory(tensors, optimizer), "param_groups": optimizer.state_dict()["param_groups"]}
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"{run}: its checkpoint cannot be read ({_find_cause(error)}); start again with --overwrite."
        ) from error


def read_checkpoint_text(run: Path) -> str:
    """Return the document of the last checkpoint, as JSON.

    Raises
    ------
    ModelError
        There is no checkpoint, or it is damaged.
    """
    try:
        os.close(open_regular(run / LAST))  # safetensors waits for the other end of a pipe
        with safe_open(run / LAST, framework="pt") as file:
            return str(file.metadata()["state"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{run}: has no checkpoint of a training run ({error}).") from error


def read_state(run: Path) -> State:
    """Read the progress of a run from its last checkpoint.

    Raises
    ------
    ModelError
        There is no checkpoint, or it is damaged.
    """
    try:
        document = from_json(_StateDocument, read_checkpoint_text(run), LAST, error=ModelError)
        return State(
            epoch=document.epoch,
            seconds=document.seconds,
            best_score=document.best_score,
            best_epoch=document.best_epoch,
            history=[metrics_from_row(row) for row in document.rows],
            tally=document.tally,
            scaler=document.scaler,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{run}: has no checkpoint of a training run ({error}).") from error


def _document_of(state: State) -> _StateDocument:
    return _StateDocument(
        epoch=state.epoch,
        seconds=state.seconds,
        best_score=state.best_score,
        best_epoch=state.best_epoch,
        rows=state.rows,
        tally=state.tally,
        scaler=dict(state.scaler),
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU, for safetensors."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_memory(tensors: dict[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state, each tensor in the memory layout of its weight; other layouts make steps slow."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    memory: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            weight = weights[int(index)]
            same = tensor.shape == weight.shape
            memory.setdefault(int(index), {})[key] = torch.empty_like(weight).copy_(tensor) if same else tensor
    return memory
