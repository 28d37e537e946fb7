"""Weights in files beside an ONNX file, as torch.onnx.export writes by default: copied into the model, in memory.

An ONNX file is untrusted, and so are the names in it. Only a plain name is read, of a regular file in the folder of the
model, not through a link out of it. A tensor must have the bytes of its shape and type, and the file must have them.
"""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from slicemill.common.errors import ModelError
from slicemill.common.extras import describe_install, explain_import
from slicemill.infer.runtime.messages import find_cause

EXTERNAL_DATA = b"\x0a\x08location"
"""The usual protobuf encoding of the key that points a tensor to another file. However it is encoded,
`slicemill.infer.runtime.providers` follows no such path."""
MAX_BYTES = (1 << 31) - 1
"""Largest protobuf message."""


def read_weights_beside(content: bytes, path: Path) -> bytes:
    """Return a model with the weights that it stores in other files; a model in one file is returned unchanged.

    Parameters
    ----------
    content
        Bytes of the model file.
    path
        The model file. Files of weights must be in its folder.

    Raises
    ------
    ModelError
        The bytes are not an ONNX model, the package onnx is missing, or weights are missing or do not fit.
    """
    if EXTERNAL_DATA not in content:
        return content
    missing = f"stores weights in other files; reading them needs the package onnx. {describe_install('train')}."
    with explain_import("onnx", ModelError(missing, where=path)):
        import onnx
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf raises its own types
        raise ModelError(f"is not an ONNX model ({find_cause(error)}).", where=path) from error
    tensors = [one for one in _find_tensors(model) if one.data_location == onnx.TensorProto.EXTERNAL]
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        left = MAX_BYTES - len(content)
        for tensor in tensors:
            where = {entry.key: entry.value for entry in tensor.external_data}
            name = where.get("location", "")
            if name not in files:
                files[name] = stack.enter_context(_open_beside(path, name))
            size = _count_bytes(onnx, tensor, path)
            left -= size
            if left < 0:
                raise ModelError("its weights take more than 2 GB; larger networks are not supported.", where=path)
            tensor.raw_data = _read_part(files[name], where, size, f"{path}: its weights {tensor.name!r} in {name}")
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return bytes(model.SerializeToString())


def _find_tensors(message: Any) -> Iterator[Any]:
    """Yield all tensors of a model: of its graph, its functions, and the graphs in attributes."""
    graphs, nodes = [message.graph], [node for function in message.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _open_beside(path: Path, name: str) -> IO[bytes]:
    if not name or name in (".", "..") or any(character in name for character in "/\\\0:"):
        raise ModelError(
            f"stores weights in {name!r}; only files in the folder of the model are read. Export it again, "
            "with its weights in one file beside it.",
            where=path,
        )
    beside = path.parent / name
    try:
        if beside.resolve(strict=True).parent != path.parent.resolve():
            raise ModelError(f"its weights {name} are a link out of the folder; put the file itself there.", where=path)
        descriptor = os.open(beside, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
    except OSError as error:
        raise ModelError(
            f"its weights are in {name}, which cannot be read ({error.strerror}); put it into the same folder.",
            where=path,
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"its weights {name} are not a regular file.", where=path)
    return os.fdopen(descriptor, "rb")


def _count_bytes(onnx: Any, tensor: Any, path: Path) -> int:
    """Return the size of a tensor according to its shape and type."""
    count = int(math.prod(tensor.dims))
    try:
        bits = _bits(onnx, tensor.data_type)
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"its weights {tensor.name!r} have an unknown type, {tensor.data_type}.", where=path
        ) from error
    if count < 0 or any(side < 0 for side in tensor.dims):
        raise ModelError(f"its weights {tensor.name!r} have a negative shape, {list(tensor.dims)}.", where=path)
    return int(-(-count * bits // 8))


def _bits(onnx: Any, kind: int) -> int:
    """Return the bits of an element; elements of 4 bits and fewer are packed."""
    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("STRING", "UNDEFINED"):
        raise ValueError(name)
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _read_part(stream: IO[bytes], where: dict[str, str], size: int, what: str) -> bytes:
    """Read the bytes of a tensor from a file of weights."""
    available = os.fstat(stream.fileno()).st_size
    offset, length = (where.get(key, default) for key, default in (("offset", "0"), ("length", str(size))))
    if not all(number.isdecimal() and len(number) < 16 for number in (offset, length)):
        raise ModelError(f"{what}: offset {offset[:20]!r} and length {length[:20]!r} must be numbers of bytes.")
    if int(length) != size:
        raise ModelError(f"{what}: are {int(length):,} bytes, but their shape and type need {size:,}.")
    if int(offset) + size > available:
        raise ModelError(
            f"{what}: end at byte {int(offset) + size:,}, but the file has {available:,} bytes; it is cut off, or of "
            "another model. Copy both files again."
        )
    stream.seek(int(offset))
    content = stream.read(size)
    if len(content) != size:
        raise ModelError(f"{what}: the file changed while it was read.")
    return content
