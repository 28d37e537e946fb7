"""Random changes of a batch on its device; each is a pure function of the batch, a strength and a generator.

The strength, 0 to 1, scales every range: 1 is for few patients, 0.4 for a short training, 0 changes nothing.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

MIRROR_SHARE = 0.5
"""Share of slices mirrored left to right at strength 1."""
MAX_TURN = math.radians(30)
MAX_SCALE = 1.4
"""Sizes are multiplied or divided by up to this."""
MAX_SHIFT = 0.12
"""Of the side."""
MAX_NOISE = 0.1
"""Standard deviation in normalized units; 0.1 is 25 HU for a window of 500."""
MAX_BRIGHTNESS, MAX_CONTRAST = 0.15, 1.3


def augment(image: Tensor, label: Tensor, strength: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a batch mirrored, turned, scaled, shifted, and changed in brightness, contrast and noise.

    Parameters
    ----------
    image
        float32[b, c, y, x], normalized to -1..1; the channels are neighbouring slices and move together.
    label
        int64[b, y, x], class indices.
    """
    image, label = move(image, label, strength, generator)
    return shade(image, strength, generator), label


def move(image: Tensor, label: Tensor, strength: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mirror, turn, scale and shift each slice with its neighbours; what comes in from outside is air."""
    angle = MAX_TURN * strength * _spread(image, generator)
    scale = MAX_SCALE ** (strength * _spread(image, generator))
    mirror = torch.where((_spread(image, generator) + 1) / 2 < MIRROR_SHARE * strength, -1.0, 1.0)
    shift = 2 * MAX_SHIFT * strength * torch.stack([_spread(image, generator) for _ in range(2)], dim=1)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    tall = (
        image.shape[2] / image.shape[3]
    )  # coordinates run from -1 to 1 along each side: a turn of pixels needs the sides' ratio
    rows = ([mirror * cosine, -sine * tall], [mirror * sine / tall, cosine])
    theta = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = F.affine_grid(torch.cat([theta, shift[:, :, None]], dim=2), list(image.shape), align_corners=False)
    moved = F.grid_sample(image + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
    labels = F.grid_sample(label[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, labels[:, 0].round().long()


def shade(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Change contrast and brightness of each slice, and add noise of a random deviation."""
    contrast = MAX_CONTRAST ** (strength * _spread(image, generator))
    brightness = MAX_BRIGHTNESS * strength * _spread(image, generator)
    deviation = MAX_NOISE * strength * (_spread(image, generator) + 1) / 2
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return (
        image * contrast[:, None, None, None] + brightness[:, None, None, None] + deviation[:, None, None, None] * noise
    )


def _spread(like: Tensor, generator: Generator) -> Tensor:
    """Return a number from -1 to 1 for each slice of a batch."""
    return 2 * torch.rand(len(like), generator=generator, device=like.device) - 1
