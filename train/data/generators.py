"""Random numbers of a training step: drawn on the device, or on the host if the host needs them."""

from dataclasses import dataclass

import torch
from torch import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Generators:
    """Two generators of one seed; on the CPU both are the same object.

    A GPU works behind the host. Reading a number that the GPU drew makes the host wait until the GPU has caught up. So
    what decides shapes and indices, for example which slices are changed, is drawn on the host.
    """

    device: Generator
    """On the device of the batch."""
    host: Generator
    """On the CPU."""

    def manual_seed(self, seed: int) -> "Generators":
        """Seed both, and return them."""
        self.device.manual_seed(seed)
        if self.host is not self.device:
            self.host.manual_seed(seed)
        return self


def make_generators(device: torch.device) -> Generators:
    """Return the generators for batches on a device."""
    on_device = Generator(device=device)
    return Generators(device=on_device, host=on_device if device.type == "cpu" else Generator())
