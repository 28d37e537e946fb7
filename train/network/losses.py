"""The training loss: soft Dice plus cross-entropy, also over the decoder's coarser levels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Class index of ignored pixels; the default of `torch.nn.functional.cross_entropy`."""


def no_reduction(total: Tensor) -> Tensor:
    """Return a sum over the slices of this process unchanged; with several processes use `Processes.sum`."""
    return total


def balance_areas(
    label: Tensor, tumor: int, balance: float, reduce: Callable[[Tensor], Tensor] = no_reduction
) -> Tensor:
    """Return the weight of each pixel among those of its class: float32[b, y, x].

    Pixels of a slice's tumor weigh in proportion to ``area ** -balance``, the area being that of its tumor in pixels,
    and on average over those of the batch 1. All other pixels weigh 1.

    Parameters
    ----------
    label
        int64[b, y, x], class indices.
    tumor
        The class of the tumor.
    balance
        0 to 1.
    reduce
        As in `dice_and_cross_entropy`.

    >>> two = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]]])
    >>> balance_areas(two, tumor=1, balance=1).flatten(1)
    tensor([[2.0000, 1.0000, 1.0000, 1.0000],
            [0.6667, 0.6667, 0.6667, 1.0000]])
    """
    is_tumor = label == tumor
    area = is_tumor.sum(dim=(1, 2)).float()
    weight = area.clamp(min=1) ** -balance
    mean = reduce((area * weight).sum()) / reduce(area.sum()).clamp(min=1)
    return torch.where(is_tumor, (weight / mean.clamp(min=1e-6))[:, None, None], 1.0)


def dice_and_cross_entropy(
    logits: Tensor,
    label: Tensor,
    weights: Tensor,
    reduce: Callable[[Tensor], Tensor] = no_reduction,
    emphasis: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute soft Dice loss over the labels plus cross-entropy over all classes, and the cross-entropy of each slice.

    Dice is taken over the batch, so slices without a label do not divide zero by zero (nnU-Net's "batch Dice";
    Isensee et al. 2021). Classes that the batch does not contain are left out of its mean.

    Parameters
    ----------
    logits
        float[b, k, y, x].
    label
        int64[b, y, x], class indices; IGNORED pixels are excluded.
    weights
        float[k], weight of each class. Dice and cross-entropy are each normalized by the sum of their weights.
    reduce
        Adds a tensor of sums over all processes, for the loss of the batch of all.
    emphasis
        float[b, y, x], weight of each pixel besides that of its class (`balance_areas`); None weighs all alike.

    Returns
    -------
    loss: float[], of the batch; cross-entropy: float[b], unweighted, without a gradient.
    """
    counted = label != IGNORED
    entropy = F.cross_entropy(logits.float(), label, reduction="none")
    shares = counted if emphasis is None else counted * emphasis
    probability = logits.float().softmax(dim=1)[:, 1:] * shares[:, None]
    truth = torch.stack([label == index for index in range(1, logits.shape[1])], dim=1).to(probability.dtype)
    if emphasis is not None:
        truth = truth * emphasis[:, None]
    parts = (probability * (truth > 0), probability, truth)
    both, predicted, reference = (reduce(part.sum(dim=(0, 2, 3))) for part in parts)
    present = (reference > 0) * weights[1:]
    dice = (present * (1 - (2 * both + 1) / (predicted + reference + 1))).sum() / present.sum().clamp(min=1e-6)
    weight = weights[label.clamp(min=0)] * shares
    weighted = reduce((entropy * weight).sum()) / reduce(weight.sum()).clamp(min=1e-6)
    by_slice = entropy.detach().sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
    return dice + weighted, by_slice


def multi_level_loss(
    outputs: Sequence[Tensor],
    label: Tensor,
    weights: Tensor,
    reduce: Callable[[Tensor], Tensor] = no_reduction,
    emphasis: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the loss over the decoder's levels, finest first, and the cross-entropy of each slice at the finest.

    Each level has half the weight of the one before (nnU-Net). Coarser levels are compared with every second, fourth,
    ... pixel of the labels. Parameters are those of `dice_and_cross_entropy`.
    """
    shares = [0.5**level for level in range(len(outputs))]
    parts = [
        dice_and_cross_entropy(
            output,
            label[:, :: 2**level, :: 2**level],
            weights,
            reduce,
            None if emphasis is None else emphasis[:, :: 2**level, :: 2**level],
        )
        for level, output in enumerate(outputs)
    ]
    total = sum(
        (share * loss for share, (loss, _) in zip(shares, parts, strict=True)), start=torch.zeros_like(parts[0][0])
    )
    return total / sum(shares), parts[0][1]
