"""Model files of every kind that the product exports. They label every pixel 0, as the dry card does."""

from pathlib import Path

import torch
from torch import Tensor, nn

from slicemill.bench.harness.networks import export_graph
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.train.config import Config
from slicemill.train.export.graph import ExportGraph, Flavor
from slicemill.train.export.onnx_graph import quiet_exporter
from slicemill.train.network.step import build_network

SIDE = 64
FLAVORS = {
    "fp32": Flavor(),
    "fp16": Flavor(half=True),
    "bytes-fp16": Flavor(half=True, bytes_in=True),
    "bytes-fp32": Flavor(bytes_in=True),
    "probability-fp32": Flavor(probability=True),
    "probability-fp16": Flavor(half=True, probability=True),
    "probability-bytes-fp16": Flavor(half=True, bytes_in=True, probability=True),
}
NETWORKS = {
    "default": Config(width=4, depth=3),
    "instance": Config(width=4, depth=3, norm="instance"),
    "context1": Config(width=4, depth=3, context=1),
    "context7": Config(width=4, depth=3, context=7),
    "width5": Config(width=5, depth=2),
    "width16": Config(width=16),
    "width32": Config(width=32),
}
LABELS = {
    "lits": LITS_LABELS,
    "one": Labels({"tumor": 1}, tumor="tumor"),
    "apart": Labels({"liver": 3, "spleen": 7}, organ="liver"),
}
KINDS = [
    *(("default", flavor, "lits") for flavor in FLAVORS),
    *((network, flavor, "lits") for network in list(NETWORKS)[1:] for flavor in ("fp32", "fp16")),
    *(("instance", flavor, "lits") for flavor in ("bytes-fp16", "probability-fp32", "probability-fp16")),
    *(("default", flavor, labels) for labels in ("one", "apart") for flavor in ("fp32", "fp16")),
    *(("foreign", output, "lits") for output in ("logits", "logits-fp16", "label")),
]
"""Each network, flavor and kind of labels that changes the graph."""
FOREIGN = {
    "logits": (torch.float32, "logits"),
    "logits-fp16": (torch.float16, "logits"),
    "label": (torch.float32, "label"),
}
"""Type and output of a network without slicemill's metadata, described by a TOML."""


def write_model(path: Path, network: str, flavor: str, labels: str = "lits") -> None:
    """Write a model file with random weights, whose background has by far the largest logit."""
    if network == "foreign":
        write_foreign(path, *FOREIGN[flavor])
        return
    config, chosen = NETWORKS[network], FLAVORS[flavor]
    module = empty_network(LABELS[labels], config)
    graph = ExportGraph(module, config, LABELS[labels], chosen).eval()
    export_graph(path, graph, config, SIDE, chosen, LABELS[labels])


def empty_network(labels: Labels, config: Config) -> nn.Module:
    """Return a network that finds nothing."""
    torch.manual_seed(0)
    module = build_network(labels, config).eval()
    with torch.no_grad():
        module.head.bias[0] += 50
    return module


class Labeler(nn.Module):
    """A network that gives label values, int64[b, y, x]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the class with the largest logit."""
        return self.network(x).argmax(dim=1)


def write_foreign(path: Path, dtype: torch.dtype, output: str) -> None:
    """Write a network as torch does, and the TOML that describes it."""
    network = empty_network(LITS_LABELS, NETWORKS["default"]).to(dtype)
    with quiet_exporter():
        torch.onnx.export(
            Labeler(network).eval() if output == "label" else network,
            (torch.zeros((2, 3, SIDE, SIDE), dtype=dtype),),
            path,
            dynamic_shapes=({0: torch.export.Dim("b")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    described = f'window_hu = [-200, 300]\nmean = 50\nstd = 100\noutput = "{output}"\ncontext = 3\n'
    path.with_suffix(".toml").write_text(f"labels = {{liver = 1, tumor = 2}}\n{described}")
