"""Inference on a card: the bare network against the card's own peak and against torch, copies, whole runs, labels, and what bounds it.

What bounds it: convolutions, or the memory that everything between them passes through; the row ``profile`` says which. Networks have
random weights and the labels of coarse HU (`slicemill.bench.stages.infer_cpu`). All rows of one call share its peak, and those of a row their rounds.

    python -m slicemill.bench.stages.infer_gpu --json bench/results/gpu/infer.json            # bench/gpu/infer.sh; a few minutes on an H200
    python -m slicemill.bench.stages.infer_gpu --device cpu --size 64 --scans 2 --slices 4    # the same code where there is no card

| row | contenders |
|---|---|
| peak | matrix products in float16 |
| engines | the CUDA provider on data that lie on the card, with copies; torch eager (channels last, cudnn.benchmark) and compiled |
| settings | the same with one of the provider's settings changed |
| files | whole runs from .nii.gz, .nii and a store, beside the network with copies |
| labels | those of the card against the CPU's in float32 |
| profile | time by operator and by kernel |
"""

import argparse
import datetime as dt
import gc
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from slicemill.bench.harness.clock import interleaved, ratio
from slicemill.bench.stages.infer_cpu import MARKED, Guided, Record, exported, marked
from slicemill.bench.stages.infer_openvino import dice
from slicemill.bench.stages.kernels import by_kernel, by_operator, summed
from slicemill.bench.stages.limits import SIDE, product
from slicemill.common.files import to_json, write_json
from slicemill.common.machine import machine_info
from slicemill.common.terminal import print_line
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import PhantomSpec, make_phantom, write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.lanes import DeviceLane, Lane, make_lane, turns_of
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.runtime.capacity import LANES, Capacity, capacity_of
from slicemill.infer.runtime.providers import NAMES, make_session, options_for, runtime
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.writer import prepare_store
from slicemill.train.config import Config
from slicemill.train.export.audit import gflop_a_slice
from slicemill.train.export.graph import DEFAULT, Exported, Flavor
from slicemill.train.network.step import build

HALF = Flavor(half=True)
WANTED = ("label", "tumor")
SETTINGS: dict[str, dict[str, str]] = {
    "NCHW": {"prefer_nhwc": "0"},
    "bias apart": {"fuse_conv_bias": "0"},
    "NCHW, bias apart": {"prefer_nhwc": "0", "fuse_conv_bias": "0"},
    "small workspace": {"cudnn_conv_use_max_workspace": "0"},
    "cuDNN's heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "CUDA graph": {"enable_cuda_graph": "1"},
}
"""What is changed, one after the other, of `slicemill.infer.runtime.providers.CUDA`."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """On what, and how much."""

    device: Literal["cuda", "cpu"] = "cuda"
    widths: tuple[int, ...] = (Config().width, 2 * Config().width)
    """Channels of the networks' first level: the default network and a wider one."""
    size: int = 512
    batch: int = 0
    """Slices in a batch; 0 is what `infer` takes."""
    batches: int = 20
    """Batches in a round."""
    scans: int = 64
    slices: int = 256
    """Slices of a scan."""
    rounds: int = 5


Row = Callable[[Path, Work, Record], Record]


def main() -> None:
    """Measure, write the record after every row, and print it as one JSON line; exit 1 when a row failed."""
    parser = argparse.ArgumentParser(description="Inference on a card.")
    parser.add_argument("--json", type=Path, help="Where the record goes.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default=Work.device)
    parser.add_argument("--widths", type=int, nargs="+", default=Work.widths)
    parser.add_argument("--only", choices=list(ROWS), nargs="+", default=list(ROWS))
    for name in ("size", "batch", "batches", "scans", "slices", "rounds"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Work, name))
    given = vars(parser.parse_args())
    path, only = given.pop("json"), given.pop("only")
    work = Work(**{**given, "widths": tuple(given["widths"])})
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), work, only, lambda record: write_json(path, record) if path else None)
    print_line(to_json(record))
    if record["failed"]:
        raise SystemExit(1)


def measure(folder: Path, work: Work, only: list[str], keep: Callable[[Record], object]) -> Record:
    """Return the record of some rows; `keep` is given it after each, so that what was measured outlives a limit of time."""
    record: Record = {
        "benchmark": "device",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": f"slices of {work.size}x{work.size}, context {Config().context}",
        "work": asdict(work),
        "results": {},
        "failed": {},
        "machine": machine_info(),
    }
    torch.backends.cudnn.benchmark = True
    for name, row in ROWS.items():
        if name not in only:
            continue
        print_line(f"measuring: {name}")
        try:
            record["results"][name] = row(folder, work, record["results"])
        except Exception as error:  # noqa: BLE001 (a row that fails is in the record and the exit status; time on a card is short)
            record["failed"][name] = f"{type(error).__name__}: {error}"
        gc.collect()  # sessions and their memory on the card
        keep(record)
    return record


def network_of(width: int) -> tuple[torch.nn.Module, Config]:
    """Return the network of a width, with random weights, and its settings."""
    torch.manual_seed(0)
    config = replace(MARKED, width=width)
    return build(LITS_LABELS, config), config


def file_of(folder: Path, width: int, flavor: Flavor, size: int) -> Path:
    """Return the model file of a network, written once."""
    path = folder / f"width-{width}{flavor.suffix}"
    return path if path.exists() else exported(path, *network_of(width), size, flavor)


def opened(folder: Path, work: Work, width: int, flavor: Flavor) -> Model:
    """Return a network as `infer` opens it."""
    return open_model(file_of(folder, width, flavor, work.size), work.device, 0, work.batch)


def capacity(model: Model, work: Work) -> Capacity:
    """Return what a batch holds."""
    return capacity_of(model.info, model.provider, work.batch)


def batch_of(work: Work, labels: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
    """Return noise int16[n, H, W], HU, of slices that follow each other, and the window int32[b, c] of each that is labelled."""
    context = MARKED.context
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 4000, (labels + context - 1, work.size, work.size), dtype=np.int16)
    return image, np.add.outer(np.arange(labels), np.arange(context)).astype(np.int32)


def filled(model: Model, work: Work) -> tuple[Lane, npt.NDArray[np.int16], npt.NDArray[np.int32]]:
    """Return a lane with a batch in it, its slices and its windows."""
    lane = make_lane(model, capacity(model, work), WANTED)
    image, neighbors = batch_of(work, capacity(model, work).labels)
    lane.image[: len(image)] = image
    return lane, lane.image[: len(image)], neighbors


def resident(model: Model, work: Work) -> Callable[[], object]:
    """Return batches of data that lie on the card, one after the other; on the CPU there is nothing else."""
    lane, image, neighbors = filled(model, work)
    lane.run(image, neighbors, nullcontext())

    def run() -> None:
        for _ in range(work.batches):
            if isinstance(lane, DeviceLane):
                lane.compute()
            else:
                lane.run(image, neighbors, nullcontext())

    return run


def with_copies(model: Model, work: Work) -> Callable[[], object]:
    """Return the same number of batches through the lanes of a run, each with its copies to and from the card."""
    lanes = [filled(model, work) for _ in range(LANES)]
    turns = turns_of(model)

    def drive(number: int) -> None:
        lane, image, neighbors = lanes[number]
        for _ in range(number, work.batches, LANES):
            lane.run(image, neighbors, turns)

    def run() -> None:
        threads = [threading.Thread(target=drive, args=(number,)) for number in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def in_torch(work: Work, width: int, labels: int, *, compiled: bool) -> Callable[[], object]:
    """Return the same graph in torch, channels last, in float16 on a card, on data that lie there."""
    network, config = network_of(width)
    flavor = HALF if work.device == "cuda" else DEFAULT
    graph: Any = Exported(Guided(network).eval(), config, LITS_LABELS, flavor).eval().to(work.device)
    graph = graph.to(memory_format=torch.channels_last)
    graph = torch.compile(graph, mode="max-autotune") if compiled else graph
    given = [torch.from_numpy(array).to(work.device) for array in batch_of(work, labels)]

    def run() -> None:
        with torch.inference_mode():
            for _ in range(work.batches):
                graph(*given)
        if work.device == "cuda":
            torch.cuda.synchronize()

    return run


def peak(_folder: Path, work: Work, _results: Record) -> Record:
    """Measure matrix products, in float16 on a card; the best round counts."""
    kind = torch.float16 if work.device == "cuda" else torch.float32
    side = SIDE if work.device == "cpu" else 4 * SIDE
    times = interleaved({"product": product(kind, work.device)}, rounds=20)["product"]
    return {"type": str(kind), "side": side, "tflops": round(2 * side**3 / min(times.seconds) / 1e12, 3)}


def engines(folder: Path, work: Work, results: Record) -> Record:
    """Measure the bare network, each width apart."""
    return {f"width {width}": engines_of(folder, work, width, results) for width in work.widths}


def engines_of(folder: Path, work: Work, width: int, results: Record) -> Record:
    """Measure one network in onnxruntime and torch."""
    half, full = (opened(folder, work, width, flavor) for flavor in (HALF, DEFAULT))
    labels = capacity(half, work).labels
    contenders = {
        "onnxruntime fp16": resident(half, work),
        "onnxruntime fp32": resident(full, work),
        "onnxruntime fp16 with copies": with_copies(half, work),
        "torch eager": in_torch(work, width, labels, compiled=False),
    }
    failed: dict[str, str] = {}
    if work.device == "cuda":
        add(contenders, failed, "torch compiled", lambda: in_torch(work, width, labels, compiled=True))
    times = interleaved(contenders, rounds=work.rounds, tell=lambda name: print_line(f"  {name}"))
    ours, amount = times["onnxruntime fp16"], labels * work.batches
    gflop = gflop_a_slice(half.path)
    rows = {name: timing.as_json(amount) for name, timing in times.items()}
    most = results.get("peak", {}).get("tflops")
    return {
        "gflop_a_slice": round(gflop, 4),
        "batch": labels,
        "results": rows,
        "of the peak": {name: round(row["per_second"] * gflop / 1000 / most, 4) for name, row in rows.items()}
        if most
        else None,
        "over": {name: round(ratio(timing, ours), 3) for name, timing in times.items() if timing is not ours},
        "with copies over resident": round(ratio(ours, times["onnxruntime fp16 with copies"]), 3),
        "failed": failed,
    }


def add(
    contenders: dict[str, Callable[[], object]],
    failed: dict[str, str],
    name: str,
    make: Callable[[], Callable[[], object]],
) -> None:
    """Make a contender and run it once; what cannot run here is a result, too, and does not keep the others from running."""
    try:
        contender = make()
        contender()
        contenders[name] = contender
    except Exception as error:  # noqa: BLE001 (torch and onnxruntime raise many types)
        failed[name] = f"{type(error).__name__}: {str(error)[:500]}"


def settings(folder: Path, work: Work, _results: Record) -> Record:
    """Measure the default network with one setting of the CUDA provider changed at a time."""
    width = work.widths[0]
    changes = SETTINGS if work.device == "cuda" else {}
    contenders = {"as it is": resident(opened(folder, work, width, HALF), work)}
    failed: dict[str, str] = {}

    def changed(change: dict[str, str]) -> Callable[[], object]:
        model = opened(folder, work, width, HALF)
        model.session = make_session(model.path.read_bytes(), model.path, work.device, 0, change)[0]
        return resident(model, work)

    for name, change in changes.items():
        add(contenders, failed, name, partial(changed, change))
    times = interleaved(contenders, rounds=work.rounds)
    amount = capacity(opened(folder, work, width, HALF), work).labels * work.batches
    return {
        "results": {name: timing.as_json(amount) for name, timing in times.items()},
        "over as it is": {name: round(ratio(times["as it is"], timing), 3) for name, timing in times.items()},
        "failed": failed,
    }


def files(folder: Path, work: Work, _results: Record) -> Record:
    """Measure whole runs of the default network in float16, scans to masks and reports, beside the network with copies."""
    model = opened(folder, work, work.widths[0], HALF)
    sources = made_sources(folder, work)
    stages: Record = {}

    def bulk(name: str) -> Callable[[], object]:
        jobs, _ = gather([sources[name]])

        def run() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                summary = infer(model, jobs, Path(out), InferOptions(batch=work.batch))
                assert summary.count("done") == len(jobs)  # noqa: S101 (a benchmark of failures measures nothing)
                stages[name] = json.loads((Path(out) / "summary.json").read_text())

        return run

    bare = "network with copies"
    contenders = {bare: with_copies(model, work), **{name: bulk(name) for name in sources}}
    times = interleaved(contenders, rounds=max(1, work.rounds // 2), tell=lambda name: print_line(f"  {name}"))
    amounts = dict.fromkeys(sources, work.scans * work.slices) | {bare: capacity(model, work).labels * work.batches}
    rows = {name: timing.as_json(amounts[name]) for name, timing in times.items()}
    compared = gate_seconds(model, work)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "results": rows,
        "over the network with copies": {
            name: round(ratio(times[bare], times[name]) * amounts[name] / amounts[bare], 3) for name in sources
        },
        "comparison with the CPU, once a run, seconds": round(compared, 3),
        "over the network with copies, without that comparison": {
            name: round(amounts[name] / max(1e-9, times[name].median - compared) / rows[bare]["per_second"], 3)
            for name in sources
        },
        "summaries": {
            name: {key: value for key, value in summary.items() if key != "outcomes"}
            for name, summary in stages.items()
        },
    }


def gate_seconds(model: Model, work: Work) -> float:
    """Return about how long a run takes to label two slices on the CPU before its first scan; a run here is short beside it."""
    image, neighbors = batch_of(work, 2)
    start = time.perf_counter()
    open_model(model.path, "cpu").run(image, neighbors)
    return time.perf_counter() - start if work.device == "cuda" else 0.0


def made_sources(folder: Path, work: Work) -> dict[str, Path]:
    """Write the scans, copies of one phantom, as .nii.gz, .nii and a store."""
    phantom = make_phantom(PhantomSpec(seed=1, shape=(work.slices, work.size, work.size)))
    image = marked(phantom.image, phantom.label)
    sources = {suffix: folder / suffix.replace(".", "") for suffix in (".nii.gz", ".nii")}
    for suffix, place in sources.items():
        place.mkdir()
        write_nifti(place / f"scan-0{suffix}", image, phantom.spacing_mm)
        for number in range(1, work.scans):
            shutil.copyfile(place / f"scan-0{suffix}", place / f"scan-{number}{suffix}")
    store, params = folder / "store", Params(labels=LITS_LABELS)
    prepare_store(store)

    def convert(path: Path) -> None:
        case = CaseFiles(case_id=path.stem, patient_id=path.stem, image=path, mask=None, root=path.parent)
        convert_case(case, params, store)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(convert, sorted(sources[".nii"].iterdir())))
    return {**sources, "store": store}


def labels(folder: Path, work: Work, _results: Record) -> Record:
    """Compare labels on the device, in both precisions, with those of the CPU in float32, on soft noise about the organ's HU."""
    width = work.widths[0]
    image, neighbors = batch_of(work, 32)
    image = (1000 + 25 * (ndimage.gaussian_filter(image.astype(np.float32), (1, 8, 8)) - 1500)).astype(np.int16)
    expected = open_model(file_of(folder, width, DEFAULT, work.size), "cpu").run(image, neighbors).label
    found: dict[str, Any] = {}
    for flavor in (HALF, DEFAULT):
        model = opened(folder, replace(work, batch=len(neighbors)), width, flavor)
        lane = make_lane(model, Capacity(len(neighbors), len(image)), ("label",))
        lane.image[:] = image
        label = lane.run(lane.image, neighbors, nullcontext()).label
        found[flavor.precision] = {
            "differing": float(np.count_nonzero(label != expected)) / expected.size,
            "dice_loss": {
                name: round(1 - dice(label == value, expected == value), 6)
                for name, value in LITS_LABELS.values.items()
            },
        }
    return {"slices": len(neighbors), "pixels": np.bincount(expected.ravel(), minlength=3).tolist(), **found}


def profile(folder: Path, work: Work, _results: Record) -> Record:
    """Sum the time of a few batches by operator, as onnxruntime's file has it, and by kernel, as the card does."""
    return {f"width {width}": profile_of(folder, work, width) for width in work.widths}


def profile_of(folder: Path, work: Work, width: int) -> Record:
    """Sum the time of one network in float16."""
    model = opened(folder, work, width, HALF)
    kernels = by_kernel(resident(model, replace(work, batches=3)))
    module = runtime()
    told = module.SessionOptions()
    told.enable_profiling, told.profile_file_prefix = True, str(folder / "profile")
    providers = [(NAMES[work.device], options_for(work.device, 0))]
    model.session = module.InferenceSession(str(model.path), told, providers=providers)
    resident(model, replace(work, batches=3))()
    events = json.loads(Path(model.session.end_profiling()).read_text())
    return {"by kernel of the card": summed(kernels), "by onnxruntime's file": summed(by_operator(events))}


ROWS: dict[str, Row] = {
    "peak": peak,
    "engines": engines,
    "labels": labels,
    "profile": profile,
    "settings": settings,
    "files": files,
}


if __name__ == "__main__":
    main()
