"""Dice and cross-entropy, together."""

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_and_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return soft Dice loss over the labels plus cross-entropy over all classes.

    Dice is taken over the whole batch, so that slices without a label do not divide nothing by nothing (nnU-Net's
    "batch Dice"; Isensee et al. 2021). Classes that the batch lacks are left out of its mean.

    Parameters
    ----------
    logits
        float[b, k, y, x].
    label
        int64[b, y, x], class indices.
    """
    probability = logits.float().softmax(dim=1)[:, 1:]
    truth = F.one_hot(label, logits.shape[1]).movedim(-1, 1)[:, 1:].to(probability.dtype)
    both = (probability * truth).sum(dim=(0, 2, 3))
    size = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.amax(dim=(0, 2, 3)) > 0
    dice = torch.where(present, 1 - (2 * both + 1) / (size + 1), torch.zeros_like(both)).sum() / present.sum().clamp(
        min=1
    )
    return dice + F.cross_entropy(logits.float(), label)
