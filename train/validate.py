"""Whole cases through the network during training: the scores that choose the checkpoint."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from store.framing import centered, fit, neighbor_step, neighbors
from store.layout import AIR_HU
from store.metrics import Overlap, overlap
from store.reader import Case
from train.setup import Setup
from train.step import running_in
from train.unet import normalize


@torch.no_grad()
def validate(setup: Setup, network: nn.Module) -> dict[str, float]:
    """Return the global Dice of each region (`Labels.regions`) over every slice of the validation cases."""
    network.eval()
    totals = {name: Overlap() for name in setup.labels.values}
    classes = setup.labels.table()
    for case_id in setup.split.validation:
        case = setup.store[case_id]
        predicted = predict_case(case, network, setup)
        reference = case.label[:] if case.label is not None else np.zeros_like(predicted)
        for name, values in setup.labels.regions().items():
            totals[name] += overlap(np.isin(reference, values), np.isin(classes[predicted], values))
    return {name: counts.dice for name, counts in totals.items()}


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
        with running_in(setup.device, setup.precision):
            best = network(image.contiguous(memory_format=torch.channels_last)).argmax(dim=1)
        predicted[first : first + len(chosen)] = (
            best[:, -corner[0] : ny - corner[0], -corner[1] : nx - corner[1]].cpu().numpy()
        )
    return predicted
