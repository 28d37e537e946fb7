"""Ingest of one NIfTI case, compared with peers and with its kernels, and with two workers.

Bottleneck: gzip decoding and compression for .nii.gz, compression and hashing for .nii. All CPU times are those of
one core. The page cache is warm, and every contender reads the same files. Command: `slicemill bench ingest`.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from slicemill.bench.harness.clock import Timing, Work, ratio, show_progress, time_rounds
from slicemill.bench.harness.conversions import PEERS
from slicemill.bench.harness.cores import count_cores, pin_to_one_core
from slicemill.bench.harness.headline import Record, check, headline, with_amount
from slicemill.bench.harness.subject import CASE_ID, SUFFIXES, Files, Scan, Subject, same_voxels
from slicemill.bench.schema.base import ClockRatios, Headline, origin
from slicemill.bench.schema.data import IngestFormat, IngestPeer, IngestRecord, ThreadGain
from slicemill.bench.stages.ingest_memory import measure_peaks
from slicemill.bench.stages.real_size import measure_real_size
from slicemill.ct.formats.nifti.stream import Gunzip
from slicemill.ct.labels import Labels
from slicemill.ct.scan import slab_depth
from slicemill.ingest.params import Params
from slicemill.store.codecs import make_codec
from slicemill.store.layout import IMAGE, LABEL, SHARD, ArrayName
from slicemill.store.reader import open_store
from slicemill.store.statistics import Counts
from slicemill.store.writer import ShardWriter

SLICEMILL = "ours"
KERNELS = "sum of its kernels"
CASES_A_WORKER = 4
Volume = npt.NDArray[Any]


def run(folder: Path, subject: Subject, *, rounds: int, memory: bool = False, dicom: Path | None = None) -> Record:
    """Measure everything on one scan and return the record.

    With `memory`, also the peak memory of long scans; with `dicom`, also the size of a real series' store.
    """
    depth = len(subject.image)
    files = {suffix: subject.write(folder / suffix.strip("."), suffix) for suffix in SUFFIXES}
    formats = {}
    for suffix, case in files.items():
        with pin_to_one_core():
            times = time_peers(folder, case, subject.params(), rounds)
            kernels = time_kernels(folder, case, subject, rounds)
        if suffix == SUFFIXES[0]:
            results = {name: timing.rate(depth) for name, timing in times.items()}
            comparison = make_headline(times, kernels, depth, verify_voxels(folder, case, subject))
        two = time_two_workers(folder, case, subject.params(), rounds)
        formats[suffix] = make_format_record(times, kernels, depth, two.wall if two else None)
    return IngestRecord(
        **origin(),
        subject=str(subject),
        slice=(subject.image.shape[1], subject.image.shape[2]),
        slices=depth,
        rounds=rounds,
        page_cache="warm",
        clock="CPU time of one core, but for two workers (wall)",
        formats=formats,
        results=results,
        headline=comparison,
        threads=time_threads(folder, files[".nii"], subject.params(), rounds),
        memory=measure_peaks(folder, subject.image, subject.label) if memory else None,
        real_size=None if dicom is None else measure_real_size(dicom),
    ).as_json()


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and delete it afterwards."""
    path = folder / f"fresh-{time.monotonic_ns()}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def convert_with_slicemill(folder: Path, case: Scan, params: Params, *, threads: int = 1) -> None:
    """Convert a case into a store that is deleted afterwards."""
    with fresh_folder(folder) as path:
        case.convert(path, params, threads=threads)


def convert_with_peer(folder: Path, case: Files, convert: Callable[[Path, Path, Path], None]) -> None:
    """Convert a case as a peer does, into an empty folder."""
    with fresh_folder(folder) as path:
        convert(case.image, case.mask, path)


def verify_voxels(folder: Path, case: Files, subject: Subject) -> str:
    """Check that a store holds the file's voxels, and return a sentence for the record."""
    with fresh_folder(folder) as path:
        case.convert(path, subject.params())
        stored = open_store(path)[CASE_ID]
        same_label = stored.label is not None and same_voxels(stored.label[:], subject.label)
        check("the store holds the scan's voxels", holds=same_label and same_voxels(stored.image[:], subject.image))
    return "the store's voxels are the scan's"


def time_peers(folder: Path, case: Files, params: Params, rounds: int) -> dict[str, Timing]:
    """Return the CPU time of slicemill and of each installed peer."""
    contenders: dict[str, Work] = {SLICEMILL: lambda: convert_with_slicemill(folder, case, params)}
    for peer in PEERS:
        if find_spec(peer.needs):
            contenders[peer.name] = partial(convert_with_peer, folder, case, peer.convert)
    with show_progress(f"peers {case.image.suffix}", len(contenders), rounds) as log:
        return time_rounds(contenders, rounds=rounds, log=log, clock=time.process_time)


def time_kernels(folder: Path, case: Files, subject: Subject, rounds: int) -> dict[str, Timing]:
    """Return the CPU time of slicemill's ingest and of each of its kernels alone, in the same rounds."""
    voxels: dict[ArrayName, Volume] = {IMAGE: subject.image, LABEL: subject.label}
    shape = subject.image.shape
    encoders = {name: make_codec("compact", name, shape[1] * shape[2]).encode for name in voxels}
    encoded = {name: [encoders[name](section) for section in volume] for name, volume in voxels.items()}
    raw = [path.read_bytes() for path in (case.image, case.mask)]

    def decode() -> None:
        for path, volume in zip((case.image, case.mask), voxels.values(), strict=True):
            decode_file(path, volume[0].nbytes * slab_depth(shape))

    def encode() -> None:
        for name, volume in voxels.items():
            for section in volume:
                encoders[name](section)

    contenders: dict[str, Work] = {
        SLICEMILL: lambda: convert_with_slicemill(folder, case, subject.params()),
        "decode": decode,
        "encode": encode,
        "statistics": lambda: count_all(subject.image, subject.label, subject.labels),
        "hash": lambda: [hashlib.sha256(data).digest() for data in raw],
        "write": lambda: write_shards(folder, encoded),
    }
    with show_progress(f"kernels {case.image.suffix}", len(contenders), rounds) as log:
        return time_rounds(contenders, rounds=rounds, log=log, clock=time.process_time)


def sum_kernels(kernels: Mapping[str, Timing]) -> Timing:
    """Return the time of all kernels together, round by round."""
    alone = [timing.seconds for name, timing in kernels.items() if name != SLICEMILL]
    return Timing(name=KERNELS, seconds=tuple(map(sum, zip(*alone, strict=True))))


def make_format_record(
    times: Mapping[str, Timing], kernels: Mapping[str, Timing], depth: int, two_workers: float | None
) -> IngestFormat:
    """Return the figures of one file format."""
    own = kernels[SLICEMILL]
    return IngestFormat(
        slices_per_second=round(depth / times[SLICEMILL].median, 1),
        milliseconds_a_slice={name: round(1000 * timing.median / depth, 3) for name, timing in times.items()},
        peers={
            peer.name: (
                IngestPeer(times_ours=round(ratio(times[peer.name], times[SLICEMILL]), 2), what=peer.sentence)
                if peer.name in times
                else IngestPeer(times_ours=None, what=f"{peer.needs} is not installed")
            )
            for peer in PEERS
        },
        cpu_over_kernels=round(ratio(own, sum_kernels(kernels)), 3),
        shares={name: round(ratio(timing, own), 3) for name, timing in kernels.items() if name != SLICEMILL},
        two_workers=two_workers,
    )


def make_headline(times: Mapping[str, Timing], kernels: Mapping[str, Timing], depth: int, verified: str) -> Headline:
    """Return the headline; the fraction of the limit is from the rounds in which the kernels ran."""
    together = sum_kernels(kernels)
    record = headline(
        with_amount({**kernels, **times, KERNELS: together}, depth),
        contender=SLICEMILL,
        limit=KERNELS,
        bound="decoding, codecs, hash, statistics and writing, each alone",
        peers={peer.name: peer.sentence for peer in PEERS if peer.name in times},
        verified=verified,
    )
    fraction = round(ratio(together, kernels[SLICEMILL]), 3)
    return replace(record, limit=replace(record.limit, fraction=fraction))


def write_shards(folder: Path, encoded: dict[ArrayName, list[bytes]]) -> None:
    """Write encoded slices with their checksums as shards."""
    with fresh_folder(folder) as path:
        for name, slices in encoded.items():
            shard = ShardWriter(path / name / SHARD, len(slices))
            for z, data in enumerate(slices):
                shard.append(z, data)
            shard.finish()


def count_all(image: Volume, label: Volume, labels: Labels) -> None:
    """Compute every statistic that a case has."""
    counts = Counts(len(image), labels)
    depth = slab_depth((len(image), image.shape[1], image.shape[2]))
    for z in range(0, len(image), depth):
        counts.add_image(z, image[z : z + depth])
        counts.add_mask(z, label[z : z + depth], "mask")
    counts.lesions(np.eye(4))


def decode_file(path: Path, buffer_bytes: int) -> None:
    """Read a file's bytes, decompressed, into one reused buffer."""
    buffer = memoryview(bytearray(buffer_bytes))
    with path.open("rb", buffering=0) as file:
        stream = Gunzip(fileobj=file, mode="rb") if path.name.endswith(".gz") else file
        while stream.readinto(buffer):
            pass


def time_two_workers(folder: Path, case: Scan, params: Params, rounds: int) -> ClockRatios | None:
    """Return the rate of two worker processes over that of one; None on a single core.

    By CPU time it is what two free cores would give: other programs on the machine do not count.
    """
    if count_cores() < 2:
        return None
    cpu: dict[str, list[float]] = {"one": [], "two": []}

    def convert_many(name: str, pool: ProcessPoolExecutor, count: int) -> None:
        seconds = pool.map(time_conversion, [folder] * count, [case] * count, [params] * count)
        cpu[name].append(sum(seconds) / count)

    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as two,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one,
    ):
        contenders = {
            "one": lambda: convert_many("one", one, CASES_A_WORKER),
            "two": lambda: convert_many("two", two, 2 * CASES_A_WORKER),
        }
        times = time_rounds(contenders, rounds=rounds)  # the warm-up starts the processes
    alone, beside = (Timing(name=name, seconds=tuple(seconds[1:])) for name, seconds in cpu.items())
    return ClockRatios(wall=round(2 * ratio(times["one"], times["two"]), 2), cpu=round(2 * ratio(alone, beside), 2))


def time_conversion(folder: Path, case: Scan, params: Params) -> float:
    """Convert a case, and return the CPU seconds of this process."""
    start = time.process_time()
    convert_with_slicemill(folder, case, params)
    return time.process_time() - start


def time_threads(folder: Path, case: Files, params: Params, rounds: int) -> ThreadGain:
    """Return the speedup of one case with one thread per core over one thread."""
    cores = count_cores()
    contenders = {
        "1": lambda: convert_with_slicemill(folder, case, params),
        "all": lambda: convert_with_slicemill(folder, case, params, threads=cores),
    }
    times = time_rounds(contenders, rounds=rounds)
    return ThreadGain(cores=cores, times_sooner=round(ratio(times["1"], times["all"]), 2))
