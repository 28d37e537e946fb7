"""An ingest of LiTS's size: 131 cases of 74 to 987 slices, 58,638 in all, about 46 GB of voxels, through the command itself.

One phantom, repeated upwards to seven lengths, stands behind many names (hard links), so that the scans cost little disk and
come from the page cache; the store is written whole. What bounds it: CPU, two thirds decoding and compression.
"""

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slicemill.bench.harness.subject import SIZE
from slicemill.bench.stages.ingest_memory import write_repeated
from slicemill.common.files import folder_bytes
from slicemill.common.machine import machine_info
from slicemill.ct.phantom import PhantomSpec, make_phantom

PLAN = {74: 6, 123: 20, 240: 22, 294: 7, 432: 30, 685: 33, 987: 13}
"""Slices of each length of the phantom and how many cases are made of it: LiTS's shortest and longest scan, its number of scans
and of slices."""

DEPTH = 148
"""Slices of the phantom that all are made of, repeated upwards."""


def run(folder: Path, *, suffix: str, workers: int, limit: int | None = None) -> dict[str, Any]:
    """Make the scans, ingest them with the command, and return the record; progress is shown on a terminal."""
    source, target = folder / "scans", folder / "store"
    phantom = make_phantom(PhantomSpec(seed=1, shape=(DEPTH, SIZE, SIZE)))
    source.mkdir(parents=True)
    number, slices = 0, 0
    for length, count in PLAN.items():
        files = write_repeated(folder / f"length-{length}", suffix, (phantom.image, phantom.label), length)
        for _ in range(count):
            if limit is not None and number >= limit:
                break
            for path in (files.image, files.mask):
                os.link(path, source / path.name.replace("-1.", f"-{number}."))
            number, slices = number + 1, slices + length
    words = [sys.executable, "-m", "slicemill", "ingest", str(source), str(target), "--workers", str(workers)]
    start = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the ingest failed:\n{done.stdout}")
    peak = re.search(r"peak memory ([\d,]+) MiB", done.stdout)
    raw = slices * SIZE * SIZE * 3
    stored, read = folder_bytes(target), sum(path.stat().st_size for path in source.iterdir())
    shutil.rmtree(folder)
    return {
        "benchmark": "ingest --scale lits",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "page_cache": "warm: one phantom, repeated to seven lengths, behind hard links; the store is written through the page cache",
        "format": suffix,
        "workers": workers,
        "cases": number,
        "slices": slices,
        "raw_gb": round(raw / 1e9, 2),
        "source_gb": round(read / 1e9, 2),
        "store_gb": round(stored / 1e9, 2),
        "seconds": round(seconds, 1),
        "slices_per_second": round(slices / seconds, 1),
        "raw_gb_per_second": round(raw / 1e9 / seconds, 3),
        "peak_worker_mib": int(peak[1].replace(",", "")) if peak else None,
        "machine": machine_info(),
    }
