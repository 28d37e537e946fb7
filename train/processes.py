"""Several processes that train one network together: started by torchrun, each takes its share of every batch.

The whole batch is the settings' `batch`, however many processes there are, so that a run gives the same losses on one
GPU and on eight (up to the order of summation). Tensors of counts and losses are all that is exchanged beside the gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from store.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Who this process is among those that train together."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Return whether this process is the one that writes and speaks."""
        return self.rank == 0

    def together(self, total: Tensor) -> Tensor:
        """Return the sum over all processes; a gradient goes back to each."""
        return total if self.count == 1 else all_reduce(total)  # type: ignore[no-untyped-call]

    def from_first(self, value: Tensor) -> Tensor:
        """Return what the first process has."""
        if self.count > 1:
            distributed.broadcast(value, src=0)
        return value

    def wait(self) -> None:
        """Wait for all."""
        if self.count > 1:
            distributed.barrier()

    def spread(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose gradients are averaged over the processes."""
        if self.count == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


ALONE = Processes()
"""A process that trains by itself."""


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone, where it started none."""
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(distributed.get_node_local_rank())
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(
            rank=distributed.get_rank(),
            count=distributed.get_world_size(),
            local_rank=distributed.get_node_local_rank(),
        )
    finally:
        distributed.destroy_process_group()


def share_of(batch: int, norm: str, processes: Processes, device: torch.device) -> int:
    """Return how many slices of each batch a process takes.

    Raises
    ------
    ConfigError
        The batch cannot be shared out evenly, or its norm would need other processes' slices on CPUs.
    """
    if batch % processes.count:
        raise ConfigError(f"batch = {batch}: must be a multiple of the {processes.count} processes that share it.")
    if processes.count > 1 and norm == "batch" and device.type == "cpu":
        raise ConfigError(
            "norm = batch: is synchronized between GPUs only; several processes on CPUs need norm = instance."
        )
    return batch // processes.count
