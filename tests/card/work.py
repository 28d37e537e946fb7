"""What the tests let the product do in a process with the stand-ins: `python -m tests.card.work NAME VALUES`.

The last line that it prints is the result of the function, as JSON.
"""

import ctypes
import json
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.infer.network.lanes import Lane, make_lane
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.runtime.capacity import batch_capacity
from slicemill.infer.runtime.providers import make_session

BATCH = 4


def mark(text: str) -> None:
    """Write a line of our own to the log of the stand-ins."""
    ctypes.CDLL("libstand_in.so").mark(text.encode())


def record_placement() -> None:
    """Let sessions remember the provider of each node."""
    import onnxruntime

    class Options(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    onnxruntime.SessionOptions = Options


def open_lane(model: Model) -> Lane:
    """Return a lane with buffers for all outputs."""
    found = [output.name for output in model.session.get_outputs()]
    return make_lane(model, batch_capacity(model.info, model.provider, BATCH), found)


def run_batch(lane: Lane, context: int) -> int:
    """Run a batch that is not full, and return its highest label."""
    labels = BATCH - 1
    rows = labels * min(context, 2)
    output = lane.run(lane.image[:rows], np.zeros((labels, context), dtype=np.int32), nullcontext())
    assert output.label.shape == (labels, *lane.image.shape[1:])
    return int(output.label.max())


def label(path: str, device: int = 0) -> dict[str, Any]:
    """Open a model and run three batches."""
    record_placement()
    model = open_model(Path(path), "cuda", device)
    assignments = model.session.get_provider_graph_assignment_info()
    lane = open_lane(model)
    highest = []
    for number in range(3):
        mark(f"batch {number}")
        highest.append(run_batch(lane, model.info.context))
    mark("end")
    return {
        "provider": model.provider,
        "options": model.session.get_provider_options()["CUDAExecutionProvider"],
        "nodes": [[part.ep_name, node.op_type] for part in assignments for node in part.get_nodes()],
        "outputs": [output.name for output in model.session.get_outputs()],
        "highest": highest,
    }


def two_lanes(path: str, batches: int) -> list[int]:
    """Run batches in two lanes at once, each in a thread, and return the highest labels."""
    model = open_model(Path(path), "cuda")
    highest: list[int] = []

    def drive() -> None:
        lane = open_lane(model)
        start.wait()
        highest.extend(run_batch(lane, model.info.context) for _ in range(batches))

    start = threading.Barrier(2)
    mark("lanes")
    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return highest


def rebuild(path: str) -> list[int]:
    """Run a batch, make the session again, and run another one in a new lane."""
    model = open_model(Path(path), "cuda")
    highest = [run_batch(open_lane(model), model.info.context)]
    mark("rebuild")
    model.rebuild()
    return [*highest, run_batch(open_lane(model), model.info.context)]


def fuse_every_bias(path: str) -> str:
    """Run a batch with fused biases whatever the model, and return the error."""
    model = open_model(Path(path), "cuda")
    content = model.path.read_bytes()
    model.session = make_session(content, model.path, "cuda", 0, {"fuse_conv_bias": "1"})[0]
    try:
        run_batch(open_lane(model), model.info.context)
    except RuntimeError as error:
        return str(error)
    return ""


def misuse() -> dict[str, int]:
    """Call the runtime wrongly, and return the error of each call."""
    runtime = ctypes.CDLL("libcudart.so.13")
    memory, host, nothing = ctypes.c_void_p(), ctypes.create_string_buffer(300), ctypes.c_void_p(64)
    assert runtime.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(100)) == 0

    def copy(size: int, kind: int) -> int:
        return int(runtime.cudaMemcpy(memory, host, ctypes.c_size_t(size), ctypes.c_int(kind)))

    return {
        "copy that fits": copy(100, 1),
        "copy beyond the end": copy(101, 1),
        "copy in the wrong direction": copy(100, 2),
        "the error is kept": runtime.cudaGetLastError(),
        "and cleared": runtime.cudaGetLastError(),
        "unknown memory is freed": runtime.cudaFree(nothing),
        "unknown device": runtime.cudaSetDevice(1),
        "function that is not written": runtime.cudaGraphLaunch(None, None),
        "freed": runtime.cudaFree(memory),
        "freed twice": runtime.cudaFree(memory),
    }


def main() -> None:
    """Call the function that the arguments name."""
    functions = {function.__name__: function for function in (label, two_lanes, rebuild, fuse_every_bias, misuse)}
    result = functions[sys.argv[1]](*json.loads(sys.argv[2]))
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
