"""A network to a model file that is proved, beside torch's exporter alone.

What bounds it: torch traces the graph, optimizes it and writes it, whatever the network's size. Ours adds the windowing and labels to
the graph, onnxruntime's labels against torch's on real slices, onnx's checker and the metadata.
"""

import datetime as dt
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from slicemill.bench.harness.clock import interleaved
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.train.config import Config
from slicemill.train.export.graph import Exported
from slicemill.train.export.model_file import add_metadata
from slicemill.train.export.onnx_graph import OPSET, onnx_checked, to_onnx
from slicemill.train.export.parity import prove
from slicemill.train.export.trained import proof_slices
from slicemill.train.network.step import build
from slicemill.train.run.setup import network_size

if TYPE_CHECKING:
    from slicemill.store.model_card import Parity

OURS, BARE = "export with its proof", "torch.onnx.export of the network alone"


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure on one scan and return the record; a network with random weights, of the default settings."""
    store, config = subject.store(folder / "store"), Config()
    torch.manual_seed(0)
    network = build(subject.labels, config).eval()
    graph = Exported(network, config, subject.labels).eval()
    size = network_size(store[CASE_ID], config)
    proof = proof_slices(store, (CASE_ID,), config, size)
    path = folder / "model.onnx"
    parities: list[Parity] = []

    def ours() -> None:
        to_onnx(graph, proof, path)
        parities.append(prove(graph, path, proof))
        add_metadata(path, {"parity": parities[-1]})

    ours()  # the proof alone wants a file
    contenders = {
        OURS: ours,
        BARE: lambda: bare_export(network, config, size, folder / "bare.onnx"),
        "proof alone": lambda: prove(graph, path, proof),
    }
    with progress("export", (rounds + 1) * len(contenders), "runs") as advance:
        times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name))
    onnx_checked(path)
    labelled = sum(len(window) for _, window in proof)
    parity = parities[-1]
    alike = parity["labels_differing"] <= parity["limit"] * parity["pixels"]
    check("onnxruntime and torch give equal labels", holds=alike)
    return {
        "benchmark": "export",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "unit": "model files",
        "clock": "wall",
        "model_mb": round(path.stat().st_size / 1e6, 2),
        "proof_slices": labelled,
        "parity": parity,
        "results": {name: timing.as_json(1) for name, timing in times.items()},
        "headline": headline(
            {name: Timed(timing=timing, amount=1) for name, timing in times.items()},
            ours=OURS,
            limit=BARE,
            bound="torch's exporter",
            peers={},
            verified=f"{parity['labels_differing']} of {parity['pixels']:,} labels differ between onnxruntime and torch",
        ),
        "machine": machine_info(),
    }


def bare_export(network: torch.nn.Module, config: Config, size: tuple[int, int], path: Path) -> None:
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
