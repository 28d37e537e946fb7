"""Export of a network to a verified model file, compared with torch's exporter alone.

Bottleneck: torch traces, optimizes and writes the graph, which takes as long for any size of network. slicemill adds
windowing and labels to the graph, compares onnxruntime's labels with torch's on real slices, runs onnx's checker, and
adds metadata. Command: `slicemill bench export`.
"""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from slicemill.bench.harness.clock import show_progress, time_rounds
from slicemill.bench.harness.headline import Record, check, headline, with_amount
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import ExportRecord
from slicemill.train.config import Config
from slicemill.train.export.graph import ExportGraph
from slicemill.train.export.model_file import add_metadata
from slicemill.train.export.onnx_graph import OPSET, load_checked_onnx, write_onnx
from slicemill.train.export.parity import measure_parity
from slicemill.train.export.trained import read_parity_slices
from slicemill.train.network.step import build_network
from slicemill.train.run.setup import network_size

if TYPE_CHECKING:
    from slicemill.store.model_card import Parity

SLICEMILL, BARE = "export with its proof", "torch.onnx.export of the network alone"


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure on one scan and return the record. The network has random weights and the default settings."""
    store, config = subject.store(folder / "store"), Config()
    torch.manual_seed(0)
    network = build_network(subject.labels, config).eval()
    graph = ExportGraph(network, config, subject.labels).eval()
    size = network_size(store[CASE_ID], config)
    proof = read_parity_slices(store, (CASE_ID,), config, size)
    path = folder / "model.onnx"
    parities: list[Parity] = []

    def export() -> None:
        write_onnx(graph, proof, path)
        parities.append(measure_parity(graph, path, proof))
        add_metadata(path, {"parity": parities[-1]})

    export()  # the contender that only compares needs a file
    contenders = {
        SLICEMILL: export,
        BARE: lambda: export_bare(network, config, size, folder / "bare.onnx"),
        "proof alone": lambda: measure_parity(graph, path, proof),
    }
    with show_progress("export", len(contenders), rounds) as log:
        times = time_rounds(contenders, rounds=rounds, log=log)
    load_checked_onnx(path)
    parity = parities[-1]
    differing, pixels = parity["labels_differing"], parity["pixels"]
    check("onnxruntime and torch give equal labels", holds=differing <= parity["limit"] * pixels)
    return ExportRecord(
        **origin(),
        subject=str(subject),
        unit="model files",
        clock="wall",
        model_mb=round(path.stat().st_size / 1e6, 2),
        proof_slices=sum(len(window) for _, window in proof),
        parity=parity,
        results={name: timing.rate(1) for name, timing in times.items()},
        headline=headline(
            with_amount(times, 1),
            contender=SLICEMILL,
            limit=BARE,
            bound="torch's exporter",
            peers={},
            verified=f"{differing} of {pixels:,} labels differ between onnxruntime and torch",
        ),
    ).as_json()


def export_bare(network: torch.nn.Module, config: Config, size: tuple[int, int], path: Path) -> None:
    """Export the network alone, as a tutorial does."""
    batch = torch.export.Dim("b", min=1, max=65536)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, config.context, *size),),
            path,
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
