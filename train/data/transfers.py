"""Copies between host and device for which the host does not wait."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class CopyEvent(Protocol):
    """A mark in the work of a GPU: `torch.cuda.Event`."""

    def record(self) -> None:
        """Set the mark behind the work that the current stream has so far."""

    def synchronize(self) -> None:
        """Wait until the GPU has reached the mark; return at once if it was never set."""


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A tensor on its way to the host."""

    values: Tensor
    copied: CopyEvent | None
    """None on a CPU, where nothing is copied."""

    def wait(self) -> Tensor:
        """Return the tensor, on the CPU, as soon as it is there; later work of the GPU is not waited for."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values


def make_event() -> CopyEvent:
    """Return an event for the current device."""
    event: CopyEvent = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event


def copy_to_host(values: Tensor) -> HostCopy:
    """Start to copy a tensor to the host. On a CPU it is the tensor itself."""
    if values.device.type != "cuda":
        return HostCopy(values, None)
    with torch.cuda.device(values.device):
        copied = make_event()
        on_host = values.to("cpu", non_blocking=True)  # torch takes pinned memory for it
        copied.record()
    return HostCopy(on_host, copied)


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; to a GPU it is copied from pinned memory, without waiting."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
