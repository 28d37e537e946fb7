"""Validation: segment full cases with the network in training, and score them."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slicemill.ct.crop import centered_corner, crop_or_pad, neighbor_step, neighbors
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import Case
from slicemill.train.data.augment import resample
from slicemill.train.data.dataset import compute_zoom
from slicemill.train.network.step import mixed_precision
from slicemill.train.network.unet import normalize
from slicemill.train.run.setup import Setup, network_size
from slicemill.train.run.tally import region_overlaps

Overlaps = dict[str, Overlap]
"""Region (`Labels.regions`) -> its voxel counts."""


def keep_on() -> None:
    """Do nothing: what is called between batches of slices where nothing can stop them."""


def validate(setup: Setup, network: nn.Module, check: Callable[[], object] = keep_on) -> dict[str, Overlaps]:
    """Return the overlaps of every validation case by case id. Processes that train together divide the cases.

    `check` is called before each batch of slices, and may raise.
    """
    network.eval()
    processes, classes = setup.processes, len(setup.labels.values) + 1
    voxels = torch.zeros((len(setup.split.validation), classes, classes), dtype=torch.long, device=setup.device)
    for index, case_id in enumerate(setup.split.validation):
        if index % processes.count == processes.rank:
            case = setup.store[case_id]
            predicted = predict_case(case, network, setup, check)
            counts = voxels_by_class(read_reference(case), predicted, setup.labels, setup.ignored)
            voxels[index] = torch.from_numpy(counts)
    total = processes.sum(voxels)
    return {
        case_id: region_overlaps(counts, setup.labels)
        for case_id, counts in zip(setup.split.validation, total, strict=True)
    }


def global_dice(by_case: Mapping[str, Overlaps], labels: Labels) -> dict[str, float]:
    """Return the Dice of each region over the voxels of all cases together; NaN if no case has the region."""
    return {name: sum((overlaps[name] for overlaps in by_case.values()), Overlap()).dice for name in labels.values}


def read_reference(case: Case) -> npt.NDArray[np.uint8]:
    """Return the reference of a case, uint8[z, y, x], label values; background if it has no mask."""
    return case.label[:] if case.label is not None else np.zeros(case.image.shape, dtype=np.uint8)


def count_overlaps(
    reference: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], labels: Labels, ignored: int | None = None
) -> Overlaps:
    """Count the overlap of every region; parameters as in `voxels_by_class`."""
    return region_overlaps(torch.from_numpy(voxels_by_class(reference, predicted, labels, ignored)), labels)


def voxels_by_class(
    reference: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], labels: Labels, ignored: int | None = None
) -> npt.NDArray[np.int64]:
    """Count voxels by true and predicted class: int64[k, k], without those that are background in both.

    Parameters
    ----------
    reference
        uint8[z, y, x], label values; unknown values are background.
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
        class_of[ignored] = count  # an additional row, which is cut off at the end
    pairs = np.zeros((count + 1) * count, dtype=np.int64)
    for truth, prediction in zip(reference, predicted, strict=True):
        labeled = (truth | prediction) != 0  # most voxels are background in both, and no region needs their count
        pairs += np.bincount(class_of[truth[labeled]] * count + prediction[labeled], minlength=len(pairs))
    return pairs.reshape(count + 1, count)[:count]


@torch.no_grad()
def predict_case(
    case: Case, network: nn.Module, setup: Setup, check: Callable[[], object] = keep_on
) -> npt.NDArray[np.uint8]:
    """Return the class index of every voxel of a case: uint8[z, y, x]. Slices are padded, never cropped.

    If the network has a fixed pixel size, slices are resampled to it, and probabilities back. `check` is called before
    each batch of slices, and may raise.
    """
    config = setup.config
    step = neighbor_step(config.window_spacing_mm, case.info.spacing_mm[0])
    zoom = compute_zoom(case.info.spacing_mm, config.network_spacing_mm)
    nz, ny, nx = case.image.shape
    size = network_size(case, config)
    if config.norm == "instance":  # its statistics depend on the padding; pad as the exported network does
        size = (max(size[0], setup.size[0]), max(size[1], setup.size[1]))
    # Resampling pads by itself; otherwise the volume is padded once, here.
    padded = (ny, nx) if config.spacing_mm else size
    corner = centered_corner((ny, nx), padded)
    volume = np.empty((nz, *padded), dtype=np.int16)
    for z, section in enumerate(case.image):
        crop_or_pad(section, corner, AIR_HU, volume[z])
    predicted = np.empty((nz, ny, nx), dtype=np.uint8)
    # Number of slices that use about as much memory as a training batch.
    batch = max(1, math.prod(setup.view.size) * config.batch // setup.processes.count // math.prod(size))
    for first in range(0, nz, batch):
        check()
        chosen = range(first, min(first + batch, nz))
        windows = volume[[neighbors(z, nz, config.context, step) for z in chosen]]
        image = normalize(torch.from_numpy(windows).to(setup.device), config.window_low, config.window_high)
        if config.spacing_mm:
            image = resample_slices(image, zoom, size)
        with mixed_precision(setup.device, setup.precision):
            logits = network(image.contiguous(memory_format=torch.channels_last))
        if config.spacing_mm:
            logits = resample_slices(logits.float().softmax(dim=1), (1 / zoom[0], 1 / zoom[1]), (ny, nx))
        best = logits.argmax(dim=1).to(torch.uint8)
        inside = best[:, -corner[0] : ny - corner[0], -corner[1] : nx - corner[1]]
        predicted[first : first + len(chosen)] = inside.cpu().numpy()
    return predicted


def resample_slices(values: Tensor, zoom: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Return slices float32[b, c, y, x] at another pixel size, about their centers; -1 outside the source."""
    no_label = torch.zeros((len(values), *values.shape[2:]), dtype=torch.long, device=values.device)
    return resample(values, no_label, torch.tensor([zoom] * len(values), device=values.device), size)[0]
