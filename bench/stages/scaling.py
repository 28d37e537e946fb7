"""Growth of cost with the slices of a scan, the number of scans and files, workers, and tasks of a Dask scheduler.

Expected: time grows in proportion to slices and scans, and memory is constant. Lines are fitted by least
squares and come with their coefficient of determination. Every length runs in its own process, on a phantom repeated
along z. Command: `slicemill bench scale`.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from slicemill.bench.command import slicemill_command
from slicemill.bench.harness.cores import count_cores
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import ByCases, BySlices, Line, ScaleRecord, ScanCost, SchedulerCost
from slicemill.bench.stages.found_files import FILES, measure_found_files
from slicemill.bench.stages.growth import CASES as MANY
from slicemill.bench.stages.growth import measure_growth
from slicemill.bench.stages.ingest_memory import convert_alone, write_repeated
from slicemill.common.progress import progress
from slicemill.ct.phantom import write_collection

SUFFIX = ".nii.gz"
LENGTHS = {False: (1, 10, 74, 240, 432, 685, 987), True: (1, 50, 200)}
"""Slices of a scan, by `quick`: one, and LiTS's shortest to longest."""
CASES = {False: (1, 16, 64, 131), True: (1, 8, 24)}
"""Scans of a collection of small phantoms, by `quick`."""
TASKS = {False: 100_000, True: 5_000}
"""Tasks of the scheduler, by `quick`."""


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Return the line of least squares, rounded as records have it.

    >>> fit([0, 1, 2], [1, 3, 5])
    Line(start=1.0, slope=2.0, r2=1.0)
    """
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    start = float(y.mean() - slope * x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    residual = float(((y - start - slope * x) ** 2).sum())
    r2 = 1.0 if total == 0 else 1 - residual / total
    return Line(start=round(start, 6), slope=round(slope, 9), r2=round(r2, 5))


def run(folder: Path, subject: Subject, *, quick: bool) -> Record:
    """Measure and return the record."""
    lengths, counts, tasks = LENGTHS[quick], CASES[quick], TASKS[quick]
    with progress("scale", len(lengths) + len(counts) + len(FILES[quick]) + len(MANY[quick]) + 3, "runs") as advance:
        by_slices, by_cases = {}, {}
        for length in lengths:
            advance(1, f"{length} slices")
            by_slices[length] = measure_length(folder / "length", subject, length)
        for count in counts:
            advance(1, f"{count} scans")
            by_cases[count] = measure_collection(folder / "cases", count, workers=1)
        by_files = {}
        for number in FILES[quick]:
            advance(1, f"{number} files")
            by_files[number] = measure_found_files(folder / "files", number)
        grown = {}
        for number in MANY[quick]:
            advance(1, f"{number} tiny cases")
            grown[number] = measure_growth(folder / "many", number)
        workers = {1: by_cases[counts[-1]]}
        if count_cores() > 1:
            advance(1, "2 workers")
            workers[2] = measure_collection(folder / "cases", counts[-1], workers=2)
        advance(1, f"{tasks:,} tasks")
        scheduler = measure_scheduler(tasks)

    def seconds(measured: Mapping[int, float]) -> dict[str, float]:
        return {str(count): round(value, 3) for count, value in measured.items()}

    return ScaleRecord(
        **origin(),
        subject=str(subject),
        slices=fit_costs(by_slices),
        cases=ByCases(measured=seconds(by_cases), seconds=fit(list(by_cases), list(by_cases.values()))),
        workers=seconds(workers),
        scheduler=scheduler,
        files=ByCases(measured=seconds(by_files), seconds=fit(list(by_files), list(by_files.values()))),
        growth={
            name: fit_costs({number: costs[name] for number, costs in grown.items()}) for name in grown[MANY[quick][0]]
        },
    ).as_json()


def fit_costs(costs: Mapping[int, ScanCost]) -> BySlices:
    """Return costs by a number with their fitted lines."""
    return BySlices(
        measured={str(number): cost for number, cost in costs.items()},
        cpu_seconds=fit(list(costs), [cost.cpu_seconds for cost in costs.values()]),
        peak_mib=fit(list(costs), [cost.peak_mib for cost in costs.values()]),
    )


def measure_length(folder: Path, subject: Subject, length: int) -> ScanCost:
    """Return CPU seconds and peak memory of the ingest of a scan of `length` slices, in its own process."""
    cost = convert_alone(write_repeated(folder, SUFFIX, (subject.image, subject.label), length), folder / "store")
    shutil.rmtree(folder)
    return ScanCost(cpu_seconds=round(cost.cpu_seconds, 4), peak_mib=round(cost.peak_mib, 4))


def measure_collection(folder: Path, count: int, *, workers: int) -> float:
    """Return the seconds of the command on a collection of `count` small phantoms."""
    list(write_collection(folder / "scans", cases=count, size=64, seed=5))
    command = slicemill_command("ingest", folder / "scans", folder / "store", "--workers", workers, "--threads", 1)
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)  # noqa: S603
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def measure_scheduler(count: int) -> SchedulerCost:
    """Return the cost per task of a Dask scheduler with two worker processes, for tasks that do nothing."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(int, range(100), pure=False))
        start = time.perf_counter()
        futures = client.map(int, range(count), pure=False)
        client.gather(futures)
        seconds = time.perf_counter() - start
    return SchedulerCost(tasks=count, workers=2, milliseconds_a_task=round(1000 * seconds / count, 4))
