"""Augmentation: random changes of a batch on its device. Each is a pure function of batch, strength and generator.

1. `tilt`, before all others, reslices slabs of slices along oblique planes.
2. `mirror` flips slices; pixels are copied, not interpolated.
3. `move` and `elastic`, and a change of pixel size, become one `Warp`: image and label are interpolated once.
4. `noise`, `blur`, `contrast`, `gamma` and `lowres` change values one after another and stay within the window.

The strength, 0 to 1, scales both the range of a change and the share of slices that it changes. Use 1 for few patients
and 0.4 for a short training; 0 changes nothing. Each kind takes time only for the slices that it changes.

Unless a constant says otherwise, ranges at strength 1 are those of nnU-Net (Isensee et al. 2021, version 2's
`nnUNetTrainer.get_training_transforms`). Shares are twice those of nnU-Net, so strength 0.4 is similar to nnU-Net.

Below, u stands for a number drawn uniformly from -1 to 1 for each slice. Images are normalized: -1 is the lower end
of the window, 1 the upper end.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from slicemill.train.config import KINDS
from slicemill.train.data.generators import Generators
from slicemill.train.data.transfers import copy_to_device
from slicemill.train.data.warp import (
    CONTROL_SPANS,
    ImageAndLabel,
    Warp,
    apply_warp,
    apply_where_changed,
    center_offsets,
    identity_warp,
    scale_warp,
    sides_xy,
)

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
"""Share of the slices that a kind changes at strength 1.

nnU-Net mirrors 0.5 of its patches along each axis, rotates 0.2, scales 0.2, adds noise to 0.1, blurs 0.2, changes the
brightness of 0.15, the contrast of 0.15, the gamma of 0.3 and of 0.1 inverted, and the resolution of 0.25. Its first
version deformed 0.2. Mirroring cannot do more than half, so 0.5 is not doubled."""
MAX_TURN = math.radians(30)
"""Largest rotation. nnU-Net has the same in 3-D. Its 180 degrees in 2-D are for pictures of unknown orientation."""
MAX_SCALE = 1.4
"""Largest factor by which sizes are multiplied or divided."""
MAX_SHIFT = 0.12
"""Largest shift, as a share of the side. nnU-Net has none, because its patches are cropped at random."""
MAX_BEND = 0.25
"""Largest shift of a control point, as a share of the distance between control points.

Below 0.48 nothing folds (Choi and Lee 2000, Injectivity conditions of 2D and 3D uniform cubic B-spline functions). On
512 pixels 0.25 is 16 pixels, after smoothing 4.4 in root mean square. nnU-Net's first version had up to 3."""
MAX_NOISE = 0.1
"""Largest standard deviation of the noise, in normalized units; 0.1 is 25 HU for a window of 500."""
MIN_BLUR, MAX_BLUR = 0.5, 1.0
"""Standard deviation of the blur, pixels. Less than 0.5 is invisible, so the strength lowers only the maximum."""
KERNEL_REACH = math.ceil(3 * MAX_BLUR)
"""Pixels to either side over which a blur sums."""
MAX_CONTRAST = 1.25
"""Largest factor by which distances in HU from the middle of the window are multiplied or divided."""
MAX_BRIGHTNESS = 0.15
"""Largest offset, in normalized units; 0.15 is 37 HU for a window of 500. nnU-Net multiplies by 0.75 to 1.25."""
MAX_GAMMA = 1.5
"""Largest exponent of gamma; the smallest is its inverse."""
MAX_COARSENESS = 2.0
"""Largest factor by which pixels are widened before a slice is brought back to its size."""
TOGETHER = 4
"""Slices changed at a time on a CPU, so that intermediate results stay in its cache (`slicemill bench constants`).

A GPU changes all slices of a kind at once: there, each operation costs its launch."""


def augment(
    image: Tensor,
    label: Tensor,
    strength: float,
    kinds: Iterable[str],
    generators: Generators,
    *,
    zoom: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> ImageAndLabel:
    """Apply random changes to a batch, each kind to its share of the slices.

    Parameters
    ----------
    image
        float32[b, c, y, x], normalized. The channels are neighboring slices: one change for all, but independent noise.
    label
        int64[b, y, x], class indices, or a negative number for ignored pixels. Pixels outside the source become 0.
    strength
        0 to 1.
    kinds
        Names of `slicemill.train.config.KINDS`; they are applied in the order of that list.
    generators
        For the device of the batch.
    zoom, size
        As in `resample`, done in the same interpolation; None keeps pixel size and size.
    """
    shares = {kind: strength * SHARES[kind] for kind in kinds}
    return augment_by_shares(image, label, strength, shares, generators, zoom=zoom, size=size)


def augment_by_shares(
    image: Tensor,
    label: Tensor,
    strength: float,
    shares: Mapping[str, float],
    generators: Generators,
    *,
    zoom: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> ImageAndLabel:
    """Apply random changes as `augment` does, but each kind to a share of the slices that the caller chooses."""
    drawn = _draw_slices(shares, len(image), generators.host, image.device)
    image, label = image.clone(), label.clone()
    if len(index := drawn["mirror"]):
        image[index], label[index] = mirror(image[index], label[index])
    if len(drawn["warp"]) or zoom is not None or size is not None:
        warp = identity_warp(len(image), image.device)
        new_size = size or (image.shape[2], image.shape[3])
        if len(index := drawn["move"]):
            warp.matrix[index], warp.shift[index] = move(len(index), new_size, strength, generators.device)
        if len(index := drawn["elastic"]):
            warp.bend[index] = elastic(len(index), new_size, strength, generators.device)
        warped = drawn["warp"] if zoom is None else None
        image, label = _warp_in_place(image, label, scale_warp(warp, zoom), new_size, warped)
    for kind, change in VALUE_KINDS.items():
        generator = generators.host if kind in DRAWN_ON_HOST else generators.device
        for index in _split_index(drawn[kind]):
            image[index] = change(image[index], strength, generator)
    return image, label


def resample(image: Tensor, label: Tensor, zoom: Tensor, size: tuple[int, int]) -> ImageAndLabel:
    """Bring slices to another pixel size and size, about their centers. Slices that need no change stay bit for bit.

    Parameters
    ----------
    image, label
        As in `augment`.
    zoom
        float32[b, 2], spacing of the slice / spacing of the result along y and x; above 1 enlarges.
    size
        y, x of the result. Pixels outside the source become air and background.
    """
    warp = scale_warp(identity_warp(len(image), image.device), zoom)
    return _warp_in_place(image.clone(), label.clone(), warp, size, None)


def tilt(image: Tensor, label: Tensor, generator: Generator) -> ImageAndLabel:
    """Reslice slabs along random oblique planes through the center of their middle slice.

    The plane is ``z = slope * (cos(t) * x + sin(t) * y)``, x and y from -1 to 1 over the slice. The direction t is
    uniform over the circle; the slope is uniform up to the one that reaches m slices at a corner. Images are
    interpolated linearly along z, labels take the nearest slice.

    Parameters
    ----------
    image
        float32[b, c + 2m, y, x].
    label
        int64[b, 1 + 2m, y, x].

    Returns
    -------
    float32[b, c, y, x] and int64[b, y, x]; the input where m is 0.
    """
    reach, (height, width) = label.shape[1] // 2, label.shape[2:]
    if reach == 0:
        return image, label[:, 0]
    toward = math.pi * _signed_uniform(generator, len(image), 1, 1, 1)
    slope = reach * _signed_uniform(generator, len(image), 1, 1, 1) / (toward.cos().abs() + toward.sin().abs())
    x, y = (2 / max(side - 1, 1) * center_offsets(side, image.device) for side in (width, height))
    z = (slope * (toward.cos() * x + toward.sin() * y[:, None])).clamp(-reach, reach)
    below = z.floor().clamp(max=reach - 1)
    index, part = below.long() + reach, z - below
    channels = [
        torch.lerp(image[:, first:].gather(1, index), image[:, first + 1 :].gather(1, index), part)
        for first in range(image.shape[1] - 2 * reach)
    ]
    return torch.cat(channels, dim=1), label.gather(1, z.round().long() + reach)[:, 0]


def mirror(image: Tensor, label: Tensor) -> ImageAndLabel:
    """Exchange left and right of all slices; shapes as in `augment`.

    >>> mirror(torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.tensor([[[0, 1, 2]]]))[1]
    tensor([[[2, 1, 0]]])
    """
    return image.flip(3), label.flip(2)


def move(count: int, size: tuple[int, int], strength: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw the matrices float32[n, 2, 2] and shifts float32[n, 2] of a `Warp` that rotates, scales and shifts slices.

    - Rotation by ``MAX_TURN * strength * u``, up to 30 degrees at strength 1; a positive angle turns the picture
      counterclockwise.
    - Scale by ``MAX_SCALE ** (strength * u)``, 0.71 to 1.4 at strength 1; above 1 enlarges. The exponent makes
      enlarging and shrinking by the same factor equally likely.
    - Shift by ``MAX_SHIFT * strength * u`` of the width and of the height; a positive shift moves the picture left
      and up.

    `size` is y, x of the slices.
    """
    angle = MAX_TURN * strength * _signed_uniform(generator, count)
    scale = MAX_SCALE ** (strength * _signed_uniform(generator, count))
    shift = MAX_SHIFT * strength * sides_xy(size, generator.device) * _signed_uniform(generator, count, 2)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    return torch.stack([cosine, -sine, sine, cosine], dim=1).view(count, 2, 2), shift


def elastic(count: int, size: tuple[int, int], strength: float, generator: Generator) -> Tensor:
    """Draw the control points float32[n, k, k, 2] of a `Warp` that deforms slices of a size y, x smoothly.

    Each control point moves by ``MAX_BEND * strength * u`` of the distance between control points, along x and along y.
    """
    apart = sides_xy(size, generator.device) / CONTROL_SPANS
    points = CONTROL_SPANS + 3
    return MAX_BEND * strength * apart * _signed_uniform(generator, count, points, points, 2)


def noise(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Add independent Gaussian noise to each pixel, like a lower dose.

    Its standard deviation is uniform from 0 to ``MAX_NOISE * strength``, one per slice: at strength 1 up to 25 HU for
    a window of 500 HU.
    """
    deviation = MAX_NOISE * strength * torch.rand(len(image), 1, 1, 1, generator=generator, device=image.device)
    grains = torch.randn(image.shape, generator=generator, device=image.device)
    return grains.mul_(deviation).add_(image).clamp_(-1, 1)


def blur(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Smooth slices with a Gaussian, like a softer reconstruction kernel; pixels of the border are repeated.

    Its standard deviation is uniform from MIN_BLUR to ``MIN_BLUR + (MAX_BLUR - MIN_BLUR) * strength``, one per slice:
    at strength 1 from 0.5 to 1 pixel.
    """
    widest = MIN_BLUR + (MAX_BLUR - MIN_BLUR) * strength
    chance = torch.rand(len(image), 1, generator=generator, device=image.device)
    deviation = MIN_BLUR + (widest - MIN_BLUR) * chance
    apart = torch.arange(-KERNEL_REACH, KERNEL_REACH + 1, device=image.device)
    kernel = (-0.5 * (apart / deviation) ** 2).softmax(dim=1)
    # One group per channel and slice: each slice has another kernel, applied along y, then along x.
    count, channels, height, width = image.shape
    kernels = kernel.repeat_interleave(channels, dim=0)[:, None, None]
    planes = F.pad(image, (KERNEL_REACH,) * 4, mode="replicate").flatten(0, 1)[None]
    planes = planes.contiguous(memory_format=torch.channels_last)  # a third of the time on a CPU
    planes = F.conv2d(planes, kernels.mT, groups=count * channels)
    planes = F.conv2d(planes, kernels, groups=count * channels)
    return planes.view(count, channels, height, width)


def contrast(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Change contrast and brightness: ``v * factor + offset``, v from -1 to 1 over the window, clipped to it.

    - ``factor = MAX_CONTRAST ** (strength * u)``, 0.8 to 1.25 at strength 1. Above 1 spreads values away from the
      middle of the window, below 1 pulls them toward it.
    - ``offset = MAX_BRIGHTNESS * strength * u``, up to 37 HU for a window of 500 HU at strength 1. A positive offset
      brightens.
    """
    factor = MAX_CONTRAST ** (strength * _signed_uniform(generator, len(image), 1, 1, 1))
    offset = MAX_BRIGHTNESS * strength * _signed_uniform(generator, len(image), 1, 1, 1)
    return (image * factor).add_(offset).clamp_(-1, 1)


def gamma(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Raise gray values to a power: ``v ** exponent``, v from 0 to 1 over the window, whose ends stay.

    ``exponent = MAX_GAMMA ** (strength * u)``, 0.67 to 1.5 at strength 1. Above 1 (u positive) darkens the values
    between the ends and spreads the bright ones; below 1 (u negative) brightens them and spreads the dark ones. For
    example, the middle of the window, 0.5, becomes 0.35 at an exponent of 1.5 and 0.63 at 0.67.
    """
    exponent = MAX_GAMMA ** (strength * _signed_uniform(generator, len(image), 1, 1, 1))
    shades = (image + 1).mul_(0.5).clamp_(0, 1)
    return shades.log_().mul_(exponent).exp_().mul_(2).sub_(1)  # pow takes twice the time on a CPU


def lowres(image: Tensor, strength: float, generator: Generator) -> Tensor:
    """Lower the in-plane resolution: average down to wider pixels, then interpolate up to the same size.

    Pixels become ``MAX_COARSENESS ** (strength * v)`` times as wide, v uniform from 0 to 1, one per slice: at
    strength 1 from 1 to 2 times. The generator is on the CPU, because the host needs the sizes.
    """
    wider = MAX_COARSENESS ** (strength * torch.rand(len(image), generator=generator))
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
"""The kinds that change values only: (image, strength, generator) -> image."""
DRAWN_ON_HOST = frozenset({"lowres"})
"""The kinds whose generator is on the CPU."""


def _draw_slices(
    shares: Mapping[str, float], count: int, generator: Generator, device: torch.device
) -> dict[str, Tensor]:
    """Return the slices that each kind changes, and "warp", those of move or elastic: int64[n], indices, on a device.

    The host draws them, because it needs their numbers, and copies them to the device once.
    """
    # One number per kind and slice decides which slices a kind changes, independent of the kinds that are requested.
    limits = torch.tensor([shares.get(kind, 0.0) for kind in KINDS])[:, None]
    chosen = dict(zip(KINDS, torch.rand(len(KINDS), count, generator=generator) < limits, strict=True))
    chosen["warp"] = chosen["move"] | chosen["elastic"]
    drawn = {kind: row.nonzero()[:, 0] for kind, row in chosen.items()}
    if device.type == "cpu":
        return drawn
    together = copy_to_device(torch.cat(list(drawn.values())), device)
    return dict(zip(drawn, torch.split(together, [len(index) for index in drawn.values()]), strict=True))


def _warp_in_place(
    image: Tensor, label: Tensor, warp: Warp, size: tuple[int, int], index: Tensor | None
) -> ImageAndLabel:
    """Return warped slices of a size. If the size stays, only changed slices are computed, in the tensors passed in.

    `index` are the changed slices, int64[n]; None looks them up in the warp.
    """
    if size != (image.shape[2], image.shape[3]):
        return apply_warp(image, label, warp, size)
    if index is None and image.device.type != "cpu":
        return apply_where_changed(image, label, warp)
    for part in _split_index(warp.changes().nonzero()[:, 0] if index is None else index):
        image[part], label[part] = apply_warp(image[part], label[part], warp.select(part), size)
    return image, label


def _split_index(index: Tensor) -> list[Tensor]:
    """Split an index int64[n] into parts of up to TOGETHER on a CPU; an empty index has no parts."""
    if not len(index):
        return []
    return list(torch.split(index, TOGETHER)) if index.device.type == "cpu" else [index]


def _signed_uniform(generator: Generator, *shape: int) -> Tensor:
    """Return uniform random numbers from -1 to 1."""
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
