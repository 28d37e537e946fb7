"""Data-parallel training: torchrun starts the processes, and each processes its part of every batch.

The setting `batch` counts the slices of all processes, so a run gives the same losses on one GPU and on eight (up to
the order of summation). Only gradients and tensors of counts and losses are exchanged.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from slicemill.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that train together, and this process among them."""

    rank: int = 0
    """Number of this process."""
    count: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine."""

    @property
    def first(self) -> bool:
        """Return whether this process writes files and logs."""
        return self.rank == 0

    def sum(self, total: Tensor) -> Tensor:
        """Return the sum over all processes; gradients flow back to each."""
        return total if self.count == 1 else AllReduce.apply(total)  # type: ignore[no-untyped-call]

    def gather(self, value: float, device: torch.device) -> list[float]:
        """Return the value of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values = torch.zeros(self.count, dtype=torch.float64, device=device)
        values[self.rank] = value
        return [float(one) for one in self.sum(values)]

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            distributed.barrier()

    def distribute(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose gradients are averaged over the processes."""
        if self.count == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)


class AllReduce(Function):
    """The sum over all processes. Every process uses it the same way, so each gets the sum of all gradients."""

    @staticmethod
    def forward(_context: Any, total: Tensor) -> Tensor:
        """Return the sum, in a new tensor."""
        result = total.detach().clone()
        distributed.all_reduce(result)
        return result

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        result = gradient.contiguous().clone()
        distributed.all_reduce(result)
        return result


ALONE = Processes()
"""The only process of a run."""


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, while the block runs; without torchrun, yield `ALONE`.

    Raises
    ------
    ConfigError
        There is no GPU for this process, or the settings name one GPU for all processes.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    # Import it before the group exists: later, this module would keep the group alive as a default argument.
    import torch.distributed.nn

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local_rank = distributed.get_node_local_rank()
        if device not in ("auto", "cuda") or local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"device {device}: there is no GPU for process {local_rank} of this machine, "
                f"which has {torch.cuda.device_count()} GPUs. "
                "Start as many processes as there are GPUs, with device auto or cuda."
            )
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(
            rank=distributed.get_rank(),
            count=distributed.get_world_size(),
            local_rank=distributed.get_node_local_rank(),
        )
    finally:
        # A wrapped network is part of reference cycles and holds the group. Its threads must end before Python does.
        gc.collect()
        distributed.destroy_process_group()


def local_batch(batch: int, norm: str, processes: Processes, device: torch.device) -> int:
    """Return the number of slices of each batch that a process trains on.

    Raises
    ------
    ConfigError
        The batch is not a multiple of the processes, or batch norm would need the slices of other processes on CPUs.
    """
    if batch % processes.count:
        raise ConfigError(f"batch = {batch}: must be a multiple of the {processes.count} processes that share it.")
    if processes.count > 1 and norm == "batch" and device.type == "cpu":
        raise ConfigError(
            "norm = batch: is synchronized between GPUs only. With several processes on CPUs use norm = instance."
        )
    return batch // processes.count
