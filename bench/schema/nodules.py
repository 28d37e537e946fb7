"""Records of the studies of nodules."""

from collections.abc import Sequence

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
