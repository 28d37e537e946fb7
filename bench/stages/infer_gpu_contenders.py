"""Contenders of the GPU benchmark `infer_gpu`: batches of noise through onnxruntime's lanes, and through torch."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from slicemill.bench.harness.clock import Timing, Work, time_rounds
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.networks import MARKED, HuThresholdNetwork, default_network, export_network
from slicemill.common.terminal import print_line
from slicemill.ct.labels import LITS_LABELS
from slicemill.infer.network.lanes import DeviceLane, Lane, make_compute_limit, make_lane
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.runtime.capacity import Capacity, batch_capacity
from slicemill.train.config import Config
from slicemill.train.export.graph import DEFAULT, ExportGraph, Flavor

HALF = Flavor(half=True)
OUTPUTS = ("label", "tumor")
Keep = Callable[[Record], None]
"""Keeps a part of a row's result."""
UNFINISHED = "seconds so far, first of all the warm-up"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Device, networks, and amount of work."""

    device: Literal["cuda", "cpu"] = "cuda"
    widths: tuple[int, ...] = (Config().width,)
    """Channels of the networks' first level."""
    size: int = 512
    """Pixels along a side of a slice."""
    batch: int = 0
    """Slices in a batch; 0 is the number that `infer` chooses."""
    lanes: int = 0
    """Batches in progress at once in `infer`; 0 is the number that it chooses."""
    batches: int = 20
    """Batches in a round."""
    scans: int = 64
    slices: int = 256
    """Slices of a scan."""
    rounds: int = 5
    drawn: int = 32
    """Slices of the phantom that is drawn for the scans, which repeat it: drawing one takes a quarter of a second."""

    @property
    def on_gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device == "cuda"


def time_and_keep(contenders: Mapping[str, Work], rounds: int, keep: Keep) -> dict[str, Timing]:
    """Do `time_rounds`, and keep the times so far before each run, outside the measured time."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}

    def timed(name: str, work: Work) -> Work:
        def run() -> None:
            start = time.perf_counter()
            work()
            seconds[name].append(round(time.perf_counter() - start, 6))

        return run

    def log(name: str) -> None:
        keep({UNFINISHED: seconds})
        print_line(f"  {name}")

    return time_rounds({name: timed(name, work) for name, work in contenders.items()}, rounds=rounds, log=log)


def config_with_width(width: int) -> Config:
    """Return the settings of a network of this width."""
    return replace(MARKED, width=width)


def model_file(folder: Path, width: int, flavor: Flavor, size: int) -> Path:
    """Return the model file of a network, and write it at the first call."""
    path, config = folder / f"width-{width}{flavor.suffix}", config_with_width(width)
    return path if path.exists() else export_network(path, default_network(config), config, size, flavor)


def open_network(folder: Path, work: Workload, width: int, flavor: Flavor) -> Model:
    """Open a network as `infer` does."""
    return open_model(model_file(folder, width, flavor, work.size), work.device, 0, work.batch, work.lanes)


def workload_capacity(model: Model, work: Workload) -> Capacity:
    """Return the capacity of a batch."""
    return batch_capacity(model.info, model.provider, work.batch)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of slices."""

    image: npt.NDArray[np.int16]
    """int16[n, H, W], HU."""
    neighbors: npt.NDArray[np.int32]
    """int32[b, c]: the slices of the window around each slice that is labeled."""


def make_noise(work: Workload, labels: int) -> Batch:
    """Return a batch of noise in which `labels` consecutive slices are labeled."""
    context = MARKED.context
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 4000, (labels + context - 1, work.size, work.size), dtype=np.int16)
    return Batch(image=image, neighbors=np.add.outer(np.arange(labels), np.arange(context)).astype(np.int32))


def fill_lane(model: Model, work: Workload) -> tuple[Lane, Batch]:
    """Return a lane, and the batch in its buffer."""
    capacity = workload_capacity(model, work)
    lane = make_lane(model, capacity, OUTPUTS)
    noise = make_noise(work, capacity.labels)
    image = lane.image[: len(noise.image)]
    image[:] = noise.image
    return lane, Batch(image=image, neighbors=noise.neighbors)


def run_resident(model: Model, work: Workload) -> Work:
    """Return a function that runs batches on data in GPU memory; on the CPU, complete runs."""
    lane, batch = fill_lane(model, work)
    lane.run(batch.image, batch.neighbors, nullcontext())

    def run() -> None:
        for _ in range(work.batches):
            if isinstance(lane, DeviceLane):
                lane.compute()
            else:
                lane.run(batch.image, batch.neighbors, nullcontext())

    return run


def run_with_copies(model: Model, work: Workload) -> Work:
    """Return a function that runs as many batches through the lanes of a run, with copies to and from the GPU."""
    filled = [fill_lane(model, work) for _ in range(model.lanes)]
    limit = make_compute_limit(model)

    def run_lane(number: int) -> None:
        lane, batch = filled[number]
        for _ in range(number, work.batches, model.lanes):
            lane.run(batch.image, batch.neighbors, limit)

    def run() -> None:
        threads = [threading.Thread(target=run_lane, args=(number,)) for number in range(model.lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def run_in_torch(work: Workload, width: int, labels: int, *, compiled: bool) -> Work:
    """Return a function that runs the same graph in torch, channels last, on data on the device; float16 on a GPU."""
    config = config_with_width(width)
    flavor = HALF if work.on_gpu else DEFAULT
    network = HuThresholdNetwork(default_network(config)).eval()
    graph: Any = ExportGraph(network, config, LITS_LABELS, flavor).eval().to(work.device)
    graph = graph.to(memory_format=torch.channels_last)
    graph = torch.compile(graph, mode="max-autotune") if compiled else graph
    noise = make_noise(work, labels)
    inputs = [torch.from_numpy(array).to(work.device) for array in (noise.image, noise.neighbors)]

    def run() -> None:
        with torch.inference_mode():
            for _ in range(work.batches):
                graph(*inputs)
        if work.on_gpu:
            torch.cuda.synchronize()

    return run
