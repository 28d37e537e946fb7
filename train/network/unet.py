"""A 2-D U-Net (Ronneberger et al. 2015) with batch or instance norm, with a slice and its neighbors as channels."""

import itertools

import torch
from torch import Tensor, nn

MAX_CHANNELS = 320
"""Limit of the deep levels (nnU-Net's limit in 3-D; it allows 512 in 2-D). More channels gave no better result."""

Norm = type[nn.BatchNorm2d] | type[nn.InstanceNorm2d]


class Block(nn.Sequential):
    """Convolution 3x3, norm, ReLU, twice: [b, i, y, x] -> [b, o, y, x]."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm) -> None:
        layers: list[nn.Module] = []
        for channels in (channels_in, channels_out):
            layers += [
                nn.Conv2d(channels, channels_out, 3, padding=1, bias=False),
                norm(channels_out, affine=True),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """Encoder and decoder with skips: float[b, c, y, x] -> logits float[b, k, y, x]; y and x multiples of 2**depth.

    With a `stem` of 2, a first layer joins squares of 2x2 pixels, the rest computes on a quarter of the pixels, and the
    logits are interpolated back; y and x are then multiples of 2 * 2**depth.
    With `supervised`, each level of the decoder but the coarsest has a head for `levels`; `forward` uses the finest.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int,
        depth: int,
        norm: Norm = nn.BatchNorm2d,
        *,
        stem: int = 1,
        supervised: bool = False,
    ) -> None:
        super().__init__()
        self.stem = stem
        widths = [min(width * 2**level, MAX_CHANNELS) for level in range(depth + 1)]
        self.patches = nn.Conv2d(channels, width, stem, stride=stem) if stem > 1 else nn.Identity()
        first = width if stem > 1 else channels
        self.down = nn.ModuleList(
            [Block(before, after, norm) for before, after in zip([first, *widths[:-1]], widths, strict=True)]
        )
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(below, above, 2, stride=2) for above, below in itertools.pairwise(widths)]
        )
        self.merge = nn.ModuleList([Block(2 * above, above, norm) for above in widths[:-1]])
        self.head = nn.Conv2d(widths[0], classes, 1)
        self.coarse_heads = nn.ModuleList(
            [nn.Conv2d(width, classes, 1) for width in widths[1:-1]] if supervised else []
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self._enlarge(self.head(self.decode(x)[0]))

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return the logits of each level with a head: float[b, k, y, x], then each half as large as the one before."""
        heads = [self.head, *self.coarse_heads]
        return [self._enlarge(head(features)) for head, features in zip(heads, self.decode(x), strict=False)]

    def _enlarge(self, logits: Tensor) -> Tensor:
        """Return logits on the pixels of the input: float[b, k, y, x] -> float[b, k, y * stem, x * stem]."""
        if self.stem == 1:
            return logits
        return nn.functional.interpolate(logits, scale_factor=float(self.stem), mode="bilinear", align_corners=False)

    def decode(self, x: Tensor) -> list[Tensor]:
        """Return the decoder's features, finest first."""
        skips, decoded = [], []
        x = self.patches(x)
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in reversed(list(zip(self.up, self.merge, skips[:-1], strict=True))):
            x = merge(torch.cat([skip, up(x)], dim=1))
            decoded.append(x)
        return decoded[::-1]


class Levels(nn.Module):
    """A wrapper for training: float[b, c, y, x] -> logits of its levels, finest first."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return logits of each level that has a head."""
        return self.network.levels(x)


def normalize(image: Tensor, low: float, high: float) -> Tensor:
    """Return HU clipped to a window and mapped to -1..1: any[...] -> float32[...]."""
    half = (high - low) / 2
    return (image.float().clamp(low, high) - (low + half)) / half
