"""An ingest of LiTS's size: 131 cases of 74 to 987 slices, 58,638 in total, 46 GB of voxels, with the command `ingest`.

Bottleneck: CPU, two thirds of it decoding and compression. One phantom, repeated along z to seven lengths, is the
content of all cases (hard links). So the scans take little disk space and come from the page cache; the store is
written in full. Command: `slicemill bench ingest --scale lits`.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from slicemill.bench.command import slicemill_command
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import SIZE, phantom_subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import LitsRecord
from slicemill.bench.stages.ingest_memory import find_peak_mib, write_repeated
from slicemill.common.files import folder_bytes

PLAN = {74: 6, 123: 20, 240: 22, 294: 7, 432: 30, 685: 33, 987: 13}
"""Length in slices -> number of cases: LiTS's shortest and longest scan, and its numbers of scans and slices."""
DEPTH = 148
"""Slices of the phantom that is repeated."""


def run(folder: Path, *, suffix: str, workers: int, limit: int | None = None) -> Record:
    """Make the scans, ingest them with the command, which shows its progress, and return the record."""
    source, target = folder / "scans", folder / "store"
    lengths = [length for length, count in PLAN.items() for _ in range(count)][:limit]
    link_cases(source, lengths, suffix)
    words = slicemill_command("ingest", source, target, "--workers", workers)
    start = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the ingest failed:\n{done.stdout}")
    slices = sum(lengths)
    raw_gb = slices * SIZE * SIZE * 3 / 1e9
    record = LitsRecord(
        **origin(),
        page_cache="warm: one phantom, repeated to seven lengths, behind hard links; "
        "the store is written through the page cache",
        format=suffix,
        workers=workers,
        cases=len(lengths),
        slices=slices,
        raw_gb=round(raw_gb, 2),
        source_gb=round(sum(path.stat().st_size for path in source.iterdir()) / 1e9, 2),
        store_gb=round(folder_bytes(target) / 1e9, 2),
        seconds=round(seconds, 1),
        slices_per_second=round(slices / seconds, 1),
        raw_gb_per_second=round(raw_gb / seconds, 3),
        peak_worker_mib=find_peak_mib(done.stdout),
    )
    shutil.rmtree(folder)
    return record.as_json()


def link_cases(folder: Path, lengths: list[int], suffix: str) -> None:
    """Write one case of each length next to `folder`, and link all cases into it."""
    subject = phantom_subject(DEPTH, size=SIZE)
    folder.mkdir(parents=True)
    files = {
        length: write_repeated(folder.parent / f"length-{length}", suffix, (subject.image, subject.label), length)
        for length in dict.fromkeys(lengths)
    }
    for number, length in enumerate(lengths):
        for path in (files[length].image, files[length].mask):
            os.link(path, folder / path.name.replace("-1.", f"-{number}."))
