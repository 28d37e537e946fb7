"""Contenders of the inference benchmarks: complete runs of `infer`, and the network alone on slices in memory.

The network alone is the limit of a run: the same network on the same number of slices, in the same batches, with the
same outputs. It runs as in most scripts, one batch after the other on all cores, and as in `infer`, one batch on each
core.
"""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from slicemill.bench.harness.clock import Work
from slicemill.bench.harness.cores import count_cores
from slicemill.bench.harness.headline import check
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job, load_scan
from slicemill.infer.network.lanes import make_lane
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.run.timing import StageTime
from slicemill.infer.runtime.capacity import batch_capacity
from slicemill.infer.runtime.providers import import_onnxruntime
from slicemill.infer.slices.assembly import plan_scan
from slicemill.infer.slices.batches import Batcher, NetworkScan

EVERY_SLICE = InferOptions(z_range="all")
LANES_ALONE = "bare network, a batch on each core"
SESSION_ALONE = "bare session, one batch on all cores"
SESSION_SENTENCE = "the network alone, on slices in memory, one batch after the other"


def segment_all(
    model: Model, jobs: Sequence[Job], folder: Path, options: InferOptions = EVERY_SLICE
) -> Mapping[str, StageTime]:
    """Segment all scans into a temporary folder; return the time of each stage (`slicemill.infer.run.timing`)."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        summary = infer(model, jobs, Path(out), options)
    check("all scans were segmented", holds=summary.count("done") == len(jobs))
    return summary.stages


def open_on_all_cores(path: Path) -> Model:
    """Open a model as most scripts do: one run uses all cores."""
    model = open_model(path, "cpu")
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = count_cores()
    model.session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return model


def network_alone(model: Model, scan: Path, slices: int, *, lanes: int = 1, batch: int = 0) -> Work:
    """Return a function that runs only the network: it labels one batch in memory until `slices` are done.

    Parameters
    ----------
    scan
        The scan of the batch, or a folder with it; the batch is from its middle.
    lanes
        Batches at a time: as many as `infer` has, or 1 for a session that uses all cores.
    batch
        Slices in a batch; 0 is the number that `infer` chooses.
    """
    loaded = load_scan(gather([scan])[0][0])
    nz, ny, nx = loaded.volume.shape
    plan = plan_scan(model.info, (nz, ny, nx), loaded.grid.spacing_mm)
    capacity = batch_capacity(model.info, model.provider, batch)
    filler = Batcher(capacity)
    filler.add(NetworkScan(plan, loaded.volume))
    filled = filler.next()
    while filler.waiting > nz // 2:
        filled = filler.next()
    opened = [make_lane(model, capacity, plan.outputs) for _ in range(lanes)]
    images = [filled.fill(lane.image) for lane in opened]
    batches = -(-slices // len(filled.units))

    def run_lane(number: int) -> None:
        for _ in range(number, batches, lanes):
            opened[number].run(images[number], filled.neighbors, nullcontext())

    def work() -> None:
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(run_lane, range(lanes)))

    return work
