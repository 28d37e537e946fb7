"""Whole cases through the network during training: the scores that choose the checkpoint."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from store.framing import centered, fit, neighbor_step, neighbors
from store.labels import Labels
from store.layout import AIR_HU
from store.metrics import Overlap
from store.reader import Case
from train.setup import Setup
from train.unet import normalize

Overlaps = dict[str, Overlap]
"""Region (`Labels.regions`) -> its voxel counts."""


def validate(setup: Setup, network: nn.Module, ignored: int | None = None) -> dict[str, Overlaps]:
    """Return the overlaps of every validation case by its id; voxels whose reference is `ignored` do not count."""
    network.eval()
    found = {}
    for case_id in setup.split.validation:
        case = setup.store[case_id]
        found[case_id] = overlaps(reference_of(case), predict_case(case, network, setup), setup.labels, ignored)
    return found


def pooled_dice(by_case: Mapping[str, Overlaps], labels: Labels) -> dict[str, float]:
    """Return the Dice of each region over the voxels of all cases together; NaN where no case has any."""
    return {name: sum((found[name] for found in by_case.values()), Overlap()).dice for name in labels.values}


def reference_of(case: Case) -> npt.NDArray[np.uint8]:
    """Return the reference of a case, uint8[z, y, x], label values; background where it has no mask."""
    return case.label[:] if case.label is not None else np.zeros(case.image.shape, dtype=np.uint8)


def overlaps(
    reference: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], labels: Labels, ignored: int | None = None
) -> Overlaps:
    """Count a prediction against its reference, all regions at once.

    Each pair of true and predicted class is counted once, a slice at a time; regions are sums of those counts.

    Parameters
    ----------
    reference
        uint8[z, y, x], label values; values that no label has are background.
    predicted
        uint8[z, y, x], class indices.
    ignored
        Label value whose voxels are left out.
    """
    values = labels.table().tolist()
    count = len(values)
    class_of = np.zeros(256, dtype=np.intp)
    class_of[values] = range(count)
    if ignored is not None:
        class_of[ignored] = count
    pairs = np.zeros((count + 1) * count, dtype=np.int64)
    for truth, answer in zip(reference, predicted, strict=True):
        filled = (truth | answer) != 0  # most voxels are background in both, which no region asks for
        pairs += np.bincount(class_of[truth[filled]] * count + answer[filled], minlength=len(pairs))
    table = pairs.reshape(count + 1, count)[:count]
    found = {}
    for name, region in labels.regions().items():
        classes = [values.index(value) for value in region]
        both = int(table[np.ix_(classes, classes)].sum())
        found[name] = Overlap(both, int(table[:, classes].sum()) - both, int(table[classes].sum()) - both)
    return found


@torch.no_grad()
def predict_case(case: Case, network: nn.Module, setup: Setup) -> npt.NDArray[np.uint8]:
    """Return the class index of every voxel of a case: uint8[z, y, x]; slices are padded whole, never cropped."""
    config = setup.config
    step = 2**config.depth
    apart = neighbor_step(config.window_spacing_mm, case.info.spacing_mm[0])
    nz, ny, nx = case.image.shape
    size = (-(-ny // step) * step, -(-nx // step) * step)
    corner = centered((ny, nx), size)
    volume = np.empty((nz, *size), dtype=np.int16)
    for z, section in enumerate(case.image):
        fit(section, corner, AIR_HU, volume[z])
    predicted = np.empty((nz, ny, nx), dtype=np.uint8)
    for first in range(0, nz, config.batch):
        chosen = range(first, min(first + config.batch, nz))
        windows = volume[[neighbors(z, nz, config.context, apart) for z in chosen]]
        image = normalize(torch.from_numpy(windows).to(setup.device), config.window_low, config.window_high)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=setup.bf16):
            best = network(image.contiguous(memory_format=torch.channels_last)).argmax(dim=1).to(torch.uint8)
        predicted[first : first + len(chosen)] = (
            best[:, -corner[0] : ny - corner[0], -corner[1] : nx - corner[1]].cpu().numpy()
        )
    return predicted
