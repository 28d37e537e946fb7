"""Training pairs (image and label slice) a CPU-second: the ring beside the ways of the tutorials, and beside the bare decode.

What bounds it: decompression. Every contender delivers the same slices in the same random order in batches; the PNG
folder holds windowed 8-bit images, as tutorials make them. CPU time counts worker processes too.
"""

import datetime as dt
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs import zstd
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from slicemill.bench.harness.clock import Timing, interleaved, ratio
from slicemill.bench.harness.conversions import png_slices
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.bench.stages.store import bare_decode
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.store.codecs import decode_blosc, without_checksum
from slicemill.store.reader import Case, Store
from slicemill.train.data.dataset import RING, Batches, View
from slicemill.train.data.sampling import SlicePosition

BATCH = 16
WORKERS = 2
REPEATS = 4
"""How often every slice comes: enough that starting worker processes weighs little."""
PEERS = {
    "our reader, DataLoader with 2 workers": "the same store behind worker processes: each pair is sent through shared memory",
    "PNG folder, DataLoader with 2 workers": "windowed 8-bit images, as tutorials make them; HU are lost",
}
SLOWER = 1.5
"""How much longer than its decoding the network takes with a batch, where it is measured whether it ever waits."""


class PngFolder(Dataset[tuple[Any, Any]]):
    """A folder of PNG slices, as tutorials read it."""

    def __init__(self, folder: Path, order: list[int]) -> None:
        self._folder = folder
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        z = self._order[index]
        image = np.array(Image.open(self._folder / f"image_{z}.png"))
        mask = np.array(Image.open(self._folder / f"mask_{z}.png"))
        return torch.from_numpy(image)[None].float() / 255, torch.from_numpy(mask).long()


class StoreSlices(Dataset[tuple[Any, Any]]):
    """Our reader, behind worker processes."""

    def __init__(self, case: Case, order: list[int]) -> None:
        self._case = case
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        z = self._order[index]
        label = np.zeros(self._case.image.shape[1:], np.uint8) if self._case.label is None else self._case.label.read(z)
        return torch.from_numpy(self._case.image.read(z))[None], torch.from_numpy(label)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure on one scan and return the record."""
    store, case, order = prepared(folder, subject)
    size = (subject.image.shape[1], subject.image.shape[2])
    places = [SlicePosition(CASE_ID, z) for z in order]

    def behind_workers(dataset: Dataset[tuple[Any, Any]]) -> None:
        for _ in DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS):
            pass

    rings = {threads: Batches(store, View(size=size), BATCH, threads) for threads in (1, 2)}

    def ring(threads: int) -> None:
        with rings[threads].over(places, (0, 0)) as stream:
            for _ in stream:
                pass

    contenders: dict[str, Callable[[], object]] = {
        "ring, 1 thread": lambda: ring(1),
        "ring, 2 threads": lambda: ring(2),
        "bare decode into batches": decode_into_batches(case, order),
        "bare decode into one slice": bare_decode(case, order, checked=True),
        "our reader, DataLoader with 2 workers": lambda: behind_workers(StoreSlices(case, order)),
        "PNG folder, DataLoader with 2 workers": lambda: behind_workers(PngFolder(folder / "png", order)),
    }
    with progress("loader", (rounds + 1) * len(contenders), "runs") as advance:
        times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name), timer=cpu_seconds)
    best = times["ring, 1 thread"]
    check("the ring delivers the scan's slices", holds=delivered(rings[1], places, subject))
    return {
        "benchmark": "loader",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "unit": f"pairs of an image and a label slice, in batches of {BATCH}",
        "clock": "CPU time of all processes",
        "page_cache": "warm",
        "slices": len(subject.image),
        "results": {name: timing.as_json(len(order)) for name, timing in times.items()},
        "ratios": {
            "over the PNG folder": faster(best, times["PNG folder, DataLoader with 2 workers"]),
            "over our reader in worker processes": faster(best, times["our reader, DataLoader with 2 workers"]),
            "of the bare decode into batches": faster(best, times["bare decode into batches"]),
            "of the bare decode into one slice that stays in the cache": faster(
                best, times["bare decode into one slice"]
            ),
        },
        "headline": headline(
            {name: Timed(timing=timing, amount=len(order)) for name, timing in times.items()},
            ours="ring, 1 thread",
            limit="bare decode into batches",
            bound="the codecs, from memory into batches",
            peers=PEERS,
            verified="the last batch holds the scan's slices",
        ),
        "waited": waited(store, places, size),
        "machine": machine_info(),
    }


def decode_into_batches(case: Case, order: list[int]) -> Callable[[], object]:
    """Return the codecs alone, from memory into batches that take turns: what a loader must at least do."""
    image = np.empty((RING + 2, BATCH, *case.image.shape[1:]), np.int16)
    label = np.empty((RING + 2, BATCH, *case.image.shape[1:]), np.uint8)
    encoded = [(case.image.encoded(z), b"" if case.label is None else case.label.encoded(z)) for z in order]

    def work() -> None:
        for number, (one, other) in enumerate(encoded):
            slot, index = number // BATCH % (RING + 2), number % BATCH
            decode_blosc(without_checksum(one), image[slot, index])
            zstd.decompress(without_checksum(other), label[slot, index])

    return work


def faster(ours: Timing, theirs: Timing) -> float:
    """Return how many times as fast ours is."""
    return round(ratio(theirs, ours), 2)


def waited(store: Store, places: list[SlicePosition], size: tuple[int, int]) -> Record:
    """Return how long a network that takes SLOWER times as long as the decoding waits for batches."""
    batches = Batches(store, View(size=size), BATCH, 1)
    start = time.perf_counter()
    with batches.over(places, (0, 0)) as stream:
        count = sum(1 for _ in stream)
    busy = SLOWER * (time.perf_counter() - start) / count
    waits = []
    with batches.over(places, (0, 0)) as stream:
        next(stream)
        while True:
            time.sleep(busy)  # stands for the device's work
            start = time.perf_counter()
            if next(stream, None) is None:
                break
            waits.append(time.perf_counter() - start)
    return {
        "batches": len(waits),
        "milliseconds_of_work": round(1000 * busy, 1),
        "longest_wait_milliseconds": round(1000 * max(waits), 2),
        "share_of_time": round(sum(waits) / (sum(waits) + busy * len(waits)), 4),
    }


def delivered(ring: Batches, places: list[SlicePosition], subject: Subject) -> bool:
    """Return whether the last batch of an epoch holds the slices that were asked for."""
    with ring.over(places, (0, 0)) as stream:
        for batch in stream:
            image, label = batch.image.copy(), batch.label.copy()
    wanted = [place.z for place in places[-len(image) :]]
    same = np.array_equal(image[:, image.shape[1] // 2], subject.image[wanted])
    return same and np.array_equal(label[:, label.shape[1] // 2], subject.label[wanted])


def prepared(folder: Path, subject: Subject) -> tuple[Store, Case, list[int]]:
    """Put a scan into a store and into a folder of PNGs, and return the order in which its slices are wanted."""
    store = subject.store(folder / "store")
    files = subject.write(folder, ".nii")
    (folder / "png").mkdir()
    png_slices(files.image, files.mask, folder / "png")
    rng = np.random.default_rng(0)
    order = [int(z) for _ in range(REPEATS) for z in rng.permutation(len(subject.image))]
    return store, store[CASE_ID], order[: len(order) // BATCH * BATCH]
