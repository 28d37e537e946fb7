"""Inference on a GPU: the network alone, against the GPU's peak and torch; copies, complete runs, labels and a profile.

Bottleneck: convolutions, or memory bandwidth between them; the row ``profile`` shows which. Networks have random
weights, and labels follow marked HU (`slicemill.bench.harness.networks`). All rows of one call share its peak, and the
contenders of a row share its rounds.

    python -m slicemill.bench.stages.infer_gpu --json bench/results/gpu/infer.json         # bench/gpu/one.sh and two.sh
    python -m slicemill.bench.stages.infer_gpu --device cpu --size 64 --scans 2 --slices 4 # the same without a GPU

The record is written before each run of a contender, so a time limit loses one run. Rows are in the order of their
worth; torch's compiler, which takes minutes, comes last.

| row | contenders |
|---|---|
| peak | matrix products in float16 |
| labels | those of the GPU, compared with the CPU's in float32 |
| engines | the CUDA provider on data on the GPU, and with copies; torch eager, channels last |
| files | complete runs from .nii.gz, .nii and a store, and the network with copies |
| profile | time by operator and by kernel |
| settings | the CUDA provider with one setting changed at a time |
| compiled | torch compiled, and the CUDA provider on data on the GPU |
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from msgspec import field

from slicemill.bench.harness.headline import Record
from slicemill.bench.schema.base import BenchmarkRecord, now, origin
from slicemill.bench.stages.infer_gpu_contenders import Keep, Workload
from slicemill.bench.stages.infer_gpu_files import measure_files
from slicemill.bench.stages.infer_gpu_rows import (
    compare_labels,
    measure_compiled,
    measure_engines,
    measure_peak,
    measure_profile,
    measure_settings,
)
from slicemill.common.files import to_json, write_json
from slicemill.common.terminal import print_line
from slicemill.train.config import Config

ROWS: dict[str, Callable[[Path, Workload, Record, Keep], Record]] = {
    "peak": measure_peak,
    "labels": compare_labels,
    "engines": measure_engines,
    "files": measure_files,
    "profile": measure_profile,
    "settings": measure_settings,
    "compiled": measure_compiled,
}
"""Each takes the working folder, the workload, the results of the rows before it, and a function that keeps a part of
its own result."""


class GpuRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="device"):
    """Record of the benchmark; it grows run by run."""

    unit: str
    work: Workload
    results: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Row -> error."""


def main() -> None:
    """Measure, write the record as it grows, print it as one JSON line, then a table; exit 1 if a row failed."""
    parser = argparse.ArgumentParser(description="Inference on a GPU.")
    parser.add_argument("--json", type=Path, help="File to write the record to.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default=Workload.device)
    parser.add_argument("--widths", type=int, nargs="+", default=Workload.widths)
    parser.add_argument("--only", choices=list(ROWS), nargs="+", default=list(ROWS))
    for name in ("size", "batch", "lanes", "batches", "scans", "slices", "rounds"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Workload, name))
    options = vars(parser.parse_args())
    path, only = options.pop("json"), options.pop("only")
    work = Workload(**{**options, "widths": tuple(options["widths"])})
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), work, only, lambda record: write_json(path, record) if path else None)
    print_line(to_json(record))
    print_line("\n".join(rate_table(record["results"])))
    if record["failed"]:
        raise SystemExit(1)


def measure(folder: Path, work: Workload, only: list[str], keep: Callable[[Record], object]) -> Record:
    """Return the record of the rows `only`. `keep` is called with it as it grows, so that it survives a time limit."""
    record = GpuRecord(**origin(), unit=f"slices of {work.size}x{work.size}, context {Config().context}", work=work)
    torch.backends.cudnn.benchmark = True
    for name, row in ROWS.items():
        if name not in only:
            continue
        print_line(f"{now()} measuring: {name}")
        try:
            finished = {**record.results}
            record.results[name] = row(folder, work, finished, partial(_keep_part, record, name, keep))
        except Exception as error:  # noqa: BLE001 (the record and the exit status show it)
            record.failed[name] = f"{type(error).__name__}: {error}"
            print_line(f"  failed: {record.failed[name]}")
        gc.collect()  # sessions and their memory on the GPU
        keep(record.as_json())
    return record.as_json()


def _keep_part(record: GpuRecord, name: str, keep: Callable[[Record], object], part: Record) -> None:
    record.results[name] = part
    keep(record.as_json())


def rate_table(results: Record, path: tuple[str, ...] = ()) -> list[str]:
    """Return a line per contender, with its row: units per second and the median seconds of a round."""
    lines = []
    for name, value in results.items():
        if isinstance(value, dict) and "per_second" in value:
            place = " ".join(part for part in path if part != "results")
            lines.append(f"{place:24} {name:32} {value['per_second']:>12} /s {value['seconds_median']:>10} s")
        elif isinstance(value, dict):
            lines += rate_table(value, (*path, name))
    return lines


if __name__ == "__main__":
    main()
