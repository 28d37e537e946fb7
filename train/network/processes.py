"""Several processes that train one network together: started by torchrun, each takes its share of every batch.

The whole batch is the settings' `batch`, however many processes there are, so that a run gives the same losses on one
GPU and on eight (up to the order of summation). Tensors of counts and losses are all that is exchanged beside the gradients.
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
        return total if self.count == 1 else Summed.apply(total)  # type: ignore[no-untyped-call]

    def each(self, value: float, device: torch.device) -> list[float]:
        """Return what every process has, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values = torch.zeros(self.count, dtype=torch.float64, device=device)
        values[self.rank] = value
        return [float(one) for one in self.together(values)]

    def wait(self) -> None:
        """Wait for all."""
        if self.count > 1:
            distributed.barrier()

    def spread(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose gradients are averaged over the processes."""
        if self.count == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)


class Summed(Function):
    """The sum over all processes; since each makes the same use of it, the gradients of all are summed for each."""

    @staticmethod
    def forward(_context: Any, total: Tensor) -> Tensor:
        """Return the sum, in a tensor of its own."""
        whole = total.detach().clone()
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        whole = gradient.contiguous().clone()
        distributed.all_reduce(whole)
        return whole


ALONE = Processes()
"""A process that trains by itself."""


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone, where it started none.

    Raises
    ------
    ConfigError
        There is no GPU for this process, or the settings name one for all.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    # imported with a network that is wrapped, it would keep the group for good as a default argument
    import torch.distributed.nn

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        here = distributed.get_node_local_rank()
        if device not in ("auto", "cuda") or here >= torch.cuda.device_count():
            raise ConfigError(
                f"device {device}: process {here} of this machine has no GPU of its own ({torch.cuda.device_count()} are here). "
                "Start as many processes as there are GPUs, with device auto or cuda."
            )
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(
            rank=distributed.get_rank(),
            count=distributed.get_world_size(),
            local_rank=distributed.get_node_local_rank(),
        )
    finally:
        gc.collect()  # a wrapped network is in cycles and has the group, whose threads Python's end would kill in the middle
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
