"""Records of ingest, store, loader, scaling and small comparisons. Units are in the names of the fields."""

from collections.abc import Mapping

from msgspec import Struct, field

from slicemill.bench.schema.base import BenchmarkRecord, ClockRatios, Headline, Rate, StageRecord


class IngestPeer(Struct, frozen=True, kw_only=True):
    """Another way to prepare a case."""

    times_ours: float | None
    """Its CPU time over slicemill's; None if it was not measured."""
    what: str
    """What it does, and what it leaves out."""


class IngestFormat(Struct, frozen=True, kw_only=True):
    """Ingest of one file format."""

    slices_per_second: float
    milliseconds_a_slice: Mapping[str, float]
    """CPU time by contender."""
    peers: Mapping[str, IngestPeer]
    cpu_over_kernels: float
    """CPU time of the ingest over the sum of its kernels."""
    shares: Mapping[str, float]
    """CPU time of each kernel over that of the ingest."""
    two_workers: float | None
    """Rate of two workers over that of one; None on a single core."""


class ThreadGain(Struct, frozen=True, kw_only=True):
    """One case with several threads."""

    cores: int
    times_sooner: float
    """Time with one thread over time with one per core."""


class StoreSize(Struct, frozen=True, kw_only=True):
    """Size of a store of a real scan."""

    bytes: int
    files: int
    over_nii_gz: float
    """Its bytes over those of the .nii.gz file."""


class RealScan(Struct, frozen=True, kw_only=True):
    """Store size of a real scan."""

    series: str
    shape: tuple[int, ...]
    """Voxels along z, y, x."""
    nii_gz_bytes: int
    compact: StoreSize
    fast: StoreSize


class MemoryPeak(Struct, frozen=True, kw_only=True):
    """Peak memory of an ingest worker."""

    alone_mib: int
    """Without Dask."""
    dask_worker_mib: int | None
    """As a Dask worker; None if the command did not report it."""


class IngestRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="ingest"):
    """Record of `bench ingest`."""

    subject: str | None = None
    slice: tuple[int, int]
    """Pixels along y and x."""
    slices: int
    rounds: int
    page_cache: str
    clock: str
    formats: Mapping[str, IngestFormat]
    results: Mapping[str, Rate] | None = None
    """Results of .nii.gz."""
    headline: Headline | None = None
    threads: ThreadGain
    """One .nii case with several threads."""
    memory: Mapping[str, MemoryPeak] | None = None
    """Only with --memory."""
    real_size: RealScan | None = None
    """Only with --dicom."""


class Trial(Struct, frozen=True, kw_only=True):
    """The work with one value of a constant."""

    time: float
    """Time over that with the chosen value."""
    bytes: float | None = None
    """Output bytes over those with the chosen value; None where the constant does not change them."""


class ConstantTrials(Struct, frozen=True, kw_only=True):
    """The work with several values of a constant."""

    chosen: int
    """The value in the code."""
    what: str
    values: Mapping[str, Trial]


class ConstantsRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="constants"):
    """Record of `bench constants`."""

    subject: str
    rounds: int
    constants: Mapping[str, ConstantTrials]
    """By dotted name."""


class StoreBytes(Struct, frozen=True, kw_only=True):
    """Size of one case: arrays by profile, and voxels."""

    compact: int
    fast: int
    raw: int


class ReadingRecord(StageRecord, frozen=True, kw_only=True):
    """Readers of the slices of one scan."""

    subject: str
    page_cache: str
    slices: int
    ratios: Mapping[str, float]
    """Ratios of slicemill's rate, by baseline."""


class StoreRecord(ReadingRecord, frozen=True, kw_only=True, tag="store"):
    """Record of `bench store`."""

    bytes: StoreBytes


class Waits(Struct, frozen=True, kw_only=True):
    """Waits of a network for its batches."""

    batches: int
    milliseconds_of_work: float
    """Time of the network per batch."""
    longest_wait_milliseconds: float
    share_of_time: float


class LoaderRecord(ReadingRecord, frozen=True, kw_only=True, tag="loader"):
    """Record of `bench loader`."""

    waited: Waits


class LitsRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="ingest --scale lits"):
    """Record of `bench ingest --scale lits`."""

    page_cache: str
    format: str
    workers: int
    cases: int
    slices: int
    raw_gb: float
    """Voxels of images and masks."""
    source_gb: float
    store_gb: float
    seconds: float
    slices_per_second: float
    raw_gb_per_second: float
    peak_worker_mib: int | None
    """None if the command did not report it."""


class LoopCount(Struct, frozen=True, kw_only=True):
    """Count of a loop."""

    what: str
    instructions_a_slice: int
    runs: tuple[int, int]
    """Instructions of the runs with few and with many slices."""


class InstructionsRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="instructions"):
    """Record of `bench instructions`."""

    counter: str
    """The tool that counted: perf or valgrind."""
    unit: str
    results: Mapping[str, LoopCount]


class Line(Struct, frozen=True, kw_only=True):
    """y = start + slope * x."""

    start: float
    slope: float
    r2: float
    """Coefficient of determination; 1 if all points are exactly on the line."""


class ScanCost(Struct, frozen=True, kw_only=True):
    """Cost of the ingest of one scan, in its own process."""

    cpu_seconds: float
    peak_mib: float


class BySlices(Struct, frozen=True, kw_only=True):
    """Cost by a number of slices or cases, and the fitted lines."""

    measured: Mapping[str, ScanCost]
    cpu_seconds: Line
    peak_mib: Line


class ByCases(Struct, frozen=True, kw_only=True):
    """Seconds of the command by the number of scans, and the fitted line."""

    measured: Mapping[str, float]
    seconds: Line


class SchedulerCost(Struct, frozen=True, kw_only=True):
    """Cost of Dask's scheduler for tasks that do nothing."""

    tasks: int
    workers: int
    milliseconds_a_task: float


class ScaleRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="scale"):
    """Record of `bench scale`."""

    subject: str
    slices: BySlices
    cases: ByCases
    workers: Mapping[str, float]
    """Seconds of the command on the largest collection, by workers."""
    scheduler: SchedulerCost
    files: ByCases | None = None
    """CPU seconds of `ingest --dry-run` by the number of files; None in records of earlier versions."""
    growth: Mapping[str, BySlices] | None = None
    """Cost of commands on tiny cases by their number, by what they do; None in records of earlier versions."""


class ComponentTimes(Struct, frozen=True, kw_only=True):
    """Both ways on one mask with one neighborhood."""

    components: int
    seconds: Mapping[str, float]
    """Median time by contender."""
    over_runs: Mapping[str, ClockRatios] = field(name="over runs")
    """Time of each contender over that of runs."""


class ComponentsRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="components"):
    """Record of `bench components`."""

    shape_zyx: tuple[int, int, int]
    rounds: int
    masks: Mapping[str, Mapping[str, ComponentTimes]]
    """By mask and number of neighbors."""


class VolumeFormat(Struct, frozen=True, kw_only=True):
    """Readers of one format."""

    megabytes: float
    """Size of the files, MB."""
    cpu_milliseconds: Mapping[str, float]
    """Median CPU time a slice by reader."""
    ours_over: Mapping[str, ClockRatios] = field(name="ours over")
    """How many times as fast as each peer ours is."""


class VolumesRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="volumes"):
    """Record of `bench volumes`."""

    subject: str
    slices: int
    rounds: int
    formats: Mapping[str, VolumeFormat]


class DocumentsRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="documents"):
    """Record of `bench documents`."""

    rounds: int
    added_ms: Mapping[str, float]
    """Time that a library adds to the start of Python, median."""
    ratio: float | None = field(name="pydantic over msgspec")
    """Median over the rounds; None if pydantic is not installed."""


class ViewerRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="viewer"):
    """Record of `bench viewer`."""

    slices: int
    side: int
    """Pixels along a slice's side."""
    rounds: int
    browser: str
    """Version of Chromium."""
    load: tuple[float, float]
    """Load of the machine over a minute, before and after: processes that want a core."""
    slices_per_second: float
    """Scrolled slices with outlines, median of the rounds."""
    frame_ms: float
    """Median time of a frame while scrolling."""
    slow_frame_ms: float
    """Time that 95 % of these frames do not exceed."""
    turn_ms: float
    """Median time of a frame while the 3-D picture is turned."""
