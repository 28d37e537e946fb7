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


def dice_and_cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor, reduce: Callable[[Tensor], Tensor] = no_reduction
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

    Returns
    -------
    loss: float[], of the batch; cross-entropy: float[b], unweighted, without a gradient.
    """
    counted = label != IGNORED
    entropy = F.cross_entropy(logits.float(), label, reduction="none")
    probability = logits.float().softmax(dim=1)[:, 1:] * counted[:, None]
    truth = torch.stack([label == index for index in range(1, logits.shape[1])], dim=1).to(probability.dtype)
    both, predicted, reference = (reduce(part.sum(dim=(0, 2, 3))) for part in (probability * truth, probability, truth))
    present = (reference > 0) * weights[1:]
    dice = (present * (1 - (2 * both + 1) / (predicted + reference + 1))).sum() / present.sum().clamp(min=1e-6)
    weight = weights[label.clamp(min=0)] * counted
    weighted = reduce((entropy * weight).sum()) / reduce(weight.sum()).clamp(min=1e-6)
    by_slice = entropy.detach().sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
    return dice + weighted, by_slice


def multi_level_loss(
    outputs: Sequence[Tensor], label: Tensor, weights: Tensor, reduce: Callable[[Tensor], Tensor] = no_reduction
) -> tuple[Tensor, Tensor]:
    """Compute the loss over the decoder's levels, finest first, and the cross-entropy of each slice at the finest.

    Each level has half the weight of the one before (nnU-Net). Coarser levels are compared with every second, fourth,
    ... pixel of the labels. Parameters are those of `dice_and_cross_entropy`.
    """
    shares = [0.5**level for level in range(len(outputs))]
    parts = [
        dice_and_cross_entropy(output, label[:, :: 2**level, :: 2**level], weights, reduce)
        for level, output in enumerate(outputs)
    ]
    total = sum(
        (share * loss for share, (loss, _) in zip(shares, parts, strict=True)), start=torch.zeros_like(parts[0][0])
    )
    return total / sum(shares), parts[0][1]
