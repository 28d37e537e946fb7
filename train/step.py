"""One step: a batch of HU in, changed weights out."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from store.labels import Labels
from train.augment import augment
from train.config import Config
from train.losses import dice_and_cross_entropy
from train.unet import UNet, normalize

WARM_UP = 0.05
"""Share of the run in which the learning rate rises."""
MAX_GRADIENT = 5.0
MOMENTUM = 0.99
"""Isensee et al. 2021 (nnU-Net), with Nesterov's correction."""
POLY_POWER = 0.9
"""The exponent of poly decay there."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What changes from step to step."""

    network: UNet
    average: AveragedModel
    """Running average of the weights and of batch norm's statistics: it swings less from epoch to epoch."""
    optimizer: torch.optim.Optimizer

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules whose tensors a checkpoint holds."""
        return {"network": self.network, "average": self.average}


def make_learner(labels: Labels, config: Config, device: torch.device) -> Learner:
    """Return a fresh network with its average and optimizer; the seed decides the weights."""
    torch.manual_seed(config.seed)
    network = build(labels, config).to(device)
    averaging = get_ema_multi_avg_fn(config.averaging)  # type: ignore[no-untyped-call]
    return Learner(
        network=network,
        average=AveragedModel(network, multi_avg_fn=averaging, use_buffers=True),
        optimizer=make_optimizer(network, config),
    )


def make_optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name."""
    weights, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)


def build(labels: Labels, config: Config) -> UNet:
    """Return the network for these labels and settings, its weights laid out for the CPU's and GPU's convolutions."""
    network = UNet(
        channels=config.context,
        classes=len(labels.values) + 1,
        width=config.width,
        depth=config.depth,
        norm=nn.InstanceNorm2d if config.norm == "instance" else nn.BatchNorm2d,
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def learning_rate(config: Config, done: float) -> float:
    """Return the learning rate when a share `done` of the run is over: a short rise, then a fall to zero.

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


def class_of_value(labels: Labels, device: torch.device) -> Tensor:
    """Return the class index of every label value: int64[256]; values that no label has are background."""
    values = torch.from_numpy(labels.table()).long()
    table = torch.zeros(256, dtype=torch.long)
    table[values] = torch.arange(len(values))
    return table.to(device)


def normalized(image: Tensor, label: Tensor, config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch of HU as the network's input, augmented where asked for."""
    image = normalize(image, config.window_low, config.window_high)
    return augment(image, label, config.augment, config.kinds, generator) if config.augment else (image, label)


def one_step(learner: Learner, batch: tuple[Tensor, Tensor], *, bf16: bool) -> tuple[float, Tensor, Tensor]:
    """Take one step and update the average; return the loss, the predicted and the true classes."""
    image, label = batch
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = learner.network(image.contiguous(memory_format=torch.channels_last))
        loss = dice_and_cross_entropy(logits, label)
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(learner.network.parameters(), MAX_GRADIENT)
    learner.optimizer.step()
    learner.average.update_parameters(learner.network)
    return float(loss.detach()), logits.detach().argmax(dim=1), label
