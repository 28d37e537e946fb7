"""Export of a torch graph to an ONNX file, by torch's exporter."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicemill.common.errors import ModelError
from slicemill.train.export.graph import ExportGraph
from slicemill.train.export.trained import ParitySlices

OPSET = 20
"""The highest that the parser of TensorRT 10 supports, and the default of torch's exporter."""
MAX_BATCH = 65536
"""Upper bound of the dynamic axes, slices."""


def write_onnx(graph: ExportGraph, slices: ParitySlices, path: Path) -> None:
    """Export a graph with a dynamic number of slices; height and width are those of `slices`.

    In the flavors for GPUs, the bias of a transposed convolution is an addition (`split_transpose_bias`).
    """
    image, window = (np.concatenate([array, array]) for array in slices[0])
    feed = graph.feed(image, window)
    axes = {
        "image": torch.export.Dim("n", min=1, max=MAX_BATCH),
        "neighbors": torch.export.Dim("b", min=1, max=MAX_BATCH),
    }
    with quiet_exporter():
        torch.onnx.export(
            graph,
            tuple(torch.from_numpy(array) for array in feed.values()),
            path,
            input_names=list(feed),
            output_names=graph.outputs,
            dynamic_shapes=tuple({0: axes[name]} for name in feed),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    shorten_indices(path)
    if graph.flavor.for_gpu:
        split_transpose_bias(path)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide the exporter's warnings about deprecated calls in torch and about missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def shorten_indices(path: Path) -> None:
    """Let Gather read the int32 indices of ``neighbors`` directly, as ONNX allows.

    The exporter casts them to int64, in which TensorRT would then compute.
    """
    import onnx

    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        cast = makers.get(node.input[1]) if node.op_type == "Gather" else None
        if cast is not None and cast.op_type == "Cast":
            node.input[1] = cast.input[0]
            model.graph.node.remove(cast)
            for value in [value for value in model.graph.value_info if value.name == cast.output[0]]:
                model.graph.value_info.remove(value)
    onnx.save(model, path)


def split_transpose_bias(path: Path) -> None:
    """Write the bias of every ConvTranspose as an Add of [1, C, 1, 1].

    onnxruntime on CUDA can fuse biases into convolutions, but fails at a ConvTranspose whose bias it fuses
    (`slicemill.infer.runtime.providers.provider_options`).
    """
    import onnx

    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "ConvTranspose" and len(node.input) > 2 and {*node.input[1:]} <= weights.keys():
            name, output = node.input.pop(), node.output[0]
            spatial = len(weights[node.input[1]].dims) - 2
            apart = onnx.TensorProto()
            apart.CopyFrom(weights[name])
            apart.name = f"{name}_per_channel"
            apart.dims[:] = [1, *apart.dims, *[1] * spatial]
            if apart.name not in weights:
                weights[apart.name] = apart
                model.graph.initializer.append(apart)
            node.output[0] = f"{output}_without_bias"
            nodes.append(onnx.helper.make_node("Add", [node.output[0], apart.name], [output], name=f"{node.name}_bias"))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, path)


def load_checked_onnx(path: Path) -> Any:
    """Load an ONNX file that passes the checker of onnx."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def slice_size(graph: Any, path: Path) -> tuple[int, int]:
    """Return height and width of the input slices of an ONNX graph: int16[n, H, W], or uint8[n, 1, H, W, 2] as bytes.

    Raises
    ------
    ModelError
        The input has another number of axes.
    """
    sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    if len(sides) not in (3, 5):
        raise ModelError(f"{path}: its input has {len(sides)} axes; it was not written by slicemill export.")
    height, width = sides[1:3] if len(sides) == 3 else sides[2:4]
    return height, width
