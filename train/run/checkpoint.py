"""Checkpoints: tensors as safetensors, the rest as JSON; never pickle, always whole."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from slicemill.common.errors import ModelError
from slicemill.common.files import atomic_write, to_json

BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands."""

    epoch: int = 0
    """Epochs completed."""
    seconds: float = 0.0
    """Training time so far."""
    best_score: float = -1.0
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row of metrics an epoch."""
    tally: dict[str, Any] | None = None
    """What the epoch that is under way has found so far (`slicemill.train.run.tally.Tally`); None between epochs."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Where the loss scaler of fp16 stands."""

    def __post_init__(self) -> None:
        """Refuse what no run has written."""
        kinds = {"epoch": int, "best_epoch": int, "seconds": float, "best_score": float, "rows": list, "scaler": dict}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), int | float if kind is float else kind):
                raise TypeError(f"{name} = {getattr(self, name)!r}: is not of type {kind.__name__}")
        parts = {"voxels": list, "losses": list, "seconds": int | float, "waited": int | float}
        if self.tally is not None and not all(isinstance(self.tally.get(name), kind) for name, kind in parts.items()):
            raise TypeError("tally: is incomplete")


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights."""
    with atomic_write(path) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, aside)


def load_weights(path: Path, network: nn.Module) -> None:
    """Read weights into a network.

    Raises
    ------
    ModelError
        The file is damaged or of another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: is not a checkpoint of this network ({str(error).splitlines()[0]}).") from error


def save_progress(run: Path, state: State, parts: Mapping[str, nn.Module | Tensor], optimizer: Optimizer) -> None:
    """Write the weights, the optimizer's memory and the state as one file, so that they cannot disagree after a kill.

    `parts` maps names to modules and plain tensors.
    """
    tensors: dict[str, Tensor] = {}
    for part, holder in parts.items():
        own = {"": holder} if isinstance(holder, Tensor) else holder.state_dict()
        tensors |= {f"{part}.{name}": tensor for name, tensor in own.items()}
    for index, memory in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in memory.items()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(run / LAST) as aside:
        save_file(contiguous, aside, metadata={"state": to_json(asdict(state))})


def load_progress(run: Path, parts: Mapping[str, nn.Module | Tensor], optimizer: Optimizer) -> State:
    """Bring the parts and the optimizer to where a run stopped; a new run has a state of no epochs.

    Raises
    ------
    ModelError
        The checkpoint is damaged or of another network or store.
    """
    if not (run / LAST).exists():
        return State()
    try:
        state = read_state(run)
        tensors = load_file(run / LAST)
        for part, holder in parts.items():
            prefix = f"{part}."
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            if not own:
                raise ValueError(f"it lacks {part}, as those of earlier versions do")
            if isinstance(holder, Tensor):
                holder.copy_(own[""])
            else:
                holder.load_state_dict(own)
        optimizer.load_state_dict(
            {"state": _optimizer_memory(tensors, optimizer), "param_groups": optimizer.state_dict()["param_groups"]}
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{run}: its checkpoint cannot be read ({error}); train anew with --overwrite.") from error
    return state


def read_state(run: Path) -> State:
    """Return where a run stands.

    Raises
    ------
    ModelError
        There is no checkpoint, or it is damaged.
    """
    try:
        with safe_open(run / LAST, framework="pt") as file:
            return State(**json.loads(file.metadata()["state"]))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{run}: holds no checkpoint of a training run ({error}).") from error


def _optimizer_memory(tensors: dict[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return an optimizer's memory, each part in the layout of its weight: in another one, its steps would be slow."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    memory: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            weight = weights[int(index)]
            same = tensor.shape == weight.shape
            memory.setdefault(int(index), {})[key] = torch.empty_like(weight).copy_(tensor) if same else tensor
    return memory
