"""The classifier: a 3-D network of half a million weights, and its graph in a model file."""

from typing import cast

import torch
from torch import Tensor, nn

from slicemill.train.network.unet import normalize

WIDTHS = (16, 24, 48, 96)
"""Channels: at 2 mm before and after the first block, at 4 mm, at 8 mm. 0.5 M weights, 0.8 GFLOP a crop."""
CELLS = 3
"""Side of the last map. A position in it matters: only a nodule in the middle counts."""


def _layer(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return convolution 3x3x3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.ReLU(inplace=True),
    )


def _last_block() -> nn.Sequential:
    """Return the part after the trunk: float[b, c, 12, 12, 12] -> logits float[b, 1]."""
    return nn.Sequential(
        nn.MaxPool3d(2),
        _layer(WIDTHS[2], WIDTHS[3]),
        _layer(WIDTHS[3], WIDTHS[3]),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(WIDTHS[3] * CELLS**3, 1),
    )


class CropNetwork(nn.Module):
    """Trunk and one last block for each question: float32[b, 48, 48, 48] in -1..1 -> logits.

    With `malignancy`, a second last block answers whether a nodule is malignant. It has weights of its own, so that
    training it does not change the answer whether there is a nodule.
    """

    def __init__(self, *, malignancy: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _layer(1, WIDTHS[0], stride=2),
            _layer(WIDTHS[0], WIDTHS[1]),
            nn.MaxPool3d(2),
            _layer(WIDTHS[1], WIDTHS[2]),
            _layer(WIDTHS[2], WIDTHS[2]),
        )
        self.nodule = _last_block()
        self.malignancy = _last_block() if malignancy else None

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Return logits float[b] of a nodule, and those of malignancy if the network has them."""
        features = self.trunk(crops[:, None])
        blocks = [self.nodule, *([self.malignancy] if self.malignancy is not None else [])]
        return tuple(block(features)[:, 0] for block in blocks)

    def malignancy_logits(self, crops: Tensor) -> Tensor:
        """Return logits float[b] of malignancy."""
        return cast("Tensor", cast("nn.Sequential", self.malignancy)(self.trunk(crops[:, None])))[:, 0]


class CropGraph(nn.Module):
    """The graph of a model file: int16[n, 48, 48, 48], HU -> probabilities float32[n]."""

    def __init__(self, network: CropNetwork, window_hu: tuple[float, float]) -> None:
        super().__init__()
        self.network = network
        self.low, self.high = window_hu

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        """Return the probability of a nodule, and that of malignancy if the network has it."""
        logits = self.network(normalize(crop, self.low, self.high))
        return tuple(torch.sigmoid(one) for one in logits)
