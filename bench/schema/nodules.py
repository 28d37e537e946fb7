"""Records of the studies of nodules."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from slicemill.bench.schema.base import BenchmarkRecord


class ContextScore(Struct, frozen=True, kw_only=True):
    """A network of `bench nodule-context`."""

    context: int
    """Slices that it sees."""
    seed: int
    cpm: float
    sensitivity: Sequence[float]
    """At 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan."""
    found: int
    """Nodules among all candidates; the CPM takes the 100 most probable of a scan."""
    false_alarms: int
    """Candidates in no nodule and no excluded finding, of all scans."""
    over_first: float | None
    """CPM minus that of the first context with the same seed; None for the first."""
    over_first_interval: Sequence[float] | None
    """95 % bootstrap interval over patients."""


class NoduleContextRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="nodule-context"):
    """Record of `bench nodule-context`."""

    scans: int
    nodules: int
    steps: int
    width: int
    context_spacing_mm: float
    scores: Sequence[ContextScore]


class RuleScore(Struct, frozen=True, kw_only=True):
    """A rule of `bench nodule-rules`."""

    rule: str
    cpm: float
    sensitivity: Sequence[float]
    """At 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan."""


class NoduleRulesRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="nodule-rules"):
    """Record of `bench nodule-rules`."""

    cases: int
    seed: int
    size: int
    findings: int
    limit: float
    """CPM that the best rule must stay below."""
    settings: Sequence[RuleScore]
    """All rules, the best first."""


class BandScore(Struct, frozen=True, kw_only=True):
    """The nodules of a band of diameters."""

    nodules: int
    cpm: float | None
    """None without nodules."""
    cpm_interval: Sequence[float] | None
    """95 % bootstrap interval over scans."""


class NodulesScore(Struct, frozen=True, kw_only=True):
    """One ranking of the candidates of `bench nodules`."""

    seed: int
    """Of the trainings."""
    ranked_by: str
    """segmentation: its mean probability; classifier: its probability, calibrated together with that mean."""
    cpm: float
    cpm_interval: Sequence[float]
    """95 % bootstrap interval over scans."""
    sensitivity: Sequence[float]
    """At 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan."""
    by_diameter: Mapping[str, BandScore]
    """Band of diameters -> its nodules."""
    found: int
    """Nodules among all candidates; the CPM takes the 100 most probable of a scan."""
    false_alarms: int
    """Candidates in no nodule and no excluded finding, of all scans."""
    gain: float | None
    """CPM minus that of the segmentation with the same seed; None for the segmentation."""
    gain_interval: Sequence[float] | None
    """95 % bootstrap interval over scans."""


class MalignancyScore(Struct, frozen=True, kw_only=True):
    """Malignancy of nodules at their annotated centers."""

    seed: int
    """Of the trainings."""
    nodules: int
    malignant: int
    auc_diameter: float
    auc_output: float
    """Of the classifier's output alone."""
    auc_both: float | None
    """Of both, as `tune` fitted them; None if it had too few nodules for that."""
    gain: float | None
    """AUC of both minus that of the diameter."""
    gain_interval: Sequence[float] | None
    """95 % bootstrap interval over scans."""


class NodulesRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="nodules"):
    """Record of `bench nodules`."""

    chests_version: int
    """Version of the synthetic chests (docs/guides/chest-phantoms.md)."""
    size: int
    """Pixels along a slice's side."""
    chests: int
    """Training and validation chests of the segmentation."""
    unseen: int
    """Further chests of the classifier."""
    test_chests: int
    malignancy_chests: int
    """Chests of ten nodules each, whose malignancy is judged."""
    seed: int
    """Of the chests to train on."""
    test_seed: int
    """Of the test chests; those of malignancy have the next one."""
    minutes: float
    """Time limit of the segmentation's training."""
    crop_minutes: float
    """Time limit of the classifier's training."""
    malignancy_minutes: float
    """Time limit of the training of malignancy."""
    nodules: int
    """In the test chests."""
    scores: Sequence[NodulesScore]
    malignancy: Sequence[MalignancyScore]
