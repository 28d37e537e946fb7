"""What a collection costs in hours, cores, bytes and requests: a model written down, from inputs that were measured.

For a collection of N scans with S slices together, of C bytes a slice in the store, on K workers::

    ingest hours     = (S * cpu_of_a_slice + N * cpu_of_a_scan) / (K * 3600 * share) + N * scheduler_of_a_task / 3600
    store bytes      = S * bytes_of_a_slice
    requests, made   = N * OBJECTS                        objects written, a scan's documents and shards
    requests, epoch  = 2 * S                              one ranged read for a slice, one for its labels
    read a second    = K * bytes_of_a_slice * slices_a_second_of_a_core
    inference hours  = S / (K * slices_a_second_of_the_session * 3600)

Work is divided by scan, so K beyond N helps nobody. ``share`` is what a worker reaches of its own pace beside the others, measured
with two, start-up left out. The model is checked against the ingest of a collection of LiTS's size, which was measured whole. It knows nothing of
a network that is too slow: compare the bytes a second with yours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slicemill.common.errors import ConfigError

WORKERS = (2, 16, 128)
"""To plan for, a core each."""
LEAST = 0.25
"""Work over start-up, below which a pace cannot be told."""
OBJECTS = 5
"""Objects of a case with a mask: the document of its group, and a document and a shard of its image and of its labels."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """How much there is."""

    name: str
    scans: int
    slices: int


KNOWN = (
    Collection(name="LiTS, 50 GB", scans=131, slices=58_638),
    Collection(name="1 TB of voxels", scans=6_358, slices=1_271_566),
    Collection(name="National Lung Screening Trial", scans=126_000, slices=25_200_000),
)
"""LiTS as it is; 1e12 bytes of int16 and uint8 slices of 512x512, 200 a scan; the trial's 126,000 CTs, taken at 200 slices each."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was measured on one machine."""

    slice_seconds: float
    """CPU of a core for a slice with its labels."""
    scan_seconds: float
    """And for a scan, whatever its slices."""
    share: float
    """Pace of a worker beside the others over its pace alone."""
    task_seconds: float
    """Of the scheduler, for a task."""
    slice_bytes: float
    """In the store, with its labels."""
    reads_per_second: float
    """Pairs of a core, out of a store."""
    labelled_per_second: float | None
    """Slices through the default network, on all cores of the machine; None where it was not measured."""
    cores: int


def inputs_of(scale: Mapping[str, Any], store: Mapping[str, Any], infer: Mapping[str, Any] | None) -> Inputs:
    """Return the inputs from the records of `bench scale`, `bench store` and `bench infer`.

    Raises
    ------
    ConfigError
        They are records of something else.
    """
    for record, name in ((scale, "scale"), (store, "store"), (infer, "infer")):
        if record is not None and record.get("benchmark") != name:
            raise ConfigError(f"a record of bench {name} is needed; found one of {record.get('benchmark')}.")
    line, workers = scale["slices"]["cpu_seconds"], scale["workers"]
    return Inputs(
        slice_seconds=line["slope"],
        scan_seconds=max(0.0, line["start"]),
        share=share_of(workers, scale["cases"]["seconds"]["start"]),
        task_seconds=scale["scheduler"]["milliseconds_a_task"] / 1000,
        slice_bytes=store["bytes"]["compact"] / store["slices"],
        reads_per_second=store["results"]["ours"]["per_second"],
        labelled_per_second=None if infer is None else infer["headline"]["per_second"],
        cores=scale["machine"]["cores"],
    )


def share_of(workers: Mapping[str, float], start: float) -> float:
    """Return the pace of a worker beside another over its pace alone, without the seconds that every command takes to start.

    Raises
    ------
    ConfigError
        Hardly anything is left without them.

    >>> share_of({"1": 10.0, "2": 6.0}, 2.0)
    1.0
    """
    if "2" not in workers:
        return 1.0
    alone, beside = (workers[count] - start for count in ("1", "2"))
    if min(alone, beside) < LEAST * start:
        raise ConfigError(
            f"the record of bench scale is nearly all start-up ({start:.1f} s of {workers['2']:.1f} s on two workers); run it without --quick."
        )
    return min(1.0, alone / beside / 2)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it comes to."""

    ingest_hours: float
    store_gb: float
    objects: int
    epoch_requests: int
    epoch_gb_per_second: float
    """That the workers could take in while they only read."""
    infer_hours: float | None
    """On so many machines as the workers fill."""


def cost(collection: Collection, inputs: Inputs, workers: int) -> Cost:
    """Return what a collection costs on so many workers, a core each."""
    used = min(workers, collection.scans)
    work = collection.slices * inputs.slice_seconds + collection.scans * inputs.scan_seconds
    share = inputs.share if used > 1 else 1.0
    hours = work / (used * share * 3600) + collection.scans * inputs.task_seconds / 3600
    machines = max(1, workers // inputs.cores)
    rate = inputs.labelled_per_second
    return Cost(
        ingest_hours=hours,
        store_gb=collection.slices * inputs.slice_bytes / 1e9,
        objects=collection.scans * OBJECTS,
        epoch_requests=2 * collection.slices,
        epoch_gb_per_second=workers * inputs.slice_bytes * inputs.reads_per_second / 1e9,
        infer_hours=None if rate is None else collection.slices / (machines * rate * 3600),
    )


HEADER = (
    "collection",
    "workers",
    "ingest h",
    "store GB",
    "objects",
    "reads an epoch",
    "GB/s they could read",
    "inference h",
)
Row = tuple[str, int, float, float, int, int, float, float | None]


def rows_of(collections: Sequence[Collection], inputs: Inputs, workers: Sequence[int]) -> list[Row]:
    """Return a row under HEADER for each collection and number of workers."""
    rows: list[Row] = []
    for collection in collections:
        for count in workers:
            one = cost(collection, inputs, count)
            sizes = (one.store_gb, one.objects, one.epoch_requests, one.epoch_gb_per_second)
            rows.append((collection.name, count, one.ingest_hours, *sizes, one.infer_hours))
    return rows


def checked(inputs: Inputs, lits: Mapping[str, Any]) -> float:
    """Return how long the measured ingest of LiTS's size took over what the model says."""
    known = Collection(name="", scans=lits["cases"], slices=lits["slices"])
    return float(lits["seconds"] / 3600 / cost(known, inputs, lits["workers"]).ingest_hours)
