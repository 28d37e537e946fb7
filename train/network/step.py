"""One training step: a batch of HU in, updated weights out."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from slicemill.ct.labels import Labels
from slicemill.train.config import Config
from slicemill.train.data.augment import augment, resample, tilt
from slicemill.train.data.dataset import Batch
from slicemill.train.data.generators import Generators
from slicemill.train.network.losses import IGNORED, multi_level_loss, no_reduction
from slicemill.train.network.muon import Muon
from slicemill.train.network.processes import ALONE, Processes
from slicemill.train.network.unet import Levels, UNet, normalize

Tensors = tuple[Tensor, ...] | list[Tensor]
WARM_UP = 0.05
"""Share of the run in which the learning rate rises."""
MAX_GRADIENT = 5.0
"""Norm to which gradients are clipped."""
MOMENTUM = 0.99
"""Nesterov momentum of SGD (nnU-Net; Isensee et al. 2021)."""
POLY_POWER = 0.9
"""Exponent of poly decay (nnU-Net)."""


class DeviceBatch(NamedTuple):
    """A batch on the device, as decoded."""

    image: Tensor
    """int16[b, c + 2 reach, y, x], HU."""
    label: Tensor
    """int64[b, 1 + 2 reach, y, x], class indices."""
    zoom: Tensor
    """float32[b, 2], stored pixel size / network pixel size along y and x."""


class StepResult(NamedTuple):
    """The result of a step, still on the device."""

    loss: Tensor
    """float[], of the batch of all processes."""
    by_slice: Tensor
    """float[b], cross-entropy of each slice of this process."""
    voxels: Tensor
    """int64[k, k], pixels of this process by true and predicted class."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A network in training: weights, running average, optimizer and loss scaler."""

    network: UNet
    average: AveragedModel
    """Running average of the weights and of batch norm's statistics, which varies less from epoch to epoch."""
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    """Keeps small fp16 gradients from vanishing; does nothing in other precisions."""
    forward: Callable[[Tensor], list[Tensor]]
    """The network as it is trained, compiled or distributed: float[b, c, y, x] -> logits of its levels."""
    precision: torch.dtype
    class_weights: Tensor
    """float[k]."""

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that a checkpoint contains."""
        return {"network": self.network, "average": self.average}


def make_learner(
    labels: Labels,
    config: Config,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    processes: Processes = ALONE,
) -> Learner:
    """Return a new network with its average and optimizer; the seed determines the weights."""
    torch.manual_seed(config.seed)
    network = build_network(labels, config).to(device)
    if processes.count > 1 and config.norm == "batch":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    forward = processes.distribute(Levels(network), device)
    weights = torch.ones(len(labels.values) + 1)
    if labels.tumor is not None:
        weights[list(labels.values).index(labels.tumor) + 1] = config.tumor_weight
    return Learner(
        network=network,
        average=AveragedModel(network, multi_avg_fn=make_average(config.averaging), use_buffers=True),
        optimizer=make_optimizer(network, config),
        scaler=GradScaler(device.type, enabled=precision == torch.float16),
        forward=torch.compile(forward) if config.compile else forward,
        precision=precision,
        class_weights=weights.to(device),
    )


def make_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return the function that moves running averages towards new values, in place: the one of an `AveragedModel`.

    In the first steps, the share of the average that is kept rises to `decay`: after n steps it is at most
    (n + 1) / (n + 10), as in TensorFlow's ``ExponentialMovingAverage``. With a constant decay, a short run would be
    judged by its first weights.

    >>> averages = [torch.tensor([4.0])]
    >>> make_average(0.99)(averages, [torch.tensor([14.0])], torch.tensor(0))  # keeps a tenth
    >>> averages
    [tensor([13.])]
    """

    def move(averages: Tensors, values: Tensors, steps: Tensor | int) -> None:
        done = int(steps)  # of the device, to which torch has just copied it, and waited
        kept = min(decay, (done + 1) / (done + 10))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - kept)
        else:  # the numbers of batches that batch norm has seen
            torch._foreach_copy_(averages, values)

    return move


def make_optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name."""
    weights, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    # On a GPU, AdamW and SGD have one kernel for all weights, and in fp16 the host does not read whether a gradient
    # overflowed. Muon has many kernels, and the host reads that.
    fused = next(network.parameters()).is_cuda or None
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=MOMENTUM, nesterov=True, fused=fused)
    if config.optimizer == "muon":
        return Muon(weights, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=fused)


def build_network(labels: Labels, config: Config) -> UNet:
    """Return the network for these labels and settings, in channels-last layout, in which convolutions are fast."""
    network = UNet(
        channels=config.context,
        classes=len(labels.values) + 1,
        width=config.width,
        depth=config.depth,
        norm=nn.InstanceNorm2d if config.norm == "instance" else nn.BatchNorm2d,
        stem=config.stem,
        supervised=config.deep_supervision,
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def learning_rate(config: Config, done: float) -> float:
    """Return the learning rate after a share `done` of the run: a short linear rise, then a fall to zero.

    >>> round(learning_rate(Config(learning_rate=1.0), 1.0), 6)
    0.0
    >>> round(learning_rate(Config(learning_rate=1.0, decay="poly"), 0.525), 3)
    0.536
    """
    if done < WARM_UP:
        return config.learning_rate * (0.1 + 0.9 * done / WARM_UP)
    fallen = min(1.0, (done - WARM_UP) / (1 - WARM_UP))
    if config.decay == "poly":
        return float(config.learning_rate * (1 - fallen) ** POLY_POWER)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * fallen))


def class_lookup(labels: Labels, device: torch.device, ignored: int | None = None) -> Tensor:
    """Return the class index of every label value, int64[256]. Unknown values are background, `ignored` is IGNORED."""
    values = torch.from_numpy(labels.table()).long()
    table = torch.zeros(256, dtype=torch.long)
    table[values] = torch.arange(len(values))
    if ignored is not None:
        table[ignored] = IGNORED
    return table.to(device)


def move_to_device(batch: Batch, to_class: Tensor) -> DeviceBatch:
    """Copy a batch to the device of `to_class`, and replace label values by classes (`class_lookup`)."""
    image, label, zoom = (
        torch.from_numpy(array).to(to_class.device, non_blocking=True)
        for array in (batch.image, batch.label, batch.zoom)
    )
    if batch.copied is not None:
        with torch.cuda.device(to_class.device):
            batch.copied.record()
    return DeviceBatch(image, to_class[label.long()], zoom)


def prepare_input(
    batch: DeviceBatch, config: Config, size: tuple[int, int], generators: Generators
) -> tuple[Tensor, Tensor]:
    """Normalize a batch, then tilt, resample and augment it according to the settings.

    Returns
    -------
    image: float32[b, c, y, x] in -1..1; label: int64[b, y, x], class indices.
    """
    image = normalize(batch.image, config.window_low, config.window_high)
    image, label = tilt(image, batch.label, generators.device)
    if config.augment and config.spacing_mm:
        return augment(image, label, config.augment, config.kinds, generators, zoom=batch.zoom, size=size)
    if config.augment:
        return augment(image, label, config.augment, config.kinds, generators)
    return resample(image, label, batch.zoom, size) if config.spacing_mm else (image, label)


def mixed_precision(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return the context in which a network runs in mixed precision, or in fp32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def train_step(
    learner: Learner, batch: tuple[Tensor, Tensor], reduce: Callable[[Tensor], Tensor] = no_reduction
) -> StepResult:
    """Take one step and update the average.

    Parameters
    ----------
    batch
        image: float32[b, c, y, x] in -1..1; label: int64[b, y, x], class indices.
    reduce
        Adds sums over all processes.
    """
    image, label = batch
    with mixed_precision(image.device, learner.precision):
        levels = learner.forward(image.contiguous(memory_format=torch.channels_last))
    loss, by_slice = multi_level_loss(levels, label, learner.class_weights, reduce)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    learner.scaler.unscale_(learner.optimizer)
    torch.nn.utils.clip_grad_norm_(learner.network.parameters(), MAX_GRADIENT)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    update_average(learner.average, learner.network)
    voxels = confusion_matrix(levels[0].detach().argmax(dim=1), label, levels[0].shape[1])
    return StepResult(loss.detach(), by_slice, voxels)


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module) -> None:
    """Do `AveragedModel.update_parameters` with ``use_buffers``, bit for bit, but without waiting for a GPU.

    torch's copies its counter to the device at each step, and the host waits for that copy.
    """
    averaged, current = ([*module.parameters(), *module.buffers()] for module in (average.module, network))
    if average.n_averaged == 0:  # a tensor of the CPU
        torch._foreach_copy_(averaged, current)
    else:
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for mean, new in zip(averaged, current, strict=True):
            means, news = by_type.setdefault(mean.dtype, ([], []))
            means.append(mean)
            news.append(new)
        for means, news in by_type.values():
            average.multi_avg_fn(means, news, average.n_averaged)  # type: ignore[misc]  # make_learner sets it
    average.n_averaged += 1


def confusion_matrix(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class: int64[k, k], without IGNORED ones."""
    bins = classes * classes + 1
    # `masked_fill`, since `torch.where` copies a number to a GPU, and waits for the copy.
    pairs = (label * classes + predicted).masked_fill_(label == IGNORED, bins - 1).flatten()
    counts = count_on_gpu(pairs, bins) if pairs.is_cuda else pairs.bincount(minlength=bins)
    return counts[:-1].view(classes, classes)


def count_on_gpu(values: Tensor, bins: int) -> Tensor:
    """Count each of the values 0 to bins - 1: int64[n] -> int64[bins]. On a GPU, `bincount` waits for the largest one.

    float64 counts exactly to 2**53.
    """
    return torch.histc(values.double(), bins, 0, bins).long()
