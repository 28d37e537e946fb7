"""Records of training, export, inference, distances and other tools. Units are in the names of the fields."""

from collections.abc import Mapping

from msgspec import Struct, field

from slicemill.bench.schema.base import BenchmarkRecord, ClockRate, ClockRatios, Document, Headline, Rate, StageRecord
from slicemill.infer.run.timing import StageTime

WholeStages = dict[str, Mapping[str, StageTime]]
"""Times of the pipeline's stages by contender."""


class CaseCost(Struct, frozen=True, kw_only=True):
    """What one scan costs a contender."""

    seconds: float
    """By the clock, the time of a round over its scans."""
    cpu_seconds: float
    peak_mib: int
    """Peak memory of a process that does the work of a round."""


class CaseCosts(Struct, frozen=True, kw_only=True):
    """What one scan costs, by contender."""

    cases: int
    """Scans of a round."""
    slices: int
    """Slices of a round."""
    contenders: Mapping[str, CaseCost]


class WholeRun(Struct, frozen=True, kw_only=True):
    """Inference with one network, from files to files."""

    results: Mapping[str, ClockRate]
    case_costs: CaseCosts | None = None
    """None in early records."""
    over_bare_session: Mapping[str, ClockRatios] = field(name="of the bare session")
    """Rates over that of the bare session."""
    over_bare_lanes: Mapping[str, ClockRatios] = field(name="of the bare lanes", default_factory=dict)
    """Rates over that of a batch on each core; missing in early records."""
    gflop_a_slice: float | None = None
    stages: WholeStages


class HostCost(Struct, frozen=True, kw_only=True):
    """Work other than the network."""

    results: Mapping[str, ClockRate]
    cpu_milliseconds_a_slice: Mapping[str, float]
    """By contender."""
    times_less: float
    """CPU time of the usual script over slicemill's."""


class EngineRates(Struct, frozen=True, kw_only=True):
    """onnxruntime and torch with the same network."""

    results: Mapping[str, ClockRate]
    labels_differing: float
    """Share of the labels."""
    over_torch: ClockRatios = field(name="over torch eager")
    over_torch_channels_last: ClockRatios = field(name="over torch eager, channels last")


class ComponentRates(Struct, frozen=True, kw_only=True):
    """Connected components, slicemill's and scipy's."""

    results: Mapping[str, ClockRate]
    equal: bool
    """Whether both gave the same labels."""
    over_scipy: ClockRatios = field(name="over scipy")


class ManyScans(Struct, frozen=True, kw_only=True):
    """One call for a folder of small scans."""

    scans: int
    results: Mapping[str, Rate]
    over_session: ClockRatios = field(name="over a session called scan by scan")
    over_command: ClockRatios = field(name="over the command called scan by scan")


class InferResults(Struct, frozen=True, kw_only=True):
    """Results of `bench infer`."""

    whole: Mapping[str, WholeRun]
    """By network."""
    host: HostCost
    engines: EngineRates
    components: ComponentRates
    many: ManyScans


class InferRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="infer"):
    """Record of `bench infer`."""

    unit: str
    slices: int
    """Slices that pass the default network in a round."""
    rounds: int
    page_cache: str
    clock: str
    results: InferResults
    headline: Headline


class NetworkSize(Struct, frozen=True, kw_only=True):
    """Size of a U-Net."""

    width: int
    depth: int
    context: int
    norm: str


class TrainRecord(StageRecord, frozen=True, kw_only=True, tag="train"):
    """Record of `bench train`."""

    subject: str
    page_cache: str
    network: NetworkSize
    precision: str
    device: str
    of_bare: Mapping[str, float | None] = field(name="of the bare forward and backward")
    """Rates over that of the bare network."""
    waiting: float = field(name="share of time spent waiting for the loader")
    peak_gpu_mib: int | None
    """None without a GPU."""


class ExportRecord(StageRecord, frozen=True, kw_only=True, tag="export"):
    """Record of `bench export`."""

    subject: str
    model_mb: float
    proof_slices: int
    """Slices on which onnxruntime and torch were compared."""
    parity: Document


class MeasureRecord(StageRecord, frozen=True, kw_only=True, tag="measure"):
    """Record of `bench measure`."""

    slices: int
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
    """Memory of one mask."""
    memory_mib: float
    """Additional memory of slicemill."""
    peak_mib: float


class PeersRecord(StageRecord, frozen=True, kw_only=True, tag="peers"):
    """Record of `bench peers --kind loading`."""

    page_cache: str
    cases: int
    slices: int
    """Slices of each scan."""
    not_run: Mapping[str, str]
    """Peer -> reason."""


class ScanRate(ClockRate, frozen=True, kw_only=True):
    """A contender of `bench peers --kind inference`."""

    scans_per_second: float
    cpu_milliseconds: float


class PeersInferenceRecord(PeersRecord, frozen=True, kw_only=True, tag="peers inference"):
    """Record of `bench peers --kind inference`."""

    results: Mapping[str, ScanRate]
    batch_of_peers: int | None = None
    """Slices per batch of a peer."""
    dice: Mapping[str, Mapping[str, float]]
    """Peer -> label -> Dice with slicemill's masks."""


class RangeEngine(Struct, frozen=True, kw_only=True):
    """The organ's range by another engine than onnxruntime."""

    over_all: ClockRatios = field(name="over all slices by onnxruntime")
    labels_differing: float
    """Share of the voxels whose label is not that of onnxruntime."""


class RangeRow(Struct, frozen=True, kw_only=True):
    """Scans of one kind, with all slices labeled and with the organ's range."""

    slices: int
    """Slices of the scans."""
    labeled: int
    """Slices that the network labels in the organ's range."""
    liver_share: float
    """Share of the slices with liver or tumor."""
    equal: bool
    """Whether the masks are equal, voxel by voxel."""
    results: Mapping[str, ClockRate]
    over_all: ClockRatios = field(name="over all slices")
    of_network: ClockRatios = field(name="of the bare network on the slices labeled")
    engines: Mapping[str, RangeEngine] = field(default_factory=dict)
    """By name."""


class RangeRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="infer-range"):
    """Record of `slicemill.bench.stages.infer_range`."""

    unit: str
    rounds: int
    load: float
    """Processes that ran or waited for a core, mean of the minute before the start; 0 on an idle machine."""
    rows: Mapping[str, RangeRow]
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Engine -> reason."""


class OpenvinoRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="openvino"):
    """Record of `slicemill.bench.stages.infer_openvino`."""

    unit: str
    precision: str
    results: Mapping[str, Rate]
    over_baseline: float = field(name="over onnxruntime fp32")
    """By the clock."""
    cpu_over_baseline: float | None = field(name="over onnxruntime fp32, CPU time", default=None)
    """None in early records."""
    labels_differing: float
    """Share of the labels."""
    dice_loss: Mapping[str, float]
