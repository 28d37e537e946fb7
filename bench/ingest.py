"""One case from NIfTI into the store: beside the peers, beside its own kernels, and with one worker or two.

What bounds it: gzip decoding and compression for .nii.gz, compression and hashing for .nii. All CPU times are those of
one core; the page cache is warm; every contender reads the same files.
"""

import contextlib
import datetime as dt
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

import store.scan
from bench.clock import interleaved, ratio
from bench.peers import PEERS, gzip6_nifti
from ingest.convert import convert_case
from ingest.discover import CaseFiles
from ingest.params import Params
from store.counts import Counts
from store.labels import LITS_LABELS
from store.layout import IMAGE, LABEL, SHARD, ArrayName, codec_of
from store.machine import card
from store.nifti import Gunzip
from store.phantom import PhantomSpec, make_phantom, write_nifti
from store.progress import progress
from store.scan import ScanReader, slab_depth
from store.writer import ShardWriter, prepare_store

LITS = Params(labels=LITS_LABELS)
SUFFIXES = (".nii.gz", ".nii")
SIZE = 512
"""Pixels along a slice's side: that of nearly every CT."""
SLABS = {"0.5 MiB": 1 << 19, "2 MiB": 1 << 21, "8 MiB": 1 << 23, "32 MiB": 1 << 25}
Record = dict[str, Any]
Volume = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Files:
    """A case on disk."""

    image: Path
    mask: Path

    def case(self) -> CaseFiles:
        """Return it as ingest takes it."""
        return CaseFiles(
            case_id="volume-1", patient_id="volume-1", image=self.image, mask=self.mask, root=self.image.parent
        )


def run(folder: Path, *, slices: int, rounds: int, memory: bool) -> Record:
    """Measure everything on one phantom of 512x512 and return the record; with `memory` also the peaks of long scans."""
    phantom = make_phantom(PhantomSpec(seed=1, shape=(slices, SIZE, SIZE)))
    files = {
        suffix: write_case(folder, suffix, phantom.image, phantom.label, phantom.spacing_mm) for suffix in SUFFIXES
    }
    record: Record = {
        "benchmark": "ingest",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "slice": [SIZE, SIZE],
        "slices": slices,
        "rounds": rounds,
        "page_cache": "warm",
        "clock": "CPU time of one core, but for two workers (wall)",
        "formats": {},
    }
    for suffix, case in files.items():
        with one_core():
            record["formats"][suffix] = {
                **beside_peers(folder, case, rounds),
                **beside_kernels(folder, case, (phantom.image, phantom.label), rounds),
                "slabs": by_slab(folder, case, rounds),
            }
        record["formats"][suffix]["two_workers"] = two_workers(folder, case, rounds)
    record["threads"] = one_case_with_threads(folder, files[".nii"], rounds)
    if memory:
        from bench.memory import peaks

        record["memory"] = peaks(folder, phantom.image, phantom.label)
    record["machine"] = card()
    return record


def write_case(
    folder: Path, suffix: str, image: Volume, label: Volume, spacing_mm: tuple[float, float, float]
) -> Files:
    """Write a case; .nii.gz at level 6, as archives do."""
    place = folder / suffix.strip(".")
    place.mkdir()
    files = Files(image=place / f"volume-1{suffix}", mask=place / f"segmentation-1{suffix}")
    for path, volume in ((files.image, image), (files.mask, label)):
        if suffix == ".nii.gz":
            gzip6_nifti(volume, path)
        else:
            write_nifti(path, volume, spacing_mm)
    return files


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on the last of its cores while the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards."""
    place = folder / f"fresh-{time.monotonic_ns()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def ours(folder: Path, case: Files, *, threads: int = 1) -> None:
    """Convert a case into a fresh store: all of ingest but its claim, ledger, tables and Dask, which a case shares with many."""
    with fresh(folder) as place:
        prepare_store(place)
        convert_case(case.case(), LITS, place, threads=threads)


def theirs(folder: Path, case: Files, convert: Callable[[Path, Path, Path], None]) -> None:
    """Convert a case the peer's way into a fresh folder."""
    with fresh(folder) as place:
        convert(case.image, case.mask, place)


def beside_peers(folder: Path, case: Files, rounds: int) -> Record:
    """Return how many times the CPU time of ours each peer takes."""
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: ours(folder, case)}
    peers = [peer for peer in PEERS if find_spec(peer.needs)]
    for peer in peers:
        contenders[peer.name] = lambda convert=peer.convert: theirs(folder, case, convert)  # type: ignore[misc]
    with progress(f"peers {case.image.suffix}", (rounds + 1) * len(contenders), "runs") as advance:
        times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name), timer=time.process_time)
    depth = len(sections(case))
    return {
        "slices_per_second": round(depth / times["ours"].median, 1),
        "milliseconds_a_slice": {name: round(1000 * timing.median / depth, 3) for name, timing in times.items()},
        "peers": {
            **{
                p.name: {"times_ours": round(ratio(times[p.name], times["ours"]), 2), "what": p.sentence} for p in peers
            },
            **{p.name: {"times_ours": None, "what": f"{p.needs} is not installed"} for p in PEERS if p not in peers},
        },
    }


def sections(case: Files) -> range:
    """Return the slices of a case."""
    with ScanReader(case.image, "image") as reader:
        return range(reader.grid.stored_shape[0])


def beside_kernels(folder: Path, case: Files, voxels: tuple[Volume, Volume], rounds: int) -> Record:
    """Return ours over the sum of its kernels, each timed alone in the same rounds, and their shares."""
    image, label = voxels
    pixels = image.shape[1] * image.shape[2]
    names: tuple[ArrayName, ArrayName] = (IMAGE, LABEL)
    encoders = {name: codec_of("compact", name, pixels).encode for name in names}
    encoded = {
        name: [encoders[name](section) for section in volume] for name, volume in zip(names, voxels, strict=True)
    }
    raw = [path.read_bytes() for path in (case.image, case.mask)]

    def decode() -> None:
        for path, volume in zip((case.image, case.mask), voxels, strict=True):
            bare_decode(path, volume[0].nbytes * slab_depth(image.shape))

    def encode() -> None:
        for name, volume in zip(names, voxels, strict=True):
            for section in volume:
                encoders[name](section)

    kernels: dict[str, Callable[[], object]] = {
        "decode": decode,
        "encode": encode,
        "statistics": lambda: count_all(image, label),
        "hash": lambda: [hashlib.sha256(data).digest() for data in raw],
        "write": lambda: write_shards(folder, encoded),
    }
    with progress(f"kernels {case.image.suffix}", (rounds + 1) * (len(kernels) + 1), "runs") as advance:
        contenders = {"ours": lambda: ours(folder, case), **kernels}
        times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name), timer=time.process_time)
    together = [sum(turn) for turn in zip(*(times[name].seconds for name in kernels), strict=True)]
    return {
        "cpu_over_kernels": round(median(a / b for a, b in zip(times["ours"].seconds, together, strict=True)), 3),
        "shares": {
            name: round(median(a / b for a, b in zip(times[name].seconds, times["ours"].seconds, strict=True)), 3)
            for name in kernels
        },
    }


def write_shards(folder: Path, encoded: dict[ArrayName, list[bytes]]) -> None:
    """Write encoded slices with their checksums as shards."""
    with fresh(folder) as place:
        for name, slices in encoded.items():
            shard = ShardWriter(place / name / SHARD, len(slices))
            for z, data in enumerate(slices):
                shard.append(z, data)
            shard.finish()


def count_all(image: Volume, label: Volume) -> None:
    """Take every statistic that a case has."""
    counts = Counts(len(image), LITS_LABELS)
    depth = slab_depth((len(image), image.shape[1], image.shape[2]))
    for z in range(0, len(image), depth):
        counts.add_image(z, image[z : z + depth])
        counts.add_mask(z, label[z : z + depth], "mask")
    counts.lesions(np.eye(4))


def bare_decode(path: Path, buffer_bytes: int) -> None:
    """Read a file's bytes, decompressed, into one buffer again and again."""
    buffer = memoryview(bytearray(buffer_bytes))
    with path.open("rb", buffering=0) as file:
        stream = Gunzip(fileobj=file, mode="rb") if path.name.endswith(".gz") else file
        while stream.readinto(buffer):
            pass


def by_slab(folder: Path, case: Files, rounds: int) -> Record:
    """Return milliseconds a slice for several sizes of what is held at a time."""
    kept = store.scan.SLAB_BYTES

    def with_slab(size: int) -> None:
        store.scan.SLAB_BYTES = size
        try:
            ours(folder, case)
        finally:
            store.scan.SLAB_BYTES = kept

    contenders = {name: (lambda size=size: with_slab(size)) for name, size in SLABS.items()}
    times = interleaved(contenders, rounds=rounds, timer=time.process_time)
    depth = len(sections(case))
    return {name: round(1000 * timing.median / depth, 3) for name, timing in times.items()}


def two_workers(folder: Path, case: Files, rounds: int) -> float | None:
    """Return the slices a second of two worker processes over one; None where there is one core."""
    if len(os.sched_getaffinity(0)) < 2:
        return None
    cases = 4
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as two,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one,
    ):
        for pool in (one, two):  # start the processes before the clock
            list(pool.map(ours, [folder] * 4, [case] * 4))
        contenders = {
            "one": lambda: list(one.map(ours, [folder] * cases, [case] * cases)),
            "two": lambda: list(two.map(ours, [folder] * 2 * cases, [case] * 2 * cases)),
        }
        times = interleaved(contenders, rounds=rounds, warm_up=0)
    return round(2 * ratio(times["one"], times["two"]), 2)


def one_case_with_threads(folder: Path, case: Files, rounds: int) -> Record:
    """Return how much sooner one case is done with a thread a core."""
    cores = len(os.sched_getaffinity(0))
    contenders = {"1": lambda: ours(folder, case), "all": lambda: ours(folder, case, threads=cores)}
    times = interleaved(contenders, rounds=rounds)
    return {"cores": cores, "times_sooner": round(ratio(times["1"], times["all"]), 2)}
