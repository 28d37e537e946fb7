"""Dice and cross-entropy, together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Class index of pixels that count for nothing (what `torch.nn.functional.cross_entropy` takes for it by default)."""


def own(total: Tensor) -> Tensor:
    """Return a sum over this process's slices as it is; with several processes, `slicemill.train.network.processes` adds the others'."""
    return total


def dice_and_cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor, together: Callable[[Tensor], Tensor] = own
) -> tuple[Tensor, Tensor]:
    """Return soft Dice loss over the labels plus cross-entropy over all classes, and the cross-entropy of each slice.

    Dice is taken over the whole batch, so that slices without a label do not divide nothing by nothing (nnU-Net's
    "batch Dice"; Isensee et al. 2021). Classes that the batch lacks are left out of its mean.

    Parameters
    ----------
    logits
        float[b, k, y, x].
    label
        int64[b, y, x], class indices; IGNORED counts for nothing.
    weights
        float[k], weight of each class; those of Dice and of cross-entropy are normalized to a mean of one.
    together
        Adds a tensor of sums up over all processes, for the loss of the whole batch.

    Returns
    -------
    loss: float[], of the whole batch; cross-entropy: float[b], unweighted, without a gradient.
    """
    counted = label != IGNORED
    entropy = F.cross_entropy(logits.float(), label, reduction="none")
    probability = logits.float().softmax(dim=1)[:, 1:] * counted[:, None]
    truth = torch.stack([label == index for index in range(1, logits.shape[1])], dim=1).to(probability.dtype)
    both, ours, theirs = (together(part.sum(dim=(0, 2, 3))) for part in (probability * truth, probability, truth))
    present = (theirs > 0) * weights[1:]
    dice = (present * (1 - (2 * both + 1) / (ours + theirs + 1))).sum() / present.sum().clamp(min=1e-6)
    weight = weights[label.clamp(min=0)] * counted
    weighted = together((entropy * weight).sum()) / together(weight.sum()).clamp(min=1e-6)
    by_slice = entropy.detach().sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
    return dice + weighted, by_slice


def supervised(
    outputs: Sequence[Tensor], label: Tensor, weights: Tensor, together: Callable[[Tensor], Tensor] = own
) -> tuple[Tensor, Tensor]:
    """Return the loss over the decoder's levels, finest first, each half the weight of the one before (nnU-Net), and
    the finest level's cross-entropy of each slice.

    Coarser levels are judged by every second, fourth, ... pixel of the labels.
    """
    shares = [0.5**level for level in range(len(outputs))]
    parts = [
        dice_and_cross_entropy(output, label[:, :: 2**level, :: 2**level], weights, together)
        for level, output in enumerate(outputs)
    ]
    total = sum(
        (share * loss for share, (loss, _) in zip(shares, parts, strict=True)), start=torch.zeros_like(parts[0][0])
    )
    return total / sum(shares), parts[0][1]
