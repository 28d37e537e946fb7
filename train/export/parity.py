"""Parity of a model file: the share of labels in which onnxruntime differs from torch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slicemill.common.errors import ModelError
from slicemill.store.model_card import Parity
from slicemill.train.export.graph import ExportGraph
from slicemill.train.export.trained import ParitySlices

MAX_DIFFERING = {"batch": 1e-5, "instance": 1e-3}
"""Share of label pixels in which onnxruntime may differ from torch in float32, by the network's norm.

Instance norm computes its statistics at run time, and the two runtimes sum in different orders."""
MAX_DIFFERING_HALF = 1e-3
"""The same for a network in float16, compared with the one in float32."""
TIE = 1e-4
"""Two logits tie within this part of the slice's largest logit, a thousand roundings of float32."""


@torch.no_grad()
def measure_parity(
    graph: ExportGraph, path: Path, slices: ParitySlices, reference: ExportGraph | None = None
) -> Parity:
    """Compare onnxruntime with torch on real slices.

    A pixel is a tie if torch's logit of onnxruntime's label is at most TIE below its best logit. Either label is right,
    so ties do not fail the file. After a short training, all of the air can be ties.

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
    class_of_value = np.zeros(256, dtype=np.int64)
    class_of_value[graph.values] = np.arange(len(graph.values))
    worst = 0.0
    for image, window in slices:
        label, *maps = session.run(graph.outputs, graph.feed(image, window))
        logits = reference.logits(*(torch.from_numpy(array) for array in reference.feed(image, window).values()))
        expected, *expected_maps = (output.numpy() for output in reference.outputs_of(logits))
        other = label != expected
        tied = other & ties_with_best(logits, torch.from_numpy(class_of_value[label])).numpy()
        differing += int(np.count_nonzero(other)) - int(np.count_nonzero(tied))
        ties += int(np.count_nonzero(tied))
        pixels += label.size
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


def ties_with_best(logits: Tensor, classes: Tensor) -> Tensor:
    """Return a mask bool[b, y, x] of pixels whose class int64[b, y, x] ties with the best of logits [b, k, y, x]."""
    wide = logits.float()
    best = wide.amax(dim=1)
    return best - wide.gather(1, classes[:, None])[:, 0] <= TIE * best.abs().amax(dim=(1, 2), keepdim=True)


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
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "export compares labels with onnxruntime, which is not installed: pip install 'slicemill[cpu]' (or [gpu])."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
