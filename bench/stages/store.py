"""Random slices (image and label) out of a store: ours beside zarr-python, zarrs and tensorstore, and beside the bare decode.

What bounds it: decompression; the limit is the codec alone, on bytes that lie in memory, into a buffer that is there.
"""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd

from slicemill.bench.harness.clock import interleaved, ratio
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.bench.harness.pagecache import drop, files_below
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.bench.stages.ingest import one_core
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.store.codecs import decode_blosc, without_checksum
from slicemill.store.layout import GROUP, IMAGE, LABEL, ProfileName
from slicemill.store.reader import Case

WINDOW = 7
PEERS = {
    "zarr-python, our store": "the same bytes, through Zarr's own reader",
    "zarrs, our store": "the same bytes, zarr-python with codecs in Rust",
    "tensorstore, our store": "the same bytes, in C++, one thread",
    "zarr-python, its defaults": "chunks and codecs as zarr-python chooses them; a slice needs many chunks of its neighbors",
}


def run(folder: Path, subject: Subject, *, rounds: int, cold: bool = False) -> Record:
    """Measure on one scan and return the record; `cold` has the files forgotten before every run, and takes the wall clock."""
    profiles: tuple[ProfileName, ...] = ("compact", "fast")
    compact, fast = (subject.store(folder / profile, profile)[CASE_ID] for profile in profiles)
    sizes = {
        profile: sum(path.stat().st_size for path in (folder / profile).rglob("0") if path.is_file())
        for profile in profiles
    }
    defaults = zarr_defaults(folder / "defaults", subject.image, subject.label)
    order = np.random.default_rng(0).permutation(len(subject.image)).tolist()
    few = order[: max(4, len(order) // 8)]
    compact_paths = [folder / "compact" / GROUP / CASE_ID / name for name in (IMAGE, LABEL)]
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: ours(compact, order), len(order)),
        "ours, fast profile": (lambda: ours(fast, order), len(order)),
        "bare decode": (bare_decode(compact, order, checked=True), len(order)),
        "bare decode, no checksum": (bare_decode(compact, order, checked=False), len(order)),
        "bare decode, fast profile": (bare_decode(fast, order, checked=True), len(order)),
        "zarr-python, our store": (zarr_reads(compact_paths, order), len(order)),
        "zarrs, our store": (zarrs_reads(compact_paths, order), len(order)),
        "tensorstore, our store": (tensorstore_reads(compact_paths, order), len(order)),
        "zarr-python, its defaults": (zarr_reads(defaults, few), len(few)),
        "ours, windows of 7": (lambda: windows(compact, order), len(order)),
    }
    files = files_below(folder)
    with one_core(), progress("readers", (rounds + 1) * len(contenders), "runs") as advance:

        def tell(name: str) -> None:
            if cold:
                drop(files)
            advance(1, name)

        work = {name: timed for name, (timed, _) in contenders.items()}
        timer = time.perf_counter if cold else time.process_time
        times = interleaved(work, rounds=rounds, tell=tell, timer=timer)
    amount = {name: count for name, (_, count) in contenders.items()}
    check("the stores hold the scan", holds=same(compact, subject) and same(fast, subject))

    def faster(name: str, than: str) -> float:
        return round(ratio(times[than], times[name]) * amount[name] / amount[than], 3)

    return {
        "benchmark": "store",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "unit": "pairs of an image and a label slice, in random order",
        "clock": "wall, one core" if cold else "CPU time of one core",
        "page_cache": "cold: forgotten before every run (posix_fadvise)" if cold else "warm",
        "slices": len(order),
        "results": {name: times[name].as_json(amount[name]) for name in contenders},
        "ratios": {
            "over zarr-python on the same store": faster("ours", "zarr-python, our store"),
            "over zarrs on the same store": faster("ours", "zarrs, our store"),
            "over tensorstore on the same store": faster("ours", "tensorstore, our store"),
            "over zarr-python with its defaults": faster("ours", "zarr-python, its defaults"),
            "of the bare decode": faster("ours", "bare decode"),
            "of the bare decode without its checksum": faster("ours", "bare decode, no checksum"),
            "fast profile over compact": faster("ours, fast profile", "ours"),
            "fast profile, of its bare decode": faster("ours, fast profile", "bare decode, fast profile"),
        },
        "bytes": {**sizes, "raw": subject.image.nbytes + subject.label.nbytes},
        "headline": headline(
            {name: Timed(timing=timing, amount=amount[name]) for name, timing in times.items()},
            ours="ours",
            limit="bare decode",
            bound="the codecs on bytes in memory",
            peers=PEERS,
            verified="the store's slices are the scan's",
        ),
        "machine": machine_info(),
    }


def same(case: Case, subject: Subject) -> bool:
    """Return whether a case holds the scan."""
    there = case.label is not None and np.array_equal(case.label[:], subject.label)
    return there and np.array_equal(case.image[:], subject.image)


def ours(case: Case, order: list[int]) -> None:
    """Read pairs into buffers that are there."""
    image, label = np.empty(case.image.shape[1:], np.int16), np.empty(case.image.shape[1:], np.uint8)
    for z in order:
        case.image.read(z, image)
        if case.label is not None:
            case.label.read(z, label)


def windows(case: Case, order: list[int]) -> None:
    """Read windows of neighbors."""
    image = np.empty((WINDOW, *case.image.shape[1:]), np.int16)
    last = len(case.image) - 1
    for z in order:
        case.image.read_many([min(max(z + step, 0), last) for step in range(-(WINDOW // 2), WINDOW // 2 + 1)], image)


def bare_decode(case: Case, order: list[int], *, checked: bool) -> Callable[[], object]:
    """Return the codecs alone, with or without the checksum that is one of them: encoded slices from memory into a buffer."""
    arrays = [(case.image, np.empty(case.image.shape[1:], np.int16))]
    if case.label is not None:
        arrays.append((case.label, np.empty(case.image.shape[1:], np.uint8)))
    decoded = []
    for array, buffer in arrays:
        is_zstd = array is case.label and array.profile == "compact"
        decoded += [(zstd.decompress if is_zstd else decode_blosc, array.encoded(z), buffer) for z in order]
    bare = [(decompress, bytes(without_checksum(data)), buffer) for decompress, data, buffer in decoded]

    def work() -> None:
        for decompress, data, buffer in decoded:
            decompress(without_checksum(data), buffer)

    def work_unchecked() -> None:
        for decompress, data, buffer in bare:
            decompress(data, buffer)

    return work if checked else work_unchecked


def zarr_reads(paths: list[Path], order: list[int]) -> Callable[[], object]:
    """Return reads of pairs through zarr-python."""
    import zarr

    arrays = [zarr.open_array(path, mode="r") for path in paths]
    return lambda: [array[z] for z in order for array in arrays]


def zarrs_reads(paths: list[Path], order: list[int]) -> Callable[[], object]:
    """Return reads of pairs through zarr-python with the codecs of zarrs."""
    import zarr
    import zarrs  # noqa: F401 (registers its pipeline)

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}):
        arrays = [zarr.open_array(path, mode="r") for path in paths]
    return lambda: [array[z] for z in order for array in arrays]


def tensorstore_reads(paths: list[Path], order: list[int]) -> Callable[[], object]:
    """Return reads of pairs through tensorstore."""
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}})
    specs = [{"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}} for path in paths]
    arrays = [tensorstore.open(spec, open=True, context=context).result() for spec in specs]
    return lambda: [array[z].read().result() for z in order for array in arrays]


def zarr_defaults(folder: Path, image: Any, label: Any) -> list[Path]:
    """Write both arrays as zarr-python does when nothing is said, and return where."""
    import zarr

    for name, volume in ((IMAGE, image), (LABEL, label)):
        zarr.create_array(folder / name, data=volume)
    return [folder / IMAGE, folder / LABEL]
