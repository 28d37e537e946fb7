"""Cost of a collection in hours, cores, bytes and requests: a model whose inputs are measured.

For a collection of N scans with S slices together, of C bytes a slice in the store, on K workers::

    ingest hours     = (S * cpu_of_a_slice + N * cpu_of_a_scan) / (K * 3600 * pace) + N * scheduler_of_a_task / 3600
    store bytes      = S * bytes_of_a_slice
    requests, made   = N * OBJECTS                        objects written, a scan's documents and shards
    requests, epoch  = 2 * S                              one ranged read for a slice, one for its labels
    read a second    = K * bytes_of_a_slice * slices_a_second_of_a_core
    inference hours  = S / (K * slices_a_second_of_the_session * 3600)

Work is divided by scan, so no more than N workers can help. ``pace`` is the rate of a worker that runs next to
another over its rate alone, without start-up. The model is checked against a measured ingest of a collection as large
as LiTS. It ignores the bandwidth of the network: compare the bytes per second with yours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from slicemill.bench.records.markdown import format_processor, format_three_digits, table_row
from slicemill.bench.schema.base import Document, read_processor, read_record
from slicemill.bench.schema.data import LitsRecord, ScaleRecord, StoreRecord
from slicemill.bench.schema.networks import InferRecord
from slicemill.common.errors import ConfigError

WORKERS = (2, 16, 128)
"""Numbers of workers to plan for, with a core each."""
LEAST_WORK = 0.25
"""Work over start-up. Below it, the pace cannot be measured."""
OBJECTS = 7
"""Objects of a case with a mask: five documents (case, image, labels, segmentation, its array) and two shards."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Size of a collection."""

    name: str
    scans: int
    slices: int
    """Slices of all scans together."""


KNOWN = (
    Collection(name="LiTS, 50 GB", scans=131, slices=58_638),
    Collection(name="1 TB of voxels", scans=6_358, slices=1_271_566),
    Collection(name="National Lung Screening Trial", scans=126_000, slices=25_200_000),
)
"""LiTS as it is; 1e12 bytes of int16 and uint8 slices of 512x512, 200 a scan; 126,000 CTs with 200 each."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """MeasuredRecord inputs of the model, all from one machine."""

    slice_seconds: float
    """CPU time of an ingest for each slice with its labels, s."""
    scan_seconds: float
    """CPU time of an ingest for each scan, independent of its slices, s."""
    share: float
    """Pace of a worker next to another over its pace alone."""
    task_seconds: float
    """Time of the scheduler for a task, s."""
    slice_bytes: float
    """Size of a slice with its labels in the store, bytes."""
    reads_per_second: float
    """Image and label slices that a core reads from a store per second."""
    labelled_per_second: float | None
    """Slices through the default network per second, on all cores; None if it was not measured."""
    cores: int


def read_inputs(scale: Document, store: Document, infer: Document | None) -> Inputs:
    """Read the inputs from the records of `bench scale`, `bench store` and `bench infer`.

    Raises
    ------
    ConfigError
        A record is of another benchmark, or the record of `bench scale` is too short.
    """
    growth = read_record(ScaleRecord, scale)
    stored = read_record(StoreRecord, store)
    return Inputs(
        slice_seconds=growth.slices.cpu_seconds.slope,
        scan_seconds=max(0.0, growth.slices.cpu_seconds.start),
        share=worker_pace(growth.workers, growth.cases.seconds.start),
        task_seconds=growth.scheduler.milliseconds_a_task / 1000,
        slice_bytes=stored.bytes.compact / stored.slices,
        reads_per_second=stored.results["ours"].per_second,
        labelled_per_second=None if infer is None else read_record(InferRecord, infer).headline.per_second,
        cores=read_processor(growth.machine).cores,
    )


def worker_pace(workers: Mapping[str, float], start: float) -> float:
    """Return the pace of a worker next to another over its pace alone, without the start-up of the command.

    Parameters
    ----------
    workers : mapping
        Seconds of the command by number of workers.
    start : float
        Seconds that the command takes to start.

    Raises
    ------
    ConfigError
        Start-up takes nearly all of the measured time.

    >>> worker_pace({"1": 10.0, "2": 6.0}, 2.0)
    1.0
    """
    if "2" not in workers:
        return 1.0
    one, two = (workers[count] - start for count in ("1", "2"))
    if min(one, two) < LEAST_WORK * start:
        raise ConfigError(
            f"the record of bench scale is nearly all start-up ({start:.1f} s of {workers['2']:.1f} s on two workers); "
            "run it without --quick."
        )
    return min(1.0, one / two / 2)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated cost of a collection; its fields are the last columns of HEADER."""

    ingest_hours: float
    store_gb: float
    objects: int
    epoch_requests: int
    """Read requests of a training epoch."""
    epoch_gb_per_second: float
    """Read rate of the workers if they do nothing else, GB/s."""
    infer_hours: float | None
    """Time of the inference on as many machines as the workers fill, h; None if it was not measured."""


def estimate_cost(collection: Collection, inputs: Inputs, workers: int) -> Cost:
    """Estimate what a collection costs on a number of workers with a core each."""
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


HEADER = ("collection", "workers", "ingest h", "store GB", "objects", "reads an epoch", "GB/s they could read",
          "inference h")  # fmt: skip
Row = tuple[Any, ...]


def plan_rows(collections: Sequence[Collection], inputs: Inputs, workers: Sequence[int]) -> list[Row]:
    """Return a row below HEADER for each collection and number of workers."""
    return [
        (collection.name, count, *astuple(estimate_cost(collection, inputs, count)))
        for collection in collections
        for count in workers
    ]


def measured_over_model(inputs: Inputs, lits: Document) -> float:
    """Return measured over estimated ingest time, for a record of `bench ingest --scale lits`."""
    run = read_record(LitsRecord, lits)
    collection = Collection(name="", scans=run.cases, slices=run.slices)
    return run.seconds / 3600 / estimate_cost(collection, inputs, run.workers).ingest_hours


def plan_table(scale: Document, store: Document, infer: Document, lits: Document) -> str:
    """Format the cost of the known collections as Markdown, from records of one machine."""
    inputs = read_inputs(scale, store, infer)
    lines = [table_row(HEADER), table_row(["---"] * len(HEADER))]
    lines += [table_row([row[0], *map(format_three_digits, row[1:])]) for row in plan_rows(KNOWN, inputs, WORKERS)]
    note = (
        f"Inputs: {1000 * inputs.slice_seconds:.2f} ms of a core a slice and {inputs.scan_seconds:.2f} s a scan, "
        f"a worker beside another at {inputs.share:.2f} of its pace alone, "
        f"{1000 * inputs.task_seconds:.2f} ms a task of the scheduler, "
        f"{inputs.slice_bytes / 1000:,.0f} kB a slice in the store, {inputs.reads_per_second:,.0f} reads/s of a core, "
        f"{format_three_digits(inputs.labelled_per_second)} slices/s through the default network "
        f"on the {inputs.cores} cores of a machine without a GPU. The ingest of LiTS's size, measured whole, took "
        f"{measured_over_model(inputs, lits):.2f} of what the model says. "
        f"On {format_processor(read_record(ScaleRecord, scale).machine)}."
    )
    return "\n".join([*lines, "", note])
