"""Static checks of an ONNX graph: its work per slice, and TensorRT's rules on types.

The rules are from TensorRT's documentation of types and from the onnx-tensorrt importer. Passing the static TensorRT
checks does not prove that TensorRT runs the file: it was not run in TensorRT.
"""

from pathlib import Path
from typing import Any

SLOW = ("ArgMax", "TopK", "NonZero")
"""TensorRT turns ArgMax into TopK, which takes longer than a small network on a segmentation map."""
MAX_OPSET = 20


def find_tensorrt_breaches(path: Path) -> list[str]:
    """Return a phrase for each of TensorRT's rules that a graph breaks."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    type_name = onnx.TensorProto.DataType.Name
    types = {value.name: type_name(value.type.tensor_type.elem_type) for value in _values(model.graph)}
    broken = [
        f"opset {entry.version} is above {MAX_OPSET}" for entry in model.opset_import if entry.version > MAX_OPSET
    ]
    broken += [f"{node.op_type} is slow" for node in model.graph.node if node.op_type in SLOW]
    untyped = [name for node in model.graph.node for name in node.output if name and name not in types]
    broken += [f"the type of {name} is not known" for name in untyped]
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    edge = {value.name for value in [*model.graph.input, *model.graph.output]}
    for name, type_ in types.items():
        if type_ in ("INT16", "DOUBLE") or (type_ == "UINT8" and name not in edge):
            broken.append(f"{name} is {type_}")
        if type_ == "INT64" and name not in constants:
            broken.append(f"{name} is INT64 and computed in the run")
    for node in model.graph.node:
        ends = {types.get(name) for name in [*node.input, *node.output]}
        if "UINT8" in ends and not (node.op_type == "Cast" and ends & {"FLOAT", "FLOAT16"}):
            broken.append(f"{node.op_type} of {node.input[0]} is on UINT8")
    return broken


def _values(graph: Any) -> list[Any]:
    return [*graph.input, *graph.value_info, *graph.output]


def gflop_a_slice(path: Path) -> float:
    """Return the work of the convolutions per slice, GFLOP; a multiplication and an addition are two operations."""
    import onnx

    model = onnx.load(path)
    for entry in model.graph.input:
        entry.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in _values(inferred.graph)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            # each pixel of the finer side is multiplied by every weight of a filter once
            pixels = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
            work = 1
            for side in [*pixels[-2:], *weights[node.input[1]]]:
                work *= side
            total += 2 * work
    return total / 1e9
