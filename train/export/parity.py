"""Parity of a model file: the share of labels in which onnxruntime differs from torch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slicemill.common.errors import ModelError
from slicemill.common.extras import explain_import
from slicemill.common.telemetry import turn_off_telemetry
from slicemill.store.label_differences import compare_labels
from slicemill.store.model_card import Parity
from slicemill.train.export.graph import ExportGraph
from slicemill.train.export.trained import ParitySlices

MAX_DIFFERING = {"batch": 1e-5, "instance": 1e-3}
"""Share of label pixels in which onnxruntime may differ from torch in float32, by the network's norm.

Instance norm computes its statistics at run time, and the two runtimes sum in different orders."""
MAX_DIFFERING_HALF = 1e-3
"""The same for a network in float16, compared with the one in float32."""
TIE = 1e-4
"""Limit of `slicemill.store.label_differences.compare_labels`: a thousand roundings of float32."""


@torch.no_grad()
def measure_parity(
    graph: ExportGraph, path: Path, slices: ParitySlices, reference: ExportGraph | None = None
) -> Parity:
    """Compare onnxruntime with torch on real slices.

    Ties do not fail the file (`slicemill.store.label_differences`).

    Parameters
    ----------
    graph, reference
        The graph that was exported to `path`, and the one to run in torch: in float32 for a graph in float16.

    Raises
    ------
    ModelError
        More label pixels differ than MAX_DIFFERING allows.
    """
    session = open_cpu_session(path)
    reference = reference or graph
    differing = ties = pixels = 0
    worst = 0.0
    for image, window in slices:
        label, *maps = session.run(graph.outputs, graph.feed(image, window))
        logits = reference.logits(*(torch.from_numpy(array) for array in reference.feed(image, window).values()))
        expected, *expected_maps = (output.numpy() for output in reference.outputs_of(logits))
        found = compare_labels(label, expected, logits.numpy(), np.array(graph.values), TIE)
        differing, ties, pixels = differing + found.differing, ties + found.ties, pixels + found.pixels
        worst = max([worst, *(largest_difference(*pair) for pair in zip(maps, expected_maps, strict=False))])
    limit = MAX_DIFFERING_HALF if graph.flavor.half else MAX_DIFFERING[graph.norm]
    if differing > limit * pixels:
        raise ModelError(
            f"{path.name}: onnxruntime's labels differ from torch's in {differing:,} of {pixels:,} pixels "
            f"(limit: a share of {limit:g}); no model was written. Please report this with the versions that "
            "`slicemill doctor` prints."
        )
    return {
        "slices": len(slices),
        "pixels": pixels,
        "labels_differing": differing,
        "ties": ties,
        "max_probability_difference": worst,
        "limit": limit,
    }


def largest_difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the largest difference of two arrays of probabilities; uint8 arrays hold 255ths."""
    scale = 255 if one.dtype == np.uint8 else 1
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()) / scale


def open_cpu_session(path: Path) -> Any:
    """Open a model file in onnxruntime on the CPU.

    Raises
    ------
    ModelError
        onnxruntime is not installed.
    """
    missing = ModelError(
        "export compares labels with onnxruntime, which is not installed: pip install 'slicemill[cpu]' (or [gpu])."
    )
    with explain_import("onnxruntime", missing):
        turn_off_telemetry()
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
