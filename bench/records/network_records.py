"""Types of the record fields in the tables of networks. A `Struct` renames keys that contain spaces.

Units are in the names of the fields. An attribute docstring explains what its name does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct
from msgspec import field as key

from slicemill.bench.records.schema import Headline, MeasuredRecord, Processor, Rate


@dataclass(frozen=True, kw_only=True)
class ClockRatios:
    """Speedup by each clock."""

    wall: float | None = None
    """By the wall clock; None if it was not compared."""
    cpu: float | None = None
    """By CPU time; None if it was not compared."""


class NetworkRates(Struct, frozen=True, kw_only=True):
    """Inference with one network."""

    results: Mapping[str, Rate]
    over_bare_session: Mapping[str, ClockRatios] = key(name="of the bare session")
    """Rates over that of the bare session."""
    over_bare_lanes: Mapping[str, ClockRatios] = key(name="of the bare lanes", default_factory=dict)
    """Rates over that of a batch on each core."""


@dataclass(frozen=True, kw_only=True)
class HostCost:
    """Work other than the network."""

    times_less: float
    """CPU time of the usual script over slicemill's."""
    cpu_milliseconds_a_slice: Mapping[str, float]
    """CPU time of a slice by contender, ms."""


class EngineRatios(Struct, frozen=True, kw_only=True):
    """onnxruntime and torch with the same network."""

    over_torch: ClockRatios = key(name="over torch eager")
    """Rate of onnxruntime over torch's."""
    over_torch_channels_last: ClockRatios = key(name="over torch eager, channels last")
    """The same with torch's channels-last layout."""


class ComponentRatios(Struct, frozen=True, kw_only=True):
    """Connected components, slicemill's and scipy's."""

    equal: bool
    """Whether both gave the same labels."""
    over_scipy: ClockRatios = key(name="over scipy")
    """slicemill's rate over scipy's."""


class ManyScansRatios(Struct, frozen=True, kw_only=True):
    """One call for a folder of small scans."""

    over_session: ClockRatios = key(name="over a session called scan by scan")
    """Over one session that is called once per scan."""
    over_command: ClockRatios = key(name="over the command called scan by scan")
    """Over one command per scan."""


@dataclass(frozen=True, kw_only=True)
class InferResults:
    """Results of `bench infer`."""

    whole: Mapping[str, NetworkRates]
    """From files to files, by network."""
    host: HostCost
    engines: EngineRatios
    components: ComponentRatios
    many: ManyScansRatios


@dataclass(frozen=True, kw_only=True)
class InferRecord(MeasuredRecord):
    """Record of `bench infer`."""

    rounds: int
    results: InferResults


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Size of a U-Net."""

    width: int
    depth: int


class TrainRecord(Struct, frozen=True, kw_only=True):
    """Record of `bench train`."""

    unit: str
    network: NetworkSize
    precision: str
    """Number format of the training."""
    device: str
    results: Mapping[str, Rate]
    over_bare_network: Mapping[str, float | None] = key(name="of the bare forward and backward")
    """Rates over that of the bare network."""
    waiting_share: float = key(name="share of time spent waiting for the loader")
    """Waiting time over all time."""
    machine: Processor


@dataclass(frozen=True, kw_only=True)
class MeasureRecord(MeasuredRecord):
    """Record of `bench measure`."""

    shape_zyx: tuple[int, int, int]
    objects: int
    """Liver and lesions."""
    rounds: int
    seconds_ours: float
    """CPU seconds of slicemill, all objects."""
    seconds_boxes: float
    """CPU seconds of transforms of boxes."""
    seconds_medpy_an_object: tuple[float, ...]
    """CPU seconds of medpy's method for each object tried."""
    times_boxes: float
    """Time of the boxes over slicemill's."""
    times_medpy: float
    """Time of medpy's method over slicemill's, extrapolated."""
    largest_difference_mm: float
    scan_mib: float
    """Size of a mask, MiB."""
    memory_mib: float
    """Extra memory of slicemill, MiB."""


@dataclass(frozen=True, kw_only=True)
class ExportRecord(MeasuredRecord):
    """Record of `bench export`."""

    results: Mapping[str, Rate]
    model_mb: float
    proof_slices: int
    """Slices on which onnxruntime and torch were compared."""
    headline: Headline


@dataclass(frozen=True, kw_only=True)
class PeersRecord(MeasuredRecord):
    """Record of `bench peers`."""

    cases: int
    slices: int
    """Slices of each scan."""
    page_cache: str
    headline: Headline
    not_run: Mapping[str, str]
    """Peers that did not run, with the reason."""


@dataclass(frozen=True, kw_only=True)
class ScanRate:
    """A contender of `bench peers --kind inference`."""

    scans_per_second: float
    per_second: float
    cpu_milliseconds: float


@dataclass(frozen=True, kw_only=True)
class PeersInferenceRecord(PeersRecord):
    """Record of `bench peers --kind inference`."""

    results: Mapping[str, ScanRate]
    dice: Mapping[str, Mapping[str, float]]
    """Dice of each peer's labels with slicemill's, by label name."""
