"""The graph of a model file: HU in, label values out, in flavors for different runtimes.

Windowing, normalization, choice of the context slices, network, softmax and choice of the label are part of the graph.
So each slice is uploaded once, and a program needs no other file.
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
from slicemill.store.model_card import SUFFIXES, InputForm, Precision
from slicemill.train.config import Config
from slicemill.train.network.unet import normalize


@dataclass(frozen=True, kw_only=True)
class Flavor:
    """Input form, precision and optional outputs of a model file."""

    half: bool = False
    """Network in float16, strongly typed; preprocessing stays in float32."""
    bytes_in: bool = False
    """Voxels as pairs of bytes, uint8[n, 1, H, W, 2]: TensorRT has no int16."""
    probability: bool = False
    """Whether the graph has the output ``probability`` of all classes."""

    @property
    def input(self) -> InputForm:
        """Return the form of the input ``image``."""
        return "bytes" if self.bytes_in else "int16"

    @property
    def precision(self) -> Precision:
        """Return the precision of the network."""
        return "fp16" if self.half else "fp32"

    @property
    def for_gpu(self) -> bool:
        """Return whether the graph is written for GPUs; the others are for processors, too."""
        return self.half or self.bytes_in

    @property
    def suffix(self) -> str:
        """Return the ending of the file name."""
        return SUFFIXES[self.input, self.precision]


DEFAULT = Flavor()


class ExportGraph(nn.Module):
    """The graph of a model file.

    Inputs: ``image`` int16[n, H, W], HU, and ``neighbors`` int32[b, c], the context rows of each slice to label.
    Outputs: ``label`` uint8[b, H, W]; optionally ``tumor`` uint8[b, H, W] and ``probability`` float[b, k, H, W].

    A runtime computes all outputs, also those that are not requested, so each has its cheapest form. On one core, for 3
    classes of 512x512, one slice takes: ArgMax 1.5 ms, comparisons with Where 8 ms; probability of tumor 1 ms, softmax
    over an inner axis 40 ms. TensorRT turns ArgMax into a slow TopK, so the flavors for GPUs compare and add.
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
        names = ["label"]
        if self.tumor is not None:
            names.append("tumor")
        if self.flavor.probability:
            names.append("probability")
        return names

    def feed(self, image: npt.NDArray[np.int16], window: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs.

        Parameters
        ----------
        image
            int16[n, H, W], HU.
        window
            int32[b, c]: for each slice to label, the rows of `image` that are its context.
        """
        voxels = image.view(np.uint8).reshape(len(image), 1, *image.shape[1:], 2) if self.flavor.bytes_in else image
        return {"image": voxels, "neighbors": window} if window.shape[1] > 1 else {"image": voxels}

    def forward(self, image: Tensor, neighbors: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of `outputs`."""
        return self.outputs_of(self.logits(image, neighbors))

    def logits(self, image: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """Return the logits of the network, [b, k, y, x]."""
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

    def outputs_of(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs from logits [b, k, y, x]."""
        maps = torch.split(logits, 1, dim=1)
        outputs = [self.label_by_comparison(maps) if self.flavor.for_gpu else self.label_by_argmax(logits)]
        if self.tumor is not None:
            outputs.append(tumor_bytes(maps, self.tumor))
        if self.flavor.probability:
            outputs.append(softmax(maps))
        return tuple(outputs)

    def label_by_argmax(self, logits: Tensor) -> Tensor:
        """Return the value of the class with the largest logit, the first of equals: [b, k, y, x] -> uint8[b, y, x]."""
        best = logits.argmax(dim=1)
        if self.values == list(range(len(self.values))):
            return best.to(torch.uint8)
        # indexing becomes GatherND, which onnxruntime computes for uint8 on the CPU only
        table = torch.tensor(self.values, dtype=torch.uint8)
        return torch.index_select(table, 0, best.reshape(-1)).reshape(-1, *best.shape[1:])

    def label_by_comparison(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the same from logits [b, 1, y, x] per class, without ArgMax and intermediate integers."""
        label = (maps[1] > maps[0]).to(maps[0].dtype) * self.values[1]
        most = torch.maximum(maps[0], maps[1])
        for value, map_ in zip(self.values[2:], maps[2:], strict=True):
            # where this class is larger than all before, the sum replaces the label by its value
            label = label + (map_ > most).to(map_.dtype) * (value - label)
            most = torch.maximum(most, map_)
        return label[:, 0].to(torch.uint8)


def from_bytes(pairs: Tensor) -> Tensor:
    """Convert pairs of bytes uint8[n, 1, y, x, 2], low byte first, to HU float32[n, y, x]; exact for every int16."""
    numbers = pairs.float()[:, 0]
    low, high = numbers[..., 0], numbers[..., 1]
    return low + 256 * (high - 256 * (high > 127.5).float())


def tumor_bytes(maps: Sequence[Tensor], tumor: int) -> Tensor:
    """Return 255 times the probability of one class, uint8[b, y, x], from logits [b, 1, y, x] per class.

    The softmax is computed as 1 / sum(exp(z_j - z_t)).
    """
    tumor_map = maps[tumor].float()
    others = [map_.float() for index, map_ in enumerate(maps) if index != tumor]
    powers = [torch.exp(other - tumor_map) for other in others]
    total = 1 + powers[0]
    for power in powers[1:]:
        total = total + power
    return (255 / total + 0.5)[:, 0].to(torch.uint8)


def softmax(maps: Sequence[Tensor]) -> Tensor:
    """Return the probabilities [b, k, y, x] of logits [b, 1, y, x] per class."""
    most = maps[0]
    for map_ in maps[1:]:
        most = torch.maximum(most, map_)
    powers = [torch.exp(map_ - most) for map_ in maps]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    share = 1 / total
    return torch.cat([power * share for power in powers], dim=1)
