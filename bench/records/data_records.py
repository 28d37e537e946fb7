"""Types of the record fields in the tables of ingest, store and loader.

Units are in the names of the fields. An attribute docstring explains what its name does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slicemill.bench.records.schema import MeasuredRecord, Rate


@dataclass(frozen=True, kw_only=True)
class IngestPeer:
    """Another way to prepare a case."""

    times_ours: float | None
    """Its CPU time over slicemill's; None if it was not measured."""
    what: str
    """What it does, and what it leaves out."""


@dataclass(frozen=True, kw_only=True)
class IngestFormat:
    """Ingest of one file format."""

    milliseconds_a_slice: Mapping[str, float]
    """CPU time of a slice by contender, ms."""
    peers: Mapping[str, IngestPeer]
    shares: Mapping[str, float]
    """CPU time of each kernel over that of the ingest."""
    cpu_over_kernels: float | None
    """CPU time of the ingest over the sum of its kernels."""
    two_workers: float | None
    """Rate of two workers over one."""


@dataclass(frozen=True, kw_only=True)
class ThreadGain:
    """One case with several threads."""

    cores: int
    times_sooner: float
    """Time with one thread over time with all."""


@dataclass(frozen=True, kw_only=True)
class StoreSize:
    """A store of a real scan."""

    over_nii_gz: float
    """Its bytes over those of the .nii.gz file."""
    files: int


@dataclass(frozen=True, kw_only=True)
class RealScan:
    """Store size of a real scan."""

    series: str
    shape: tuple[int, ...]
    """Voxels along z, y, x."""
    compact: StoreSize
    fast: StoreSize


@dataclass(frozen=True, kw_only=True)
class MemoryPeak:
    """Peak memory of an ingest worker."""

    alone_mib: int
    """Without Dask, MiB."""
    dask_worker_mib: int | None
    """As a Dask worker, MiB; None if the command did not report it."""


@dataclass(frozen=True, kw_only=True)
class IngestRecord(MeasuredRecord):
    """Record of `bench ingest`."""

    slices: int
    rounds: int
    formats: Mapping[str, IngestFormat]
    threads: ThreadGain
    """One .nii case with several threads."""
    real_size: RealScan | None = None
    """Only with --dicom."""
    memory: Mapping[str, MemoryPeak] | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The work with one value of a constant."""

    time: float
    """Time over that with the chosen value."""
    bytes: float | None = None
    """Output bytes over those with the chosen value, where the constant changes them."""


@dataclass(frozen=True, kw_only=True)
class ConstantTrials:
    """The work with several values of a constant."""

    chosen: int
    """The value in the code."""
    what: str
    """The work that was timed."""
    values: Mapping[str, Trial]


@dataclass(frozen=True, kw_only=True)
class ConstantsRecord(MeasuredRecord):
    """Record of `bench constants`."""

    subject: str
    rounds: int
    constants: Mapping[str, ConstantTrials]
    """Results by dotted name of the constant."""


@dataclass(frozen=True, kw_only=True)
class StoreBytes:
    """Size of one case."""

    raw: int
    compact: int
    fast: int


@dataclass(frozen=True, kw_only=True)
class StoreRecord(MeasuredRecord):
    """Record of `bench store`."""

    results: Mapping[str, Rate]
    ratios: Mapping[str, float]
    """Ratios of slicemill's reader, by baseline."""
    bytes: StoreBytes


@dataclass(frozen=True, kw_only=True)
class LoaderWait:
    """Time that a network waits for the loader."""

    milliseconds_of_work: float
    """Time of the network with a batch, ms."""
    share_of_time: float
    """Waiting time over all time."""
    batches: int
    longest_wait_milliseconds: float


@dataclass(frozen=True, kw_only=True)
class LoaderRecord(MeasuredRecord):
    """Record of `bench loader`."""

    results: Mapping[str, Rate]
    ratios: Mapping[str, float]
    waited: LoaderWait


@dataclass(frozen=True, kw_only=True)
class LitsRecord(MeasuredRecord):
    """Record of `bench ingest --scale lits`."""

    cases: int
    slices: int
    raw_gb: float
    source_gb: float
    store_gb: float
    format: str
    page_cache: str
    seconds: float
    workers: int
    slices_per_second: float
    """Slices per second, all workers."""
    raw_gb_per_second: float
    peak_worker_mib: int | None
    """Peak memory of a worker, MiB; None if the command did not report it."""


@dataclass(frozen=True, kw_only=True)
class LoopCount:
    """Instructions of one loop."""

    what: str
    instructions_a_slice: float


@dataclass(frozen=True, kw_only=True)
class InstructionsRecord(MeasuredRecord):
    """Record of `bench instructions`."""

    counter: str
    """The tool that counted: perf or valgrind."""
    unit: str
    results: Mapping[str, LoopCount]


@dataclass(frozen=True, kw_only=True)
class LineFit:
    """A straight line through measurements."""

    start: float
    """Value at zero."""
    slope: float
    """Increase per unit."""
    r2: float
    """Coefficient of determination."""


@dataclass(frozen=True, kw_only=True)
class SliceGrowth:
    """Growth with the slices of a scan."""

    measured: Mapping[str, Any]
    """Measurements by number of slices."""
    cpu_seconds: LineFit
    peak_mib: LineFit


@dataclass(frozen=True, kw_only=True)
class ScanGrowth:
    """Growth with the number of scans."""

    measured: Mapping[str, float]
    seconds: LineFit


@dataclass(frozen=True, kw_only=True)
class SchedulerCost:
    """Cost of Dask's scheduler."""

    tasks: int
    milliseconds_a_task: float


@dataclass(frozen=True, kw_only=True)
class ScaleRecord(MeasuredRecord):
    """Record of `bench scale`."""

    slices: SliceGrowth
    cases: ScanGrowth
    scheduler: SchedulerCost
    workers: Mapping[str, float] = field(default_factory=dict)
    """Wall time by number of workers, s."""
    files: ScanGrowth | None = None
    """CPU time of `ingest --dry-run` by number of files, s; None in records of earlier versions."""
