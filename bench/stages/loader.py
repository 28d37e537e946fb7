"""Training pairs (image and label slice) per CPU-second: slicemill's ring, the usual DataLoaders, and the bare decode.

Bottleneck: decompression. Every contender delivers the same slices in the same random order in batches. The PNG
folder holds windowed 8-bit images, as tutorials make them. CPU time includes worker processes. Command: `slicemill
bench loader`.
"""

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs import zstd
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from slicemill.bench.harness.clock import Timing, Work, ratio, show_progress, time_rounds
from slicemill.bench.harness.conversions import png_slices
from slicemill.bench.harness.headline import Record, check, headline, with_amount
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import LoaderRecord, Waits
from slicemill.bench.stages.store import bare_decode
from slicemill.store.codecs import decode_blosc, without_checksum
from slicemill.store.reader import Case, Store
from slicemill.train.data.dataset import RING, Batches, SliceRegion
from slicemill.train.data.sampling import SlicePosition

BATCH = 16
WORKERS = 2
REPEATS = 4
"""Repeats of every slice, so that the start of worker processes has little effect."""
SLICEMILL, LIMIT, ONE_SLICE = "ring, 1 thread", "bare decode into batches", "bare decode into one slice"
READER, PNGS = "our reader, DataLoader with 2 workers", "PNG folder, DataLoader with 2 workers"
PEERS = {
    READER: "the same store behind worker processes: each pair is sent through shared memory",
    PNGS: "windowed 8-bit images, as tutorials make them; HU are lost",
}
RATIOS = {
    "over the PNG folder": PNGS,
    "over our reader in worker processes": READER,
    "of the bare decode into batches": LIMIT,
    "of the bare decode into one slice that stays in the cache": ONE_SLICE,
}
"""Name of a ratio -> its baseline."""
SLOWER = 1.5
"""Time of the network per batch over the time of decoding, when the waits for batches are measured."""


class Pairs(Dataset[tuple[Any, Any]]):
    """Pairs in a fixed order, read by a function, for worker processes."""

    def __init__(self, read: Callable[[int], tuple[Any, Any]], order: list[int]) -> None:
        self._read = read
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._read(self._order[index])


def read_png(folder: Path, z: int) -> tuple[Any, Any]:
    """Read a pair of PNG slices, as tutorials do."""
    image = np.array(Image.open(folder / f"image_{z}.png"))
    mask = np.array(Image.open(folder / f"mask_{z}.png"))
    return torch.from_numpy(image)[None].float() / 255, torch.from_numpy(mask).long()


def read_stored(case: Case, z: int) -> tuple[Any, Any]:
    """Read a pair with slicemill's reader."""
    label = np.zeros(case.image.shape[1:], np.uint8) if case.label is None else case.label.read(z)
    return torch.from_numpy(case.image.read(z))[None], torch.from_numpy(label)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure on one scan and return the record."""
    store, order = prepare(folder, subject)
    case, size = store[CASE_ID], (subject.image.shape[1], subject.image.shape[2])
    positions = [SlicePosition(CASE_ID, z) for z in order]
    rings = {threads: Batches(store, SliceRegion(size=size), BATCH, threads) for threads in (1, 2)}
    contenders: dict[str, Work] = {
        SLICEMILL: lambda: read_ring(rings[1], positions),
        "ring, 2 threads": lambda: read_ring(rings[2], positions),
        LIMIT: decode_into_batches(case, order),
        ONE_SLICE: bare_decode(case, order, checked=True),
        READER: lambda: read_in_workers(Pairs(partial(read_stored, case), order)),
        PNGS: lambda: read_in_workers(Pairs(partial(read_png, folder / "png"), order)),
    }
    with show_progress("loader", len(contenders), rounds) as log:
        times = time_rounds(contenders, rounds=rounds, log=log, clock=cpu_seconds)
    check("the ring delivers the scan's slices", holds=delivers_slices(rings[1], positions, subject))
    return LoaderRecord(
        **origin(),
        subject=str(subject),
        unit=f"pairs of an image and a label slice, in batches of {BATCH}",
        clock="CPU time of all processes",
        page_cache="warm",
        slices=len(subject.image),
        results={name: timing.rate(len(order)) for name, timing in times.items()},
        ratios={name: speedup(times[SLICEMILL], times[baseline]) for name, baseline in RATIOS.items()},
        headline=headline(
            with_amount(times, len(order)),
            contender=SLICEMILL,
            limit=LIMIT,
            bound="the codecs, from memory into batches",
            peers=PEERS,
            verified="the last batch holds the scan's slices",
        ),
        waited=measure_waits(store, positions, size),
    ).as_json()


def prepare(folder: Path, subject: Subject) -> tuple[Store, list[int]]:
    """Put a scan into a store and into a folder of PNGs; return the store and the order of reading."""
    store = subject.store(folder / "store")
    files = subject.write(folder, ".nii")
    (folder / "png").mkdir()
    png_slices(files.image, files.mask, folder / "png")
    rng = np.random.default_rng(0)
    order = [int(z) for _ in range(REPEATS) for z in rng.permutation(len(subject.image))]
    return store, order[: len(order) // BATCH * BATCH]


def read_in_workers(dataset: Dataset[tuple[Any, Any]]) -> None:
    """Read batches through a DataLoader with worker processes."""
    for _ in DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS):
        pass


def read_ring(ring: Batches, positions: list[SlicePosition]) -> None:
    """Read batches through slicemill's ring."""
    with ring.iterate(positions, (0, 0)) as stream:
        for _ in stream:
            pass


def decode_into_batches(case: Case, order: list[int]) -> Work:
    """Return a function that runs only the codecs, from memory into alternating batches: a loader's minimum work."""
    image = np.empty((RING + 2, BATCH, *case.image.shape[1:]), np.int16)
    label = np.empty((RING + 2, BATCH, *case.image.shape[1:]), np.uint8)
    encoded = [(case.image.read_encoded(z), b"" if case.label is None else case.label.read_encoded(z)) for z in order]

    def work() -> None:
        for number, (image_bytes, label_bytes) in enumerate(encoded):
            slot, index = number // BATCH % (RING + 2), number % BATCH
            decode_blosc(without_checksum(image_bytes), image[slot, index])
            zstd.decompress(without_checksum(label_bytes), label[slot, index])

    return work


def speedup(fast: Timing, slow: Timing) -> float:
    """Return the speedup of `fast` over `slow`."""
    return round(ratio(slow, fast), 2)


def measure_waits(store: Store, positions: list[SlicePosition], size: tuple[int, int]) -> Waits:
    """Measure how long a network that takes SLOWER times as long as the decoding waits for batches."""
    batches = Batches(store, SliceRegion(size=size), BATCH, 1)
    start = time.perf_counter()
    with batches.iterate(positions, (0, 0)) as stream:
        count = sum(1 for _ in stream)
    busy = SLOWER * (time.perf_counter() - start) / count
    waits = []
    with batches.iterate(positions, (0, 0)) as stream:
        next(stream)
        while True:
            time.sleep(busy)  # in place of the device's work
            start = time.perf_counter()
            if next(stream, None) is None:
                break
            waits.append(time.perf_counter() - start)
    return Waits(
        batches=len(waits),
        milliseconds_of_work=round(1000 * busy, 1),
        longest_wait_milliseconds=round(1000 * max(waits), 2),
        share_of_time=round(sum(waits) / (sum(waits) + busy * len(waits)), 4),
    )


def delivers_slices(ring: Batches, positions: list[SlicePosition], subject: Subject) -> bool:
    """Return whether the last batch of an epoch holds the requested slices."""
    with ring.iterate(positions, (0, 0)) as stream:
        for batch in stream:
            image, label = batch.image.copy(), batch.label.copy()
    requested = [position.z for position in positions[-len(image) :]]
    same = np.array_equal(image[:, image.shape[1] // 2], subject.image[requested])
    return same and np.array_equal(label[:, label.shape[1] // 2], subject.label[requested])
