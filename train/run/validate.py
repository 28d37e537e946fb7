"""Whole cases through the network during training: the scores that choose the checkpoint."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slicemill.ct.crop import centered, fit, neighbor_step, neighbors
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import Case
from slicemill.train.data.augment import resample
from slicemill.train.data.dataset import zoom_of
from slicemill.train.network.step import running_in
from slicemill.train.network.unet import normalize
from slicemill.train.run.setup import Setup, network_size
from slicemill.train.run.tally import region_overlaps

Overlaps = dict[str, Overlap]
"""Region (`Labels.regions`) -> its voxel counts."""


def validate(setup: Setup, network: nn.Module) -> dict[str, Overlaps]:
    """Return the overlaps of every validation case by its id; processes that train together share the cases out."""
    network.eval()
    processes, classes = setup.processes, len(setup.labels.values) + 1
    voxels = torch.zeros((len(setup.split.validation), classes, classes), dtype=torch.long, device=setup.device)
    for index, case_id in enumerate(setup.split.validation):
        if index % processes.count == processes.rank:
            case = setup.store[case_id]
            counts = voxels_by_class(
                reference_of(case), predict_case(case, network, setup), setup.labels, setup.ignored
            )
            voxels[index] = torch.from_numpy(counts)
    shared = processes.together(voxels)
    return {
        case_id: region_overlaps(counts, setup.labels)
        for case_id, counts in zip(setup.split.validation, shared, strict=True)
    }


def pooled_dice(by_case: Mapping[str, Overlaps], labels: Labels) -> dict[str, float]:
    """Return the Dice of each region over the voxels of all cases together; NaN where no case has any."""
    return {name: sum((found[name] for found in by_case.values()), Overlap()).dice for name in labels.values}


def reference_of(case: Case) -> npt.NDArray[np.uint8]:
    """Return the reference of a case, uint8[z, y, x], label values; background where it has no mask."""
    return case.label[:] if case.label is not None else np.zeros(case.image.shape, dtype=np.uint8)


def overlaps(
    reference: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], labels: Labels, ignored: int | None = None
) -> Overlaps:
    """Count a prediction against its reference, all regions at once; parameters as in `voxels_by_class`."""
    return region_overlaps(torch.from_numpy(voxels_by_class(reference, predicted, labels, ignored)), labels)


def voxels_by_class(
    reference: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], labels: Labels, ignored: int | None = None
) -> npt.NDArray[np.int64]:
    """Return how many voxels of each true class got which: int64[k, k], but for those that are background in both.

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
    return pairs.reshape(count + 1, count)[:count]


@torch.no_grad()
def predict_case(case: Case, network: nn.Module, setup: Setup) -> npt.NDArray[np.uint8]:
    """Return the class index of every voxel of a case: uint8[z, y, x]; slices are padded whole, never cropped.

    Where the network has a pixel size, slices are brought to it, and probabilities back.
    """
    config = setup.config
    apart = neighbor_step(config.window_spacing_mm, case.info.spacing_mm[0])
    zoom = zoom_of(case.info.spacing_mm, config.wanted_spacing_mm)
    nz, ny, nx = case.image.shape
    size = network_size(case, config)
    if config.norm == "instance":  # its statistics see the padding, which is the exported network's at inference
        size = (max(size[0], setup.size[0]), max(size[1], setup.size[1]))
    held = (ny, nx) if config.spacing_mm else size
    corner = centered((ny, nx), held)
    volume = np.empty((nz, *held), dtype=np.int16)
    for z, section in enumerate(case.image):
        fit(section, corner, AIR_HU, volume[z])
    predicted = np.empty((nz, ny, nx), dtype=np.uint8)
    batch = max(1, math.prod(setup.view.size) * config.batch // setup.processes.count // math.prod(size))
    for first in range(0, nz, batch):
        chosen = range(first, min(first + batch, nz))
        windows = volume[[neighbors(z, nz, config.context, apart) for z in chosen]]
        image = normalize(torch.from_numpy(windows).to(setup.device), config.window_low, config.window_high)
        if config.spacing_mm:
            image = resampled(image, zoom, size)
        with running_in(setup.device, setup.precision):
            logits = network(image.contiguous(memory_format=torch.channels_last))
        if config.spacing_mm:
            logits = resampled(logits.float().softmax(dim=1), (1 / zoom[0], 1 / zoom[1]), (ny, nx))
        best = logits.argmax(dim=1).to(torch.uint8)
        predicted[first : first + len(chosen)] = (
            best[:, -corner[0] : ny - corner[0], -corner[1] : nx - corner[1]].cpu().numpy()
        )
    return predicted


def resampled(values: Tensor, zoom: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Return slices float32[b, c, y, x] about their centers at another pixel size; what comes in from outside is -1."""
    nothing = torch.zeros((len(values), *values.shape[2:]), dtype=torch.long, device=values.device)
    return resample(values, nothing, torch.tensor([zoom] * len(values), device=values.device), size)[0]
