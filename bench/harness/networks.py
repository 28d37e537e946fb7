"""Networks with random weights whose labels are known: they label a phantom's liver and tumors by their HU.

`mark_labels` raises the HU of the liver and of tumors above those of all other tissue. The networks here label voxels
by HU, so post-processing, report and picture have as much work as after a trained network, at the cost of the real
convolutions.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slicemill.bench.harness.subject import Subject
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.ct.phantom import write_nifti
from slicemill.ct.window import Window
from slicemill.store.model_card import CONTRACT, PostprocessRules
from slicemill.train.config import Config
from slicemill.train.export.graph import DEFAULT, ExportGraph, Flavor
from slicemill.train.export.model_file import add_metadata
from slicemill.train.export.onnx_graph import write_onnx
from slicemill.train.network.step import build_network

MIN_LESION_ML = 0.2
BLUR = 8
"""Pixels along a side of the squares that get one label each."""
WINDOW = Window(-200, 2300)
MARKED = Config(window_low=WINDOW.low, window_high=WINDOW.high)
"""Settings of a `HuThresholdNetwork` network."""
LIVER_FROM, TUMOR_FROM = 550, 1585
"""HU thresholds of liver and tumor: halfway between the marked tissues."""


class HuThresholdNetwork(nn.Module):
    """Runs a network, then labels by marked HU: float[b, c, y, x] -> logits float[b, 3, y, x]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: organ above LIVER_FROM, tumor above TUMOR_FROM, per square of BLUR pixels."""
        coarse = nn.functional.avg_pool2d(x[:, x.shape[1] // 2, None], BLUR)
        middle = nn.functional.interpolate(coarse, scale_factor=float(BLUR), mode="nearest")
        liver, tumor = (2 * (hu - WINDOW.low) / (WINDOW.high - WINDOW.low) - 1 for hu in (LIVER_FROM, TUMOR_FROM))
        guide = torch.cat([middle * 0, middle - liver, 2 * (middle - liver) - (tumor - liver)], dim=1)
        logits: Tensor = 60 * guide + 1e-3 * self.network(x)
        return logits


class HuSampler(ExportGraph):
    """A complete graph that costs almost nothing: the label of every eighth pixel, by the same HU thresholds."""

    def __init__(self, config: Config) -> None:
        super().__init__(nn.Identity(), config, LITS_LABELS)

    def forward(self, image: Tensor, neighbors: Tensor | None = None) -> tuple[Tensor, ...]:  # noqa: ARG002 (one slice)
        """Return label and tumor, uint8[b, y, x], of slices int16[b, y, x], HU."""
        few = image[:, ::BLUR, ::BLUR].float()
        tumor = (few > TUMOR_FROM).float()
        label = (few > LIVER_FROM).float() + tumor
        return tuple(self.enlarge(map_.to(torch.uint8)) for map_ in (label, 255 * tumor))

    def enlarge(self, map_: Tensor) -> Tensor:
        """Return a map [b, y, x] with each pixel BLUR times as wide and high."""
        b, y, x = map_.shape
        return map_[:, :, None, :, None].expand(b, y, BLUR, x, BLUR).reshape(b, y * BLUR, x * BLUR)


class SmallUNet(nn.Module):
    """A network of about 10 ms per slice: a small U-Net at a quarter of the resolution."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.network = build_network(LITS_LABELS, replace(config, width=16, depth=2))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        small = self.network(nn.functional.avg_pool2d(x, 4))
        large: Tensor = nn.functional.interpolate(small, scale_factor=4.0, mode="nearest")
        return large


def default_network(config: Config = MARKED) -> nn.Module:
    """Return the default network for some settings, always with the same random weights."""
    torch.manual_seed(0)
    return build_network(LITS_LABELS, config)


def make_small_unet() -> nn.Module:
    """Return a `SmallUNet`, always with the same random weights."""
    torch.manual_seed(0)
    return SmallUNet(MARKED)


def export_network(path: Path, network: nn.Module, config: Config, size: int, flavor: Flavor = DEFAULT) -> Path:
    """Write a network with HU thresholds as a model file, without a parity check."""
    return export_graph(
        path, ExportGraph(HuThresholdNetwork(network).eval(), config, LITS_LABELS, flavor).eval(), config, size, flavor
    )


def export_graph(
    path: Path,
    graph: ExportGraph,
    config: Config,
    size: int,
    flavor: Flavor = DEFAULT,
    labels: Labels = LITS_LABELS,
) -> Path:
    """Write a complete graph as a model file, without a parity check."""
    window = np.arange(config.context, dtype=np.int32)[None]
    write_onnx(graph, [(np.zeros((config.context, size, size), dtype=np.int16), window)], path)
    rules = PostprocessRules(largest_organ=True, min_lesion_ml=MIN_LESION_ML)
    add_metadata(
        path,
        {
            "contract": CONTRACT,
            "input": "bytes" if flavor.bytes_in else "int16",
            "precision": flavor.precision,
            "context": config.context,
            "postprocess": rules.as_json(),
            **labels.as_json(),
        },
    )
    return path


def mark_labels(image: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return int16[z, y, x], HU, raised by 1000 in the liver and by 2000 in tumors."""
    return image + 1000 * label.astype(np.int16)


def write_marked_scans(folder: Path, subject: Subject, count: int) -> None:
    """Write a marked phantom as `count` scans in two axis orders, each shifted along z."""
    folder.mkdir(parents=True)
    image = mark_labels(subject.image, subject.label)
    for number in range(count):
        shifted = np.roll(image, 3 * number, axis=0)
        write_nifti(folder / f"scan-{number}.nii.gz", shifted, subject.spacing_mm, ("LPS", "RAS")[number % 2])
