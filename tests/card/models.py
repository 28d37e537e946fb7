"""Model files of every kind that the product exports. They label every pixel 0, as the dry card does."""

from pathlib import Path

import torch

from slicemill.bench.harness.networks import export_graph
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.train.config import Config
from slicemill.train.export.graph import ExportGraph, Flavor
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
]
"""Each network, flavor and kind of labels that changes the graph."""


def write_model(path: Path, network: str, flavor: str, labels: str = "lits") -> None:
    """Write a model file with random weights, whose background has by far the largest logit."""
    config, chosen = NETWORKS[network], FLAVORS[flavor]
    torch.manual_seed(0)
    module = build_network(LABELS[labels], config).eval()
    with torch.no_grad():
        module.head.bias[0] += 50
    graph = ExportGraph(module, config, LABELS[labels], chosen).eval()
    export_graph(path, graph, config, SIDE, chosen, LABELS[labels])
