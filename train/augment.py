"""Random changes of a batch on its device; each is a pure function of the batch and a generator.

Mirroring is left to right only where anatomy allows it: an abdomen is not symmetric, so it comes rarely.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

MIRROR_SHARE = 0.2
MAX_TURN = math.radians(12)
SCALE = (0.88, 1.14)
MAX_SHIFT = 0.06
"""Of the side."""
NOISE_SD = 0.04
"""In normalized units; 0.04 is 10 HU for a window of 500."""
BRIGHTNESS, CONTRAST = 0.06, (0.9, 1.1)


def augment(image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a batch mirrored, turned, scaled, shifted, and changed in brightness, contrast and noise.

    Parameters
    ----------
    image
        float32[b, c, y, x], normalized to -1..1; the channels are neighbouring slices and move together.
    label
        int64[b, y, x], class indices.
    """
    image, label = move(image, label, generator)
    return shade(image, generator), label


def move(image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mirror, turn, scale and shift each slice with its neighbours; what comes in from outside is air."""
    count = len(image)
    angle = _uniform(count, -MAX_TURN, MAX_TURN, generator, image)
    scale = _uniform(count, *SCALE, generator, image)
    mirror = torch.where(_uniform(count, 0, 1, generator, image) < MIRROR_SHARE, -1.0, 1.0)
    shift = torch.stack([_uniform(count, -2 * MAX_SHIFT, 2 * MAX_SHIFT, generator, image) for _ in range(2)], dim=1)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack(
        [torch.stack([mirror * cosine, -sine], dim=1), torch.stack([mirror * sine, cosine], dim=1)], dim=1
    )
    grid = F.affine_grid(torch.cat([theta, shift[:, :, None]], dim=2), list(image.shape), align_corners=False)
    moved = F.grid_sample(image + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
    labels = F.grid_sample(label[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, labels[:, 0].round().long()


def shade(image: Tensor, generator: Generator) -> Tensor:
    """Change contrast and brightness of each slice, and add noise of a random strength."""
    count = len(image)
    contrast = _uniform(count, *CONTRAST, generator, image)[:, None, None, None]
    brightness = _uniform(count, -BRIGHTNESS, BRIGHTNESS, generator, image)[:, None, None, None]
    strength = _uniform(count, 0, NOISE_SD, generator, image)[:, None, None, None]
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return image * contrast + brightness + strength * noise


def _uniform(count: int, low: float, high: float, generator: Generator, like: Tensor) -> Tensor:
    return torch.rand(count, generator=generator, device=like.device) * (high - low) + low
