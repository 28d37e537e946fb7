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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Timing, interleaved, ratio
from slicemill.bench.harness.conversions import PEERS
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.bench.harness.subject import CASE_ID, SUFFIXES, Files, Subject
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ct.formats.nifti.stream import Gunzip
from slicemill.ct.labels import Labels
from slicemill.ct.scan import slab_depth
from slicemill.ingest.convert import convert_case
from slicemill.ingest.params import Params
from slicemill.store.codecs import codec_of
from slicemill.store.layout import IMAGE, LABEL, SHARD, ArrayName
from slicemill.store.reader import open_store
from slicemill.store.statistics import Counts
from slicemill.store.writer import ShardWriter, prepare_store

SUM = "sum of its kernels"
Volume = npt.NDArray[Any]


def run(folder: Path, subject: Subject, *, rounds: int, memory: bool = False) -> Record:
    """Measure everything on one scan and return the record; with `memory` also the peaks of long scans."""
    files = {suffix: subject.write(folder / suffix.strip("."), suffix) for suffix in SUFFIXES}
    record: Record = {
        "benchmark": "ingest",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "slice": list(subject.image.shape[1:]),
        "slices": len(subject.image),
        "rounds": rounds,
        "page_cache": "warm",
        "clock": "CPU time of one core, but for two workers (wall)",
        "formats": {},
    }
    for suffix, case in files.items():
        with one_core():
            times = beside_peers(folder, case, subject.params(), rounds)
            kernels = beside_kernels(folder, case, subject, rounds)
            record["formats"][suffix] = {
                **peers_record(times, len(subject.image)),
                **kernels_record(kernels),
            }
        if suffix == SUFFIXES[0]:
            record["results"] = {name: timing.as_json(len(subject.image)) for name, timing in times.items()}
            record["headline"] = headline_of(times, kernels, len(subject.image), same_voxels(folder, case, subject))
        record["formats"][suffix]["two_workers"] = two_workers(folder, case, subject.params(), rounds)
    record["threads"] = one_case_with_threads(folder, files[".nii"], subject.params(), rounds)
    if memory:
        from slicemill.bench.stages.ingest_memory import peaks

        record["memory"] = peaks(folder, subject.image, subject.label)
    record["machine"] = machine_info()
    return record


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


def ours(folder: Path, case: Files, params: Params, *, threads: int = 1) -> None:
    """Convert a case into a fresh store: all of ingest but its claim, ledger, tables and Dask, which a case shares with many."""
    with fresh(folder) as place:
        prepare_store(place)
        convert_case(case.case(), params, place, threads=threads)


def theirs(folder: Path, case: Files, convert: Callable[[Path, Path, Path], None]) -> None:
    """Convert a case the peer's way into a fresh folder."""
    with fresh(folder) as place:
        convert(case.image, case.mask, place)


def same_voxels(folder: Path, case: Files, subject: Subject) -> str:
    """Return the sentence that the store holds the file's voxels, after a look (nibabel reads the file)."""
    with fresh(folder) as place:
        prepare_store(place)
        convert_case(case.case(), subject.params(), place)
        stored = open_store(place)[CASE_ID]
        there = stored.label is not None and alike(stored.label[:], subject.label)
        check("the store holds the voxels of the scan", holds=there and alike(stored.image[:], subject.image))
    return "the store's voxels are the scan's"


def alike(one: Volume, other: Volume) -> bool:
    """Return whether two volumes hold the same numbers, in whatever order of the axes a file had."""
    return np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


def beside_peers(folder: Path, case: Files, params: Params, rounds: int) -> dict[str, Timing]:
    """Return the CPU time of ours and of each peer that is installed."""
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: ours(folder, case, params)}
    for peer in PEERS:
        if find_spec(peer.needs):
            contenders[peer.name] = lambda convert=peer.convert: theirs(folder, case, convert)  # type: ignore[misc]
    with progress(f"peers {case.image.suffix}", (rounds + 1) * len(contenders), "runs") as advance:
        return interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name), timer=time.process_time)


def peers_record(times: Mapping[str, Timing], depth: int) -> Record:
    """Return how many times the CPU time of ours each peer takes."""
    return {
        "slices_per_second": round(depth / times["ours"].median, 1),
        "milliseconds_a_slice": {name: round(1000 * timing.median / depth, 3) for name, timing in times.items()},
        "peers": {
            p.name: (
                {"times_ours": round(ratio(times[p.name], times["ours"]), 2), "what": p.sentence}
                if p.name in times
                else {"times_ours": None, "what": f"{p.needs} is not installed"}
            )
            for p in PEERS
        },
    }


def headline_of(times: Mapping[str, Timing], kernels: Mapping[str, Timing], depth: int, verified: str) -> Record:
    """Return what it comes down to; the limit is that of the rounds in which the kernels ran."""
    together = Timing(name=SUM, seconds=sums(kernels))
    told = {name: Timed(timing=timing, amount=depth) for name, timing in {**kernels, **times, SUM: together}.items()}
    record = headline(
        told,
        ours="ours",
        limit=SUM,
        bound="decoding, codecs, hash, statistics and writing, each alone",
        peers={peer.name: peer.sentence for peer in PEERS if peer.name in times},
        verified=verified,
    )
    record["limit"]["fraction"] = round(ratio(together, kernels["ours"]), 3)
    return record


def beside_kernels(folder: Path, case: Files, subject: Subject, rounds: int) -> dict[str, Timing]:
    """Return the times of ours and of its kernels, each alone, in the same rounds."""
    voxels: tuple[Volume, Volume] = (subject.image, subject.label)
    image = subject.image
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

    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(folder, case, subject.params()),
        "decode": decode,
        "encode": encode,
        "statistics": lambda: count_all(*voxels, subject.labels),
        "hash": lambda: [hashlib.sha256(data).digest() for data in raw],
        "write": lambda: write_shards(folder, encoded),
    }
    with progress(f"kernels {case.image.suffix}", (rounds + 1) * len(contenders), "runs") as advance:
        return interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name), timer=time.process_time)


def sums(kernels: Mapping[str, Timing]) -> tuple[float, ...]:
    """Return the time of all kernels together, round by round."""
    return tuple(map(sum, zip(*(timing.seconds for name, timing in kernels.items() if name != "ours"), strict=True)))


def kernels_record(times: Mapping[str, Timing]) -> Record:
    """Return ours over the sum of its kernels, and their shares of it."""
    own = times["ours"].seconds
    return {
        "cpu_over_kernels": round(median(a / b for a, b in zip(own, sums(times), strict=True)), 3),
        "shares": {
            name: round(median(a / b for a, b in zip(timing.seconds, own, strict=True)), 3)
            for name, timing in times.items()
            if name != "ours"
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


def count_all(image: Volume, label: Volume, labels: Labels) -> None:
    """Take every statistic that a case has."""
    counts = Counts(len(image), labels)
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


def two_workers(folder: Path, case: Files, params: Params, rounds: int) -> float | None:
    """Return the slices a second of two worker processes over one; None where there is one core."""
    if len(os.sched_getaffinity(0)) < 2:
        return None
    cases = 4
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as two,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one,
    ):
        for pool in (one, two):  # start the processes before the clock
            list(pool.map(ours, [folder] * cases, [case] * cases, [params] * cases))
        contenders = {
            "one": lambda: list(one.map(ours, [folder] * cases, [case] * cases, [params] * cases)),
            "two": lambda: list(two.map(ours, [folder] * 2 * cases, [case] * 2 * cases, [params] * 2 * cases)),
        }
        times = interleaved(contenders, rounds=rounds, warm_up=0)
    return round(2 * ratio(times["one"], times["two"]), 2)


def one_case_with_threads(folder: Path, case: Files, params: Params, rounds: int) -> Record:
    """Return how much sooner one case is done with a thread a core."""
    cores = len(os.sched_getaffinity(0))
    contenders = {
        "1": lambda: ours(folder, case, params),
        "all": lambda: ours(folder, case, params, threads=cores),
    }
    times = interleaved(contenders, rounds=rounds)
    return {"cores": cores, "times_sooner": round(ratio(times["1"], times["all"]), 2)}
