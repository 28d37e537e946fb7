"""What the tables show of benchmarks of ingest, store and loader, as types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slicemill.bench.records.schema import Measured, Rate


@dataclass(frozen=True, kw_only=True)
class IngestPeer:
    """Another way to prepare a case."""

    times_ours: float | None
    """Its CPU time over ours; None if it was not measured."""
    what: str
    """What it does, and what it leaves out."""


@dataclass(frozen=True, kw_only=True)
class IngestFormat:
    """Ingest of one file format."""

    milliseconds_a_slice: Mapping[str, float]
    """CPU time of a slice by contender, ms."""
    peers: Mapping[str, IngestPeer]
    """Peers by name."""
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
    """Threads used."""
    times_sooner: float
    """Time with one thread over time with all."""


@dataclass(frozen=True, kw_only=True)
class StoreSize:
    """A store of a real scan."""

    over_nii_gz: float
    """Its bytes over those of the .nii.gz file."""
    files: int
    """Files of the case."""


@dataclass(frozen=True, kw_only=True)
class RealScan:
    """Store size of a real scan."""

    series: str
    """Name of the DICOM series."""
    shape: tuple[int, ...]
    """Voxels along z, y, x."""
    compact: StoreSize
    """Compact profile."""
    fast: StoreSize
    """Fast profile."""


@dataclass(frozen=True, kw_only=True)
class MemoryPeak:
    """Peak memory of an ingest worker."""

    alone_mib: int
    """Without Dask, MiB."""
    dask_worker_mib: int | None
    """As a Dask worker, MiB; None if the command did not report it."""


@dataclass(frozen=True, kw_only=True)
class IngestRecord(Measured):
    """Record of `bench ingest`."""

    slices: int
    """Slices of the case."""
    rounds: int
    """Interleaved rounds."""
    formats: Mapping[str, IngestFormat]
    """Results by file suffix."""
    threads: ThreadGain
    """One .nii case with several threads."""
    real_size: RealScan | None = None
    """Only with --dicom."""
    memory: Mapping[str, MemoryPeak] | None = None
    """Only with --memory."""


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
    """Results by value."""


@dataclass(frozen=True, kw_only=True)
class ConstantsRecord(Measured):
    """Record of `bench constants`."""

    subject: str
    """The scan."""
    rounds: int
    """Interleaved rounds."""
    constants: Mapping[str, ConstantTrials]
    """Results by dotted name of the constant."""


@dataclass(frozen=True, kw_only=True)
class StoreBytes:
    """Size of one case."""

    raw: int
    """Voxels, bytes."""
    compact: int
    """Store of the compact profile, bytes."""
    fast: int
    """Store of the fast profile, bytes."""


@dataclass(frozen=True, kw_only=True)
class StoreRecord(Measured):
    """Record of `bench store`."""

    results: Mapping[str, Rate]
    """Rates by reader."""
    ratios: Mapping[str, float]
    """Ratios of our reader, by what they are over."""
    bytes: StoreBytes
    """Size of the case."""


@dataclass(frozen=True, kw_only=True)
class LoaderWait:
    """How long a network waits for the loader."""

    milliseconds_of_work: float
    """Time of the network with a batch, ms."""
    share_of_time: float
    """Waiting time over all time."""
    batches: int
    """Batches loaded."""
    longest_wait_milliseconds: float
    """Longest wait for one batch, ms."""


@dataclass(frozen=True, kw_only=True)
class LoaderRecord(Measured):
    """Record of `bench loader`."""

    results: Mapping[str, Rate]
    """Rates by loader."""
    ratios: Mapping[str, float]
    """Ratios of our ring with one thread."""
    waited: LoaderWait
    """Waiting of a network."""


@dataclass(frozen=True, kw_only=True)
class LitsRecord(Measured):
    """Record of `bench ingest --scale lits`."""

    cases: int
    """Cases ingested."""
    slices: int
    """Their slices."""
    raw_gb: float
    """Voxels, GB."""
    source_gb: float
    """Source files, GB."""
    store_gb: float
    """Store, GB."""
    format: str
    """Suffix of the source files."""
    page_cache: str
    """What the page cache held."""
    seconds: float
    """Wall time of the command, s."""
    workers: int
    """Worker processes."""
    slices_per_second: float
    """Slices per second, all workers."""
    raw_gb_per_second: float
    """Voxels per second, GB/s."""
    peak_worker_mib: int | None
    """Peak memory of a worker, MiB; None if the command did not report it."""


@dataclass(frozen=True, kw_only=True)
class LoopCount:
    """Instructions of one loop."""

    what: str
    """What the loop does."""
    instructions_a_slice: float
    """Instructions per slice."""


@dataclass(frozen=True, kw_only=True)
class InstructionsRecord(Measured):
    """Record of `bench instructions`."""

    counter: str
    """The tool that counted: perf or valgrind."""
    unit: str
    """Unit of work."""
    results: Mapping[str, LoopCount]
    """Counts by loop."""


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
    """CPU time of an ingest, s."""
    peak_mib: LineFit
    """Peak memory, MiB."""


@dataclass(frozen=True, kw_only=True)
class ScanGrowth:
    """Growth with the number of scans."""

    measured: Mapping[str, float]
    """Wall time by number of scans, s."""
    seconds: LineFit
    """Wall time of the command, s."""


@dataclass(frozen=True, kw_only=True)
class SchedulerCost:
    """Cost of Dask's scheduler."""

    tasks: int
    """Empty tasks."""
    milliseconds_a_task: float
    """Time of a task, ms."""


@dataclass(frozen=True, kw_only=True)
class ScaleRecord(Measured):
    """Record of `bench scale`."""

    slices: SliceGrowth
    """Growth with slices."""
    cases: ScanGrowth
    """Growth with scans."""
    scheduler: SchedulerCost
    """Empty tasks."""
    workers: Mapping[str, float] = field(default_factory=dict)
    """Wall time by number of workers, s."""
