"""Runs in a peer's environment: the network that `torch.export` wrote, as a module that peers can call.

Only torch is used here, since nothing of slicemill is installed there.
"""

import torch
from torch import Tensor, nn


class Loaded(nn.Module):
    """An exported network, its convolutions laid out channels last: float32[b, 1, y, x], -1 to 1 -> logits float32[b, k, y, x].

    The exported module refuses `eval`, which peers call, so it is kept where `nn.Module` does not look for children.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        module = torch.export.load(path).module()
        self._kept = (module.to(memory_format=torch.channels_last),)  # type: ignore[call-overload] # torch leaves this one out

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self._kept[0](x.contiguous(memory_format=torch.channels_last))
        return logits
