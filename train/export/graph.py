"""The graph of a model file: raw HU in, label values out, in the flavors that runtimes want.

Windowing, normalization, the choice of neighbors, the network, softmax and the choice of the label are inside, so that each
slice travels once and a stranger needs nothing but the file.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slicemill.ct.labels import Labels
from slicemill.train.config import Config
from slicemill.train.network.unet import normalize


@dataclass(frozen=True, kw_only=True)
class Flavor:
    """What goes into a model file and what comes out, beside the labels."""

    half: bool = False
    """The network in float16, strongly typed; the preparation stays in float32."""
    bytes_in: bool = False
    """The voxels as pairs of bytes, uint8[n, 1, H, W, 2], for TensorRT, which has no int16 (RUNTIME section 2.3)."""
    probability: bool = False
    """An output ``probability`` of all classes beside that of tumor."""

    @property
    def suffix(self) -> str:
        """Return what the file's name ends in."""
        return f"{'.bytes' if self.bytes_in else ''}{'.fp16' if self.half else ''}.onnx"

    @property
    def precision(self) -> str:
        """Return the precision as it stands in the metadata."""
        return "fp16" if self.half else "fp32"


DEFAULT = Flavor()


class Exported(nn.Module):
    """The whole graph: int16[n, H, W] HU and int32[b, c] neighbors -> labels uint8[b, H, W], tumor uint8[b, H, W], probability [b, k, H, W].

    The outputs are as cheap as their form allows, since a runtime computes them whether they are asked for or not. On one
    core, for 3 classes of 512x512: ArgMax 1.5 ms a slice and comparisons with Where 8; the tumor's probability 1 and a
    softmax over an inner axis 40. TensorRT turns ArgMax into a slow TopK, so the flavors for GPUs compare and add.
    """

    def __init__(self, network: nn.Module, config: Config, labels: Labels, flavor: Flavor = DEFAULT) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half() if flavor.half else network
        self.low, self.high = config.window_low, config.window_high
        self.norm = config.norm
        self.flavor = flavor
        self.values = [int(value) for value in labels.table()]
        value = labels.tumor_value()
        self.tumor = None if value is None else self.values.index(value)

    @property
    def outputs(self) -> list[str]:
        """Return the names of the outputs."""
        return [
            "label",
            *(["tumor"] if self.tumor is not None else []),
            *(["probability"] if self.flavor.probability else []),
        ]

    def feed(self, image: npt.NDArray[np.int16], window: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs for slices int16[n, H, W], HU, and windows int32[b, c]."""
        given = image.view(np.uint8).reshape(len(image), 1, *image.shape[1:], 2) if self.flavor.bytes_in else image
        return {"image": given, "neighbors": window} if window.shape[1] > 1 else {"image": given}

    def forward(self, image: Tensor, neighbors: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return labels, and what else is in `outputs`."""
        return self.told(self.logits(image, neighbors))

    def logits(self, image: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """Return what the network makes of slices and windows: [b, k, y, x]."""
        normal = normalize(from_bytes(image) if self.flavor.bytes_in else image, self.low, self.high)
        if self.flavor.half:
            normal = normal.half()
        if neighbors is None:
            windows = normal[:, None]
        else:
            rows = torch.index_select(normal, 0, neighbors.reshape(-1))
            windows = rows.reshape(-1, neighbors.shape[1], *normal.shape[1:])
        logits: Tensor = self.network(windows)
        return logits

    def told(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return `outputs` of logits [b, k, y, x]."""
        maps = torch.split(logits, 1, dim=1)
        gpu = self.flavor.half or self.flavor.bytes_in
        outputs = [self.by_comparison(maps) if gpu else self.by_argmax(logits)]
        if self.tumor is not None:
            outputs.append(tumor_bytes(maps, self.tumor))
        if self.flavor.probability:
            outputs.append(softmax(maps))
        return tuple(outputs)

    def by_argmax(self, logits: Tensor) -> Tensor:
        """Return the value of the class of the largest logit, the first of equals: [b, k, y, x] -> uint8[b, y, x]."""
        best = logits.argmax(dim=1)
        follows = self.values == list(range(len(self.values)))
        return best.to(torch.uint8) if follows else torch.tensor(self.values, dtype=torch.uint8)[best]

    def by_comparison(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the same of logits [b, 1, y, x] a class, without ArgMax and without an integer in between."""
        label = (maps[1] > maps[0]).to(maps[0].dtype) * self.values[1]
        most = torch.maximum(maps[0], maps[1])
        for value, map_ in zip(self.values[2:], maps[2:], strict=True):
            label = label + (map_ > most).to(map_.dtype) * (value - label)
            most = torch.maximum(most, map_)
        return label[:, 0].to(torch.uint8)


def from_bytes(pairs: Tensor) -> Tensor:
    """Return HU float32[n, y, x] of pairs of bytes uint8[n, 1, y, x, 2], low byte first: exact for all int16."""
    numbers = pairs.float()[:, 0]
    low, high = numbers[..., 0], numbers[..., 1]
    return low + 256 * (high - 256 * (high > 127.5).float())


def tumor_bytes(maps: Sequence[Tensor], tumor: int) -> Tensor:
    """Return 255 times the probability of one class, uint8[b, y, x], of logits [b, 1, y, x] a class: 1 / sum(exp(z_j - z_t))."""
    own, *others = (maps[index].float() for index in (tumor, *(i for i in range(len(maps)) if i != tumor)))
    powers = [torch.exp(other - own) for other in others]
    total = 1 + powers[0]
    for power in powers[1:]:
        total = total + power
    return (255 / total + 0.5)[:, 0].to(torch.uint8)


def softmax(maps: Sequence[Tensor]) -> Tensor:
    """Return the probabilities [b, k, y, x] of logits [b, 1, y, x] a class."""
    most = maps[0]
    for map_ in maps[1:]:
        most = torch.maximum(most, map_)
    powers = [torch.exp(map_ - most) for map_ in maps]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    share = 1 / total
    return torch.cat([power * share for power in powers], dim=1)
