"""Random changes of a batch on its device; each is a pure function of a batch, a strength and a generator.

1. `tilt`, before all others, reslices slabs of slices along oblique planes.
2. `mirror` turns slices over; pixels are copied, none is interpolated.
3. `move` and `elastic`, and another pixel size where one is wanted, become one `Warp`: image and label are interpolated once.
4. `noise`, `blur`, `contrast`, `gamma` and `lowres` change values one after another, never beyond the ends of the window.

The strength, 0 to 1, scales the ranges and the share of the slices that a kind is drawn for: 1 is for few patients, 0.4 for a
short training, 0 changes nothing. A kind costs time only for the slices that it was drawn for.

Where nothing else is said, the ranges at strength 1 are those of nnU-Net (Isensee et al. 2021, as in version 2's
`nnUNetTrainer.get_training_transforms`) and the shares twice its own, so that 0.4 comes near to them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from slicemill.train.config import KINDS

SHARES = {
    "mirror": 0.5,
    "move": 0.8,
    "elastic": 0.4,
    "noise": 0.2,
    "blur": 0.4,
    "contrast": 0.6,
    "gamma": 0.8,
    "lowres": 0.5,
}
"""Share of the slices that a kind is drawn for at strength 1. nnU-Net mirrors 0.5 of its patches along each axis, turns 0.2, scales
0.2, adds noise to 0.1, blurs 0.2, changes the brightness of 0.15, the contrast of 0.15, the gamma of 0.3 and of 0.1 inverted,
and the resolution of 0.25; its first version bent 0.2. Half is the most that mirroring can do, and stays."""
MAX_TURN = math.radians(30)
"""nnU-Net's in 3-D; its half turn in 2-D is for pictures of which nobody knows where the top is."""
MAX_SCALE = 1.4
"""Sizes are multiplied or divided by up to this."""
MAX_SHIFT = 0.12
"""Of the side. nnU-Net has none: its patches are cropped at random."""
CONTROL_SPANS = 8
"""Into so many parts the control points of the elastic deformation divide each side."""
MAX_BEND = 0.25
"""By how much of their distance control points move. Below 0.48 of it nothing folds (Choi and Lee 2000, Injectivity conditions of 2D
and 3D uniform cubic B-spline functions). On 512 pixels that is 16, after smoothing 4.4 in root mean square; nnU-Net's first version: up to 3."""
MAX_NOISE = 0.1
"""Standard deviation in normalized units; 0.1 is 25 HU for a window of 500."""
MIN_BLUR, MAX_BLUR = 0.5, 1.0
"""Standard deviation in pixels. Less than the least is not seen: the strength lowers the highest alone."""
KERNEL_REACH = math.ceil(3 * MAX_BLUR)
"""Pixels to either side over which a blur sums."""
MAX_CONTRAST = 1.25
"""Distances in HU from the middle of the window are multiplied or divided by up to this."""
MAX_BRIGHTNESS = 0.15
"""Added in normalized units; 0.15 is 37 HU for a window of 500. nnU-Net multiplies by 0.75 to 1.25 instead."""
MAX_GAMMA = 1.5
"""The exponent, or one over it."""
MAX_COARSENESS = 2.0
"""Pixels become up to so many times as wide before a slice is brought back to its size."""
TOGETHER = 4
"""Slices that a kind takes at a time: what it makes on its way then stays in a CPU's cache (`slicemill bench constants`)."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """Where the pixels p of b new slices come from: ``matrix @ (p + shift + bend(p))``, in pixels x, y from the slices' centers."""

    matrix: Tensor
    """float32[b, 2, 2]."""
    shift: Tensor
    """float32[b, 2]."""
    bend: Tensor
    """float32[b, k, k, 2]: control points [y, x] of a uniform cubic B-spline (Rueckert et al. 1999); k is CONTROL_SPANS + 3."""

    def moving(self) -> Tensor:
        """Return which slices it changes: int64[n]."""
        one = torch.eye(2, device=self.matrix.device)
        changes = (self.matrix - one).flatten(1), self.shift, self.bend.flatten(1)
        return torch.cat(changes, dim=1).any(dim=1).nonzero()[:, 0]

    def of(self, index: Tensor) -> "Warp":
        """Return the part for some of the slices."""
        return Warp(matrix=self.matrix[index], shift=self.shift[index], bend=self.bend[index])


def augment(
    image: Tensor,
    label: Tensor,
    strength: float,
    kinds: Iterable[str],
    generator: Generator,
    *,
    zoom: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Batch:
    """Return a batch in which each kind has changed the slices that it was drawn for.

    Parameters
    ----------
    image
        float32[b, c, y, x], normalized to -1..1; the channels are neighboring slices and are changed alike, but for their noise.
    label
        int64[b, y, x], class indices, or a number below 0 where a pixel counts for nothing. From outside comes background, 0.
    kinds
        Of `slicemill.train.config.KINDS`, in whose order they come.
    generator
        On the device of the batch.
    zoom, size
        As in `resample`, in the same interpolation; None keeps what is there.
    """
    shares = {kind: strength * SHARES[kind] for kind in kinds}
    return changed(image, label, strength, shares, generator, zoom=zoom, size=size)


def changed(
    image: Tensor,
    label: Tensor,
    strength: float,
    shares: Mapping[str, float],
    generator: Generator,
    *,
    zoom: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Batch:
    """Return a batch as `augment` does, but each kind in a share of the slices that is given instead of following from the strength."""
    limits = torch.tensor([shares.get(kind, 0.0) for kind in KINDS])[:, None]
    chances = torch.rand(len(KINDS), len(image), generator=generator, device=image.device).cpu()
    drawn = {kind: row.nonzero()[:, 0] for kind, row in zip(KINDS, chances < limits, strict=True)}
    image, label = image.clone(), label.clone()
    if len(index := drawn["mirror"]):
        image[index], label[index] = mirror(image[index], label[index])
    if len(drawn["move"]) or len(drawn["elastic"]) or zoom is not None or size is not None:
        warp = still(len(image), image.device)
        wanted = size or (image.shape[2], image.shape[3])
        if len(index := drawn["move"]):
            warp.matrix[index], warp.shift[index] = move(len(index), wanted, strength, generator)
        if len(index := drawn["elastic"]):
            warp.bend[index] = elastic(len(index), wanted, strength, generator)
        image, label = _placed(image, label, zoomed(warp, zoom), wanted)
    for kind, change in VALUE_KINDS.items():
        for index in _parts(drawn[kind]):
            image[index] = change(image[index], strength, generator)
    return image, label


def resample(image: Tensor, label: Tensor, zoom: Tensor, size: tuple[int, int]) -> Batch:
    """Return slices of different pixel sizes brought to one, about their centers; bit for bit the same where nothing is to be done.

    Parameters
    ----------
    image, label
        As in `augment`.
    zoom
        float32[b, 2], own spacing over wanted spacing along y and x; above 1 enlarges.
    size
        y, x of the slices returned; what comes in from outside is air and background.
    """
    return _placed(image.clone(), label.clone(), zoomed(still(len(image), image.device), zoom), size)


def tilt(image: Tensor, label: Tensor, generator: Generator) -> Batch:
    """Reslice slabs along random planes through the centers of their middle slices, linearly along z, labels by the nearest slice.

    Parameters
    ----------
    image
        float32[b, c + 2m, y, x].
    label
        int64[b, 1 + 2m, y, x]; a plane leaves its middle slice by at most m slices, at a corner.

    Returns
    -------
    float32[b, c, y, x] and int64[b, y, x]; the input where m is 0.
    """
    reach, (height, width) = label.shape[1] // 2, label.shape[2:]
    if reach == 0:
        return image, label[:, 0]
    toward = math.pi * _spread(generator, len(image), 1, 1, 1)
    steepness = reach * _spread(generator, len(image), 1, 1, 1) / (toward.cos().abs() + toward.sin().abs())
    x, y = (2 / max(side - 1, 1) * _from_center(side, image.device) for side in (width, height))
    z = (steepness * (toward.cos() * x + toward.sin() * y[:, None])).clamp(-reach, reach)
    below = z.floor().clamp(max=reach - 1)
    index, part = below.long() + reach, z - below
    channels = [
        torch.lerp(image[:, first:].gather(1, index), image[:, first + 1 :].gather(1, index), part)
        for first in range(image.shape[1] - 2 * reach)
    ]
    return torch.cat(channels, dim=1), label.gather(1, z.round().long() + reach)[:, 0]


def mirror(image: Tensor, label: Tensor) -> Batch:
    """Return all slices with left and right exchanged; shapes as in `augment`."""
    return image.flip(3), label.flip(2)


def move(count: int, size: tuple[int, int], strength: float, generator: Generator) -> Batch:
    """Return matrices and shifts of a `Warp` that turn slices of a size y, x about the head-foot axis, scale and shift them."""
    angle = MAX_TURN * strength * _spread(generator, count)
    scale = MAX_SCALE ** (strength * _spread(generator, count))
    sides = torch.tensor([size[1], size[0]], device=generator.device)
    shift = MAX_SHIFT * strength * sides * _spread(generator, count, 2)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    return torch.stack([cosine, -sine, sine, cosine], dim=1).view(count, 2, 2), shift


def elastic(count: int, size: tuple[int, int], strength: float, generator: Generator) -> Tensor:
    """Return random control points of a `Warp`, float32[count, k, k, 2], for slices of a size y, x."""
    apart = torch.tensor([size[1], size[0]], device=generator.device) / CONTROL_SPANS
    points = CONTROL_SPANS + 3
    return MAX_BEND * strength * apart * _spread(generator, count, points, points, 2)


def still(count: int, device: torch.device) -> Warp:
    """Return a warp that changes nothing."""
    points = CONTROL_SPANS + 3
    return Warp(
        matrix=torch.eye(2, device=device).repeat(count, 1, 1),
        shift=torch.zeros(count, 2, device=device),
        bend=torch.zeros(count, points, points, 2, device=device),
    )


def zoomed(warp: Warp, zoom: Tensor | None) -> Warp:
    """Return a warp that enlarges by `zoom`: float32[b, 2], y and x, besides what it did before."""
    if zoom is None:
        return warp
    return Warp(matrix=warp.matrix / zoom.flip(1)[:, :, None], shift=warp.shift, bend=warp.bend)


def warped(image: Tensor, label: Tensor, warp: Warp, size: tuple[int, int]) -> Batch:
    """Return new slices of a size y, x, each pixel taken from where the warp says: image bilinear, label nearest; outside is air and 0."""
    sides = torch.tensor([image.shape[3], image.shape[2]], device=image.device)
    matrix = 2 / sides[:, None] * warp.matrix  # grid_sample's coordinates run from -1 to 1 along each side
    y, x = (_from_center(side, image.device) for side in size)
    across = matrix[:, None, :, 0] * x[:, None]
    down = matrix[:, None, :, 1] * y[:, None] + (matrix @ warp.shift[:, :, None]).mT
    grid = down[:, :, None] + across[:, None]
    along_x, along_y = (spline_weights(side, image.device) for side in (size[1], size[0]))
    rows = torch.einsum("xj,bijc->bixc", along_x, warp.bend @ matrix.mT[:, None])
    bent = torch.baddbmm(grid.flatten(2), along_y.expand(len(image), -1, -1), rows.flatten(2)).view_as(grid)
    taken = F.grid_sample(image + 1, bent, mode="bilinear", padding_mode="zeros", align_corners=False).sub_(1)
    labels = F.grid_sample(label[:, None].float(), bent, mode="nearest", padding_mode="zeros", align_corners=False)
    return taken, labels[:, 0].long()


def spline_weights(side: int, device: torch.device) -> Tensor:
    """Return the weights of the control points of a uniform cubic B-spline at the pixels of a side: float32[side, CONTROL_SPANS + 3].

    >>> weights = spline_weights(8 * CONTROL_SPANS, torch.device("cpu"))
    >>> bool(torch.allclose(weights.sum(dim=1), torch.ones(8 * CONTROL_SPANS)))
    True
    """
    place = (torch.arange(side, device=device) + 0.5) / side * CONTROL_SPANS + 1
    apart = (place[:, None] - torch.arange(CONTROL_SPANS + 3, device=device)).abs()
    return ((2 - apart).clamp(min=0) ** 3 - 4 * (1 - apart).clamp(min=0) ** 3) / 6


def noise(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Return all slices with Gaussian noise, of another deviation for each."""
    deviation = MAX_NOISE * strength * torch.rand(len(image), 1, 1, 1, generator=generator, device=image.device)
    grains = torch.randn(image.shape, generator=generator, device=image.device)
    return grains.mul_(deviation).add_(image).clamp_(-1, 1)


def blur(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Return all slices through a Gaussian of their own width, first along y, then along x; the border is repeated."""
    widest = MIN_BLUR + (MAX_BLUR - MIN_BLUR) * strength
    chance = torch.rand(len(image), 1, generator=generator, device=image.device)
    deviation = MIN_BLUR + (widest - MIN_BLUR) * chance
    apart = torch.arange(-KERNEL_REACH, KERNEL_REACH + 1, device=image.device)
    kernel = (-0.5 * (apart / deviation) ** 2).softmax(dim=1)
    count, channels, height, width = image.shape
    kernels = kernel.repeat_interleave(channels, dim=0)[:, None, None]
    planes = F.pad(image, (KERNEL_REACH,) * 4, mode="replicate").flatten(0, 1)[None]
    planes = planes.contiguous(memory_format=torch.channels_last)  # a third of the time on a CPU
    planes = F.conv2d(planes, kernels.mT, groups=count * channels)
    planes = F.conv2d(planes, kernels, groups=count * channels)
    return planes.view(count, channels, height, width)


def contrast(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Return all slices with their HU stretched about the middle of the window and shifted."""
    factor = MAX_CONTRAST ** (strength * _spread(generator, len(image), 1, 1, 1))
    offset = MAX_BRIGHTNESS * strength * _spread(generator, len(image), 1, 1, 1)
    return (image * factor).add_(offset).clamp_(-1, 1)


def gamma(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Return all slices with ``v ** exponent``, where v runs from 0 to 1 over the window."""
    exponent = MAX_GAMMA ** (strength * _spread(generator, len(image), 1, 1, 1))
    shades = (image + 1).mul_(0.5).clamp_(0, 1)
    return shades.log_().mul_(exponent).exp_().mul_(2).sub_(1)  # pow takes twice the time on a CPU


def lowres(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Return all slices as from a scan of wider pixels, each by its own factor: averaged down and interpolated up."""
    wider = MAX_COARSENESS ** (strength * torch.rand(len(image), generator=generator, device=image.device))
    coarse = []
    for one, factor in zip(image[:, None], wider.tolist(), strict=True):
        size = [max(1, round(side / factor)) for side in image.shape[2:]]
        down = F.interpolate(one, size, mode="bilinear", antialias=True)
        coarse.append(F.interpolate(down, image.shape[2:], mode="bilinear"))
    return torch.cat(coarse)


VALUE_KINDS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "gamma": gamma,
    "lowres": lowres,
}


def _placed(image: Tensor, label: Tensor, warp: Warp, size: tuple[int, int]) -> Batch:
    """Return a batch of a size, warped; what the warp leaves where it is stays in the tensors given, which are changed."""
    if size != (image.shape[2], image.shape[3]):
        return warped(image, label, warp, size)
    for index in _parts(warp.moving()):
        image[index], label[index] = warped(image[index], label[index], warp.of(index), size)
    return image, label


def _parts(index: Tensor) -> list[Tensor]:
    """Return an index int64[n] in parts of up to TOGETHER; none where it is empty."""
    return list(torch.split(index, TOGETHER)) if len(index) else []


def _from_center(side: int, device: torch.device) -> Tensor:
    """Return the places of the pixels of a side, from its middle: float32[side], pixels."""
    return torch.arange(side, device=device) - (side - 1) / 2


def _spread(generator: Generator, *shape: int) -> Tensor:
    """Return random numbers from -1 to 1."""
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
