"""How cost grows: with the slices of a scan, with the number of scans, with workers, and with tasks on a Dask scheduler.

Time must grow in proportion to slices and scans, and memory not at all: lines are fitted by least squares and told with their
coefficient of determination. Every length runs in a process of its own, on a phantom repeated upwards.
"""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import Subject
from slicemill.bench.stages.ingest_memory import write_repeated
from slicemill.common.files import atomic_write
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ct.phantom import write_collection

SUFFIX = ".nii.gz"
LENGTHS = {False: (1, 10, 74, 240, 432, 685, 987), True: (1, 50, 200)}
"""Slices of a scan, in full and quick: one, and LiTS's shortest to longest."""
CASES = {False: (1, 16, 64, 131), True: (1, 8, 24)}
"""Scans of a collection of small phantoms."""
TASKS = {False: 100_000, True: 5_000}
ALONE = """
import json, sys, time
from pathlib import Path
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ct.labels import LITS_LABELS
from slicemill.common.terminal import peak_mib
from slicemill.store.writer import prepare_store
image, mask, store = map(Path, sys.argv[1:])
prepare_store(store)
case = CaseFiles(case_id="volume-1", patient_id="1", image=image, mask=mask, root=image.parent)
start = time.process_time()
convert_case(case, Params(labels=LITS_LABELS), store)
print(json.dumps({"cpu_seconds": time.process_time() - start, "peak_mib": peak_mib()}))
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """y = start + slope * x."""

    start: float
    slope: float
    r2: float
    """Coefficient of determination; 1 is a line."""

    def as_json(self, digits: int = 6) -> dict[str, float]:
        """Return the fields for a record."""
        return {
            "start": round(self.start, digits),
            "slope": round(self.slope, digits + 3),
            "r2": round(self.r2, 5),
        }


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Return the line of least squares.

    >>> fit([0, 1, 2], [1, 3, 5])
    Line(start=1.0, slope=2.0, r2=1.0)
    """
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    start = float(y.mean() - slope * x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    left = float(((y - start - slope * x) ** 2).sum())
    return Line(start=start, slope=slope, r2=1.0 if total == 0 else 1 - left / total)


def run(folder: Path, subject: Subject, *, quick: bool) -> Record:
    """Measure and return the record."""
    lengths, counts, tasks = LENGTHS[quick], CASES[quick], TASKS[quick]
    with progress("scale", len(lengths) + len(counts) + 3, "runs") as advance:
        by_slices = {}
        for length in lengths:
            advance(1, f"{length} slices")
            by_slices[length] = one_length(folder / "length", subject, length)
        by_cases = {}
        for count in counts:
            advance(1, f"{count} scans")
            by_cases[count] = one_collection(folder / "cases", count, workers=1)
        workers = {1: by_cases[counts[-1]]}
        if len(os.sched_getaffinity(0)) > 1:
            advance(1, "2 workers")
            workers[2] = one_collection(folder / "cases", counts[-1], workers=2)
        advance(1, f"{tasks:,} tasks")
        scheduler = no_ops(tasks)
    return {
        "benchmark": "scale",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "slices": {
            "measured": {str(length): row for length, row in by_slices.items()},
            "cpu_seconds": fit(list(by_slices), [row["cpu_seconds"] for row in by_slices.values()]).as_json(),
            "peak_mib": fit(list(by_slices), [row["peak_mib"] for row in by_slices.values()]).as_json(),
        },
        "cases": {
            "measured": {str(count): round(seconds, 3) for count, seconds in by_cases.items()},
            "seconds": fit(list(by_cases), list(by_cases.values())).as_json(),
        },
        "workers": {str(count): round(seconds, 3) for count, seconds in workers.items()},
        "scheduler": scheduler,
        "machine": machine_info(),
    }


def one_length(folder: Path, subject: Subject, length: int) -> dict[str, float]:
    """Return the CPU seconds and the peak memory of the ingest of a scan of so many slices, in a process of its own."""
    files = write_repeated(folder, SUFFIX, (subject.image, subject.label), length)
    done = subprocess.run(  # noqa: S603 (this interpreter, code from above)
        [sys.executable, "-c", ALONE, str(files.image), str(files.mask), str(folder / "store")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shutil.rmtree(folder)
    found: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 4) for name, value in found.items()}


def one_collection(folder: Path, count: int, *, workers: int) -> float:
    """Return the seconds of the command on a collection of so many small phantoms."""
    list(write_collection(folder / "scans", cases=count, size=64, seed=5))
    words = ["ingest", str(folder / "scans"), str(folder / "store"), "--workers", str(workers), "--threads", "1"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "slicemill", *words], capture_output=True, check=True)  # noqa: S603
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def no_ops(count: int) -> dict[str, Any]:
    """Return what a task costs a Dask scheduler and two workers, each a process, when it does nothing."""
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
    return {"tasks": count, "workers": 2, "milliseconds_a_task": round(1000 * seconds / count, 4)}


def draw(path: Path, record: Mapping[str, Any]) -> None:
    """Draw time and memory against slices, and time against scans, with the fitted lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    slices, cases = record["slices"], record["cases"]
    shown = (
        (slices["measured"], "cpu_seconds", slices["cpu_seconds"], "slices of a scan", "CPU seconds of its ingest"),
        (slices["measured"], "peak_mib", slices["peak_mib"], "slices of a scan", "peak memory, MiB"),
        (cases["measured"], None, cases["seconds"], "scans", "seconds of the command, 1 worker"),
    )
    for panel, (measured, key, line, below, beside) in zip(panels, shown, strict=True):
        xs = [int(x) for x in measured]
        ys = [row if key is None else row[key] for row in measured.values()]
        panel.plot(xs, ys, "o", color="#2f6ea8")
        panel.plot(xs, [line["start"] + line["slope"] * x for x in xs], color="#c0392b", linewidth=1.2)
        panel.set(
            xlabel=below,
            ylabel=beside,
            ylim=(0, 1.1 * max(ys)),
            title=f"slope {line['slope']:.4g}, R² {line['r2']:.4f}",
        )
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)
