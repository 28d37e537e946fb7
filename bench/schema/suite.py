"""Record of `bench all`: the parts of the stages' records that it shows."""

from collections.abc import Mapping

from msgspec import Struct, field

from slicemill.bench.schema.base import BenchmarkRecord, Headline, LimitsRecord, MachineLimit
from slicemill.common.machine import Machine


class Stage(Struct, frozen=True, kw_only=True):
    """The part of every stage's record that the suite shows."""

    headline: Headline
    unit: str = "slices"
    """Unit of work; a comma may add how it is done."""
    clock: str = "wall"
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Peer -> reason."""

    @property
    def unit_name(self) -> str:
        """Return the unit without what follows the comma."""
        return self.unit.split(",")[0]

    @property
    def is_cpu_time(self) -> bool:
        """Return whether CPU time was counted, not the wall clock."""
        return self.clock.startswith("CPU")


class SuiteRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="all"):
    """Record of `bench all`."""

    quick: bool
    """Whether it was a quick run of 3 rounds."""
    limits: LimitsRecord | None
    """None if they were not measured."""
    stages: Mapping[str, Stage]
    failed: Mapping[str, str]
    """Stage -> reason."""
    machine: Machine

    @property
    def machine_limits(self) -> Mapping[str, MachineLimit]:
        """Return the limits by name; empty if they were not measured."""
        return self.limits.results if self.limits else {}
