"""Random slices (image and label) from a store: slicemill, zarr-python, zarrs and tensorstore, and the bare decode.

Bottleneck: decompression. The limit is the codec alone, from bytes in memory into an allocated buffer. Command:
`slicemill bench store`.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd

from slicemill.bench.harness.clock import Work, show_progress, time_rounds
from slicemill.bench.harness.cores import pin_to_one_core
from slicemill.bench.harness.headline import Record, TimedContender, check, headline
from slicemill.bench.harness.pagecache import drop_from_cache, files_below
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import StoreBytes, StoreRecord
from slicemill.store.codecs import decode_blosc, without_checksum
from slicemill.store.layout import ARRAY_PATHS, FORMAT, GROUP, IMAGE, LABEL, ProfileName
from slicemill.store.reader import Case

WINDOW = 7
DEFAULTS = "zarr-python, its defaults"
PEERS = {
    "zarr-python, our store": "the same bytes, through Zarr's own reader",
    "zarrs, our store": "the same bytes, zarr-python with codecs in Rust",
    "tensorstore, our store": "the same bytes, in C++, one thread",
    DEFAULTS: "chunks and codecs as zarr-python chooses them; a slice needs many chunks of its neighbors",
}
RATIOS = {
    "over zarr-python on the same store": ("ours", "zarr-python, our store"),
    "over zarrs on the same store": ("ours", "zarrs, our store"),
    "over tensorstore on the same store": ("ours", "tensorstore, our store"),
    "over zarr-python with its defaults": ("ours", DEFAULTS),
    "of the bare decode": ("ours", "bare decode"),
    "of the bare decode without its checksum": ("ours", "bare decode, no checksum"),
    "fast profile over compact": ("ours, fast profile", "ours"),
    "fast profile, of its bare decode": ("ours, fast profile", "bare decode, fast profile"),
}
"""Name of a ratio -> the contender and its baseline."""


def run(folder: Path, subject: Subject, *, rounds: int, cold: bool = False) -> Record:
    """Measure on one scan and return the record; `cold` drops the page cache before every run, and takes wall time."""
    profiles: tuple[ProfileName, ...] = ("compact", "fast")
    cases = {profile: subject.store(folder / profile, profile)[CASE_ID] for profile in profiles}
    sizes = {
        profile: sum(path.stat().st_size for path in (folder / profile).rglob("0") if path.is_file())
        for profile in profiles
    }
    times = time_readers(folder, subject, cases, rounds, cold=cold)
    check("the stores hold the scan", holds=all(holds_scan(case, subject) for case in cases.values()))
    return StoreRecord(
        **origin(),
        subject=str(subject),
        unit="pairs of an image and a label slice, in random order",
        clock="wall, one core" if cold else "CPU time of one core",
        page_cache="cold: forgotten before every run (posix_fadvise)" if cold else "warm",
        slices=len(subject.image),
        results={name: timed.rate() for name, timed in times.items()},
        ratios={name: times[one].speedup(times[other]) for name, (one, other) in RATIOS.items()},
        bytes=StoreBytes(**sizes, raw=subject.image.nbytes + subject.label.nbytes),
        headline=headline(
            times,
            contender="ours",
            limit="bare decode",
            bound="the codecs on bytes in memory",
            peers=PEERS,
            verified="the store's slices are the scan's",
        ),
    ).as_json()


def time_readers(
    folder: Path, subject: Subject, cases: Mapping[ProfileName, Case], rounds: int, *, cold: bool
) -> dict[str, TimedContender]:
    """Time all readers on one core. zarr-python with its defaults reads fewer slices, because it is slow."""
    compact, fast = cases["compact"], cases["fast"]
    order = np.random.default_rng(0).permutation(len(subject.image)).tolist()
    few = order[: max(4, len(order) // 8)]
    paths = [folder / "compact" / GROUP / CASE_ID / path for path in ARRAY_PATHS[FORMAT].values()]
    readers: dict[str, Work] = {
        "ours": lambda: read_pairs(compact, order),
        "ours, fast profile": lambda: read_pairs(fast, order),
        "bare decode": bare_decode(compact, order, checked=True),
        "bare decode, no checksum": bare_decode(compact, order, checked=False),
        "bare decode, fast profile": bare_decode(fast, order, checked=True),
        "zarr-python, our store": zarr_reads(paths, order),
        "zarrs, our store": zarrs_reads(paths, order),
        "tensorstore, our store": tensorstore_reads(paths, order),
        DEFAULTS: zarr_reads(write_zarr_defaults(folder / "defaults", subject), few),
        "ours, windows of 7": lambda: read_windows(compact, order),
    }
    files = files_below(folder) if cold else []
    clock = time.perf_counter if cold else time.process_time
    with pin_to_one_core(), show_progress("store", len(readers), rounds) as log:

        def prepare(name: str) -> None:
            drop_from_cache(files)
            log(name)

        timings = time_rounds(readers, rounds=rounds, log=prepare, clock=clock)
    amounts = dict.fromkeys(readers, len(order)) | {DEFAULTS: len(few)}
    return {name: TimedContender(timing=timing, amount=amounts[name]) for name, timing in timings.items()}


def holds_scan(case: Case, subject: Subject) -> bool:
    """Return whether a case holds the scan."""
    same_label = case.label is not None and np.array_equal(case.label[:], subject.label)
    return same_label and np.array_equal(case.image[:], subject.image)


def read_pairs(case: Case, order: list[int]) -> None:
    """Read pairs into allocated buffers."""
    image, label = np.empty(case.image.shape[1:], np.int16), np.empty(case.image.shape[1:], np.uint8)
    for z in order:
        case.image.read(z, image)
        if case.label is not None:
            case.label.read(z, label)


def read_windows(case: Case, order: list[int]) -> None:
    """Read windows of neighbors."""
    image = np.empty((WINDOW, *case.image.shape[1:]), np.int16)
    last = len(case.image) - 1
    for z in order:
        case.image.read_many([min(max(z + step, 0), last) for step in range(-(WINDOW // 2), WINDOW // 2 + 1)], image)


def bare_decode(case: Case, order: list[int], *, checked: bool) -> Work:
    """Return a function that runs only the codecs, with or without the checksum, from memory into a buffer."""
    arrays = [(case.image, np.empty(case.image.shape[1:], np.int16))]
    if case.label is not None:
        arrays.append((case.label, np.empty(case.image.shape[1:], np.uint8)))
    steps = []
    for array, buffer in arrays:
        is_zstd = array is case.label and array.profile == "compact"
        steps += [(zstd.decompress if is_zstd else decode_blosc, array.read_encoded(z), buffer) for z in order]
    bare = [(decompress, bytes(without_checksum(data)), buffer) for decompress, data, buffer in steps]

    def decode_checked() -> None:
        for decompress, data, buffer in steps:
            decompress(without_checksum(data), buffer)

    def decode_unchecked() -> None:
        for decompress, data, buffer in bare:
            decompress(data, buffer)

    return decode_checked if checked else decode_unchecked


def zarr_reads(paths: list[Path], order: list[int]) -> Work:
    """Return a function that reads pairs through zarr-python."""
    import zarr

    arrays = [zarr.open_array(path, mode="r") for path in paths]
    return lambda: [array[z] for z in order for array in arrays]


def zarrs_reads(paths: list[Path], order: list[int]) -> Work:
    """Return a function that reads pairs through zarr-python with the codecs of zarrs."""
    import zarr
    import zarrs  # noqa: F401 (registers its pipeline)

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}):
        return zarr_reads(paths, order)


def tensorstore_reads(paths: list[Path], order: list[int]) -> Work:
    """Return a function that reads pairs through tensorstore."""
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}})
    specs = [{"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}} for path in paths]
    arrays: list[Any] = [tensorstore.open(spec, open=True, context=context).result() for spec in specs]
    return lambda: [array[z].read().result() for z in order for array in arrays]


def write_zarr_defaults(folder: Path, subject: Subject) -> list[Path]:
    """Write both arrays with zarr-python's default settings, and return their paths."""
    import zarr

    for name, volume in ((IMAGE, subject.image), (LABEL, subject.label)):
        zarr.create_array(folder / name, data=volume)
    return [folder / IMAGE, folder / LABEL]
