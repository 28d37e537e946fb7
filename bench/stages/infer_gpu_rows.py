"""Rows of the GPU benchmark `infer_gpu` that need no scans: peak, engines, settings, labels and profile."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from slicemill.bench.harness.agreement import dice_losses, differing_share
from slicemill.bench.harness.clock import Work, ratio, time_rounds
from slicemill.bench.harness.headline import Record
from slicemill.bench.stages.infer_gpu_contenders import (
    HALF,
    Keep,
    Workload,
    make_noise,
    model_file,
    open_network,
    run_in_torch,
    run_resident,
    run_with_copies,
    time_and_keep,
    workload_capacity,
)
from slicemill.bench.stages.kernels import summarize, time_by_kernel, time_by_operator
from slicemill.bench.stages.limits import SIDE, product
from slicemill.ct.labels import LITS_LABELS
from slicemill.infer.network.lanes import make_lane
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.runtime.providers import NAMES, import_onnxruntime, make_session, provider_options
from slicemill.train.export.audit import gflop_a_slice
from slicemill.train.export.graph import DEFAULT

AS_IT_IS = "as it is"
SETTINGS: dict[str, dict[str, str]] = {
    "bias apart": {"fuse_conv_bias": "0"},
    "NCHW, bias apart": {"prefer_nhwc": "0", "fuse_conv_bias": "0"},
    "small workspace": {"cudnn_conv_use_max_workspace": "0"},
    "cuDNN's heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "CUDA graph": {"enable_cuda_graph": "1"},
}
"""Changes to the options of the CUDA provider, one at a time. NCHW with fused biases is wrong in onnxruntime."""
FP16, COPIES = "onnxruntime fp16", "onnxruntime fp16 with copies"


def measure_peak(_folder: Path, work: Workload, _results: Record, _keep: Keep) -> Record:
    """Measure matrix products, in float16 on a GPU; the best round counts."""
    kind = torch.float16 if work.on_gpu else torch.float32
    side = 4 * SIDE if work.on_gpu else SIDE
    times = time_rounds({"product": product(kind, work.device)}, rounds=20)["product"]
    return {"type": str(kind), "side": side, "tflops": round(2 * side**3 / min(times.seconds) / 1e12, 3)}


def measure_engines(folder: Path, work: Workload, results: Record, keep: Keep) -> Record:
    """Measure the network alone in each width, without torch's compiler."""

    def measure(width: int, keep: Keep) -> Record:
        half, full = (open_network(folder, work, width, flavor) for flavor in (HALF, DEFAULT))
        contenders: dict[str, Callable[[], Work]] = {
            FP16: lambda: run_resident(half, work),
            "onnxruntime fp32": lambda: run_resident(full, work),
            COPIES: lambda: run_with_copies(half, work),
            "torch eager": lambda: run_in_torch(work, width, workload_capacity(half, work).labels, compiled=False),
        }
        return time_engines(half, contenders, work, peak_tflops(results), keep)

    return measure_widths(work, measure, keep)


def measure_compiled(folder: Path, work: Workload, results: Record, keep: Keep) -> Record:
    """Measure the network compiled by torch, beside onnxruntime, in each width. Compiling takes minutes."""

    def measure(width: int, keep: Keep) -> Record:
        half = open_network(folder, work, width, HALF)
        contenders: dict[str, Callable[[], Work]] = {FP16: lambda: run_resident(half, work)}
        if work.on_gpu:
            labels = workload_capacity(half, work).labels
            contenders["torch compiled"] = lambda: run_in_torch(work, width, labels, compiled=True)
        return time_engines(half, contenders, work, peak_tflops(results), keep)

    return measure_widths(work, measure, keep)


def measure_widths(work: Workload, measure: Callable[[int, Keep], Record], keep: Keep) -> Record:
    """Return a row by width; widths that are finished are kept with the one in progress."""
    finished: Record = {}
    for width in work.widths:
        name = f"width {width}"
        finished[name] = measure(width, partial(_keep_width, keep, {**finished}, name))
        keep({**finished})
    return finished


def _keep_width(keep: Keep, finished: Record, name: str, part: Record) -> None:
    keep({**finished, name: part})


def peak_tflops(results: Record) -> float | None:
    """Return the peak, if its row was measured."""
    tflops: float | None = results.get("peak", {}).get("tflops")
    return tflops


def time_engines(
    model: Model, makers: Mapping[str, Callable[[], Work]], work: Workload, peak: float | None, keep: Keep
) -> Record:
    """Make contenders, time those that run here, and return their rates. The first one, FP16, has to run."""
    contenders: dict[str, Work] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try_contender(contenders, failed, name, make)
        keep({"failed": failed})
    if FP16 not in contenders:
        raise RuntimeError(f"{FP16}: {failed[FP16]}")
    times = time_and_keep(contenders, work.rounds, lambda part: keep({**part, "failed": failed}))
    labels, gflop = workload_capacity(model, work).labels, gflop_a_slice(model.path)
    rows = {name: timing.rate(labels * work.batches) for name, timing in times.items()}
    return {
        "gflop_a_slice": round(gflop, 4),
        "batch": labels,
        "results": rows,
        "of the peak": {name: round(row.per_second * gflop / 1000 / peak, 4) for name, row in rows.items()}
        if peak
        else None,
        "over": {name: round(ratio(timing, times[FP16]), 3) for name, timing in times.items() if name != FP16},
        "failed": failed,
    }


def try_contender(contenders: dict[str, Work], failed: dict[str, str], name: str, make: Callable[[], Work]) -> None:
    """Make a contender and run it once. If it cannot run here, record the reason and continue."""
    try:
        contender = make()
        contender()
        contenders[name] = contender
    except Exception as error:  # noqa: BLE001 (torch and onnxruntime raise many types)
        failed[name] = f"{type(error).__name__}: {error}"


def measure_settings(folder: Path, work: Workload, _results: Record, keep: Keep) -> Record:
    """Measure the default network with one setting of the CUDA provider changed at a time."""
    width = work.widths[0]
    contenders = {AS_IT_IS: run_resident(open_network(folder, work, width, HALF), work)}
    failed: dict[str, str] = {}

    def change(settings: dict[str, str]) -> Work:
        model = open_network(folder, work, width, HALF)
        model.session = make_session(model.path.read_bytes(), model.path, work.device, 0, settings)[0]
        return run_resident(model, work)

    for name, settings in (SETTINGS if work.on_gpu else {}).items():
        try_contender(contenders, failed, name, partial(change, settings))
        keep({"failed": failed})
    times = time_and_keep(contenders, work.rounds, lambda part: keep({**part, "failed": failed}))
    amount = workload_capacity(open_network(folder, work, width, HALF), work).labels * work.batches
    return {
        "results": {name: timing.rate(amount) for name, timing in times.items()},
        "over as it is": {name: round(ratio(times[AS_IT_IS], timing), 3) for name, timing in times.items()},
        "failed": failed,
    }


def compare_labels(folder: Path, work: Workload, _results: Record, keep: Keep) -> Record:
    """Compare the device's labels in both precisions with the CPU's in float32, on noise around the organ's HU."""
    width, noise = work.widths[0], make_noise(work, 32)
    smooth = ndimage.gaussian_filter(noise.image.astype(np.float32), (1, 8, 8))
    image, neighbors = (1000 + 25 * (smooth - 1500)).astype(np.int16), noise.neighbors
    expected = open_model(model_file(folder, width, DEFAULT, work.size), "cpu").run(image, neighbors).label
    rows: Record = {}
    for flavor in (HALF, DEFAULT):
        model = open_network(folder, replace(work, batch=len(neighbors)), width, flavor)
        lane = make_lane(model, Capacity(len(neighbors), len(image)), ("label",))
        lane.image[:] = image
        label = lane.run(lane.image, neighbors, nullcontext()).label
        rows[flavor.precision] = {
            "differing": differing_share(label, expected),
            "dice_loss": dice_losses(label, expected, LITS_LABELS),
        }
        keep({**rows})
    return {"slices": len(neighbors), "pixels": np.bincount(expected.ravel(), minlength=3).tolist(), **rows}


def measure_profile(folder: Path, work: Workload, _results: Record, keep: Keep) -> Record:
    """Sum the time of a few batches by operator, from onnxruntime's file, and by kernel, from the GPU."""
    few = replace(work, batches=3)
    return measure_widths(work, lambda width, _: profile_width(folder, few, width), keep)


def profile_width(folder: Path, work: Workload, width: int) -> Record:
    """Sum the time of one network in float16."""
    model = open_network(folder, work, width, HALF)
    kernels = time_by_kernel(run_resident(model, work))
    module = import_onnxruntime()
    options = module.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    providers = [(NAMES[work.device], provider_options(work.device, 0, model.path.read_bytes()))]
    model.session = module.InferenceSession(str(model.path), options, providers=providers)
    run_resident(model, work)()
    events = json.loads(Path(model.session.end_profiling()).read_text())
    return {"by kernel of the card": summarize(kernels), "by onnxruntime's file": summarize(time_by_operator(events))}
