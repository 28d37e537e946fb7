"""Row ``many`` of `bench infer`: 64 small scans as one folder, compared with one call per scan.

Bottleneck: the convolutions for one folder; padding, opening and starting for the others. The command is
`slicemill bench infer`.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from slicemill.bench.command import slicemill_command
from slicemill.bench.harness.clock import Log, Timing, ratio, time_on_both_clocks
from slicemill.bench.harness.networks import MARKED, default_network, export_network, mark_labels
from slicemill.bench.schema.base import ClockRatios
from slicemill.bench.schema.networks import ManyScans
from slicemill.bench.stages.infer_session import open_on_all_cores, segment_all
from slicemill.common.documents import to_document
from slicemill.common.files import Location, write_json
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.phantom import make_phantom, write_nifti
from slicemill.ct.phantom_canvas import PhantomSpec
from slicemill.ct.pictures import save_png
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job, load_scan
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.report import draw_overlay, make_report
from slicemill.infer.runtime.capacity import batch_capacity
from slicemill.infer.slices.assembly import plan_scan
from slicemill.infer.slices.batches import Batcher, NetworkScan

SMALL, SMALL_SIDE, SMALL_SLICES = 64, 128, 12
"""Small scans, pixels along a side, and slices of each."""
FIXED_BATCH = 8
COMMANDS = 4
"""Scans with a command each; the mean is used for all scans."""
FOLDER, SESSION = "folder", "session, scan by scan"
ONE_COMMAND, COMMAND_EACH = "command, folder", "command, scan by scan"


def measure_many(folder: Path, rounds: int, log: Log) -> ManyScans:
    """Measure the small scans as one folder, one by one in a session, by one command, and by a command each."""
    path = export_network(folder / "small.onnx", default_network(), MARKED, SMALL_SIDE)
    scans = write_small_scans(folder / "small")
    model, session = open_model(path, "cpu"), open_on_all_cores(path)
    jobs, _ = gather([scans])

    def segment_one_by_one() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for job in jobs:
                segment_alone(session, job, Path(out))

    def run_commands(*inputs: Location) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for scan in inputs:
                command = slicemill_command("infer", path, scan, "--out", out, "--provider", "cpu")
                subprocess.run(command, check=True, capture_output=True)  # noqa: S603 (a slicemill command)

    contenders = {
        FOLDER: lambda: segment_all(model, jobs, folder),
        SESSION: segment_one_by_one,
        ONE_COMMAND: lambda: run_commands(scans),
        COMMAND_EACH: lambda: run_commands(*(job.path for job in jobs[:COMMANDS])),
    }
    times = time_on_both_clocks(contenders, rounds, log)
    few = times.wall[COMMAND_EACH].seconds
    each = Timing(name=COMMAND_EACH, seconds=tuple(seconds * SMALL / COMMANDS for seconds in few))
    return ManyScans(
        scans=SMALL,
        results={name: timing.rate(SMALL) for name, timing in (times.wall | {COMMAND_EACH: each}).items()},
        over_session=times.speedup(FOLDER, SESSION),
        over_command=ClockRatios(wall=round(ratio(each, times.wall[ONE_COMMAND]), 2)),
    )


def write_small_scans(folder: Path) -> Path:
    """Write one small marked phantom as many scans, each shifted along x, and return the folder."""
    folder.mkdir()
    phantom = make_phantom(PhantomSpec(seed=2, shape=(SMALL_SLICES, SMALL_SIDE, SMALL_SIDE)))
    image = mark_labels(phantom.image, phantom.label)
    for number in range(SMALL):
        write_nifti(folder / f"scan-{number:02}.nii.gz", np.roll(image, number, axis=2), phantom.spacing_mm)
    return folder


def segment_alone(model: Model, job: Job, out: Path) -> None:
    """Segment one scan as a loop over scans does: read, label in padded batches, post-process, report, write."""
    loaded, info = load_scan(job), model.info
    nz, ny, nx = loaded.volume.shape
    plan = plan_scan(info, (nz, ny, nx), loaded.grid.spacing_mm)
    scan = NetworkScan(plan, loaded.volume)
    capacity = batch_capacity(info, model.provider, FIXED_BATCH)
    filler = Batcher(capacity)
    filler.add(scan)
    image = np.zeros((capacity.labels + info.context - 1, *info.size), dtype=np.int16)
    while filler.waiting:
        batch = filler.next()
        batch.fill(image)
        window = np.zeros((capacity.labels, info.context), dtype=np.int32)
        window[: len(batch.units)] = batch.neighbors
        batch.put(model.run(image, window, plan.outputs))
    segmented = scan.assembly.result()
    postprocess(segmented.label, info.labels, info.rules, loaded.grid, segmented.tumor_probability, loaded.volume)
    report = make_report(model, loaded, segmented, job.name)
    write_json(out / f"{job.stem}.json", to_document(report))
    save_png(
        out / f"{job.stem}.png", draw_overlay(loaded.volume, segmented.label, info.labels, report.lesions, job.name)
    )
    write_volume(out / job.name, loaded.header, np.uint8, loaded.grid.to_file(segmented.label))
