"""Types shared by the records of several benchmarks. Each declares the part of the JSON document that is shown."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from slicemill.common.documents import from_document
from slicemill.common.files import to_json
from slicemill.common.machine import Machine

Document = Mapping[str, Any]
"""A record as in its JSON file."""
T = TypeVar("T")


def read_record(kind: type[T], document: Document) -> T:
    """Read the part of a record that `kind` declares.

    The document may come from a file or from a benchmark that has just run: numpy scalars and tuples are
    converted as in JSON.

    Raises
    ------
    InputError
        A value is missing or has another type.
    """
    where = f"record of bench {document.get('benchmark', '?')}"
    return from_document(kind, json.loads(to_json(document)), where, is_part=True)


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor that a figure was measured on."""

    cpu: str
    """Name of the processor."""
    cores: int
    """Cores that the benchmark could use."""


def read_processor(description: Mapping[str, Any]) -> Processor:
    """Read the processor of a machine description."""
    return from_document(Processor, description, "machine description", is_part=True)


@dataclass(frozen=True, kw_only=True)
class MeasuredRecord:
    """A record of a benchmark."""

    machine: Processor
    """The processor it was measured on."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A contender's rate."""

    per_second: float
    """Units of work per second, median of the rounds."""
    seconds_median: float | None = None
    """Seconds of a round."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The contender that does only the unavoidable work."""

    name: str
    """Name of the contender."""
    per_second: float
    """Units of work per second."""
    fraction: float
    """slicemill's rate over the limit's."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another tool that does the same work."""

    per_second: float
    """Units of work per second."""
    times: float
    """slicemill's rate over the peer's."""
    what: str
    """Differences of the peer from slicemill."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Result of a stage: slicemill's rate, the limit, and the peers."""

    ours: str
    """Name of slicemill's contender."""
    per_second: float
    """Units of work per second of slicemill's contender."""
    limit: Limit
    """The contender that is the upper limit."""
    peers: Mapping[str, Peer]
    """Other tools by name."""
    verified: str
    """The check after the measurement."""
    gflop: float | None = None
    """Arithmetic of one unit of work, GFLOP."""
    arithmetic: str | None = None
    """Number format of the arithmetic, such as bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The part of every stage's record that the suite shows."""

    headline: Headline
    """slicemill's rate with limit and peers."""
    unit: str = "slices"
    """Unit of work; a comma may add how it is done."""
    clock: str = "wall"
    """The clock that timed it."""
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Peers that did not run, with the reason."""

    @property
    def unit_name(self) -> str:
        """Return the unit without what follows the comma."""
        return self.unit.split(",")[0]

    @property
    def is_cpu_time(self) -> bool:
        """Return whether CPU time was counted, not the wall clock."""
        return self.clock.startswith("CPU")


@dataclass(frozen=True, kw_only=True)
class MachineLimit:
    """One limit of a machine."""

    most: float
    """Best of the rounds."""
    unit: str
    """Unit of `most`, such as GB/s."""


@dataclass(frozen=True, kw_only=True)
class LimitsRecord(MeasuredRecord):
    """Record of `bench limits`."""

    results: Mapping[str, MachineLimit]
    """Limits by name."""


@dataclass(frozen=True, kw_only=True)
class SuiteRecord:
    """Record of `bench all`."""

    date: str
    """When the suite started, ISO 8601."""
    quick: bool
    """Whether it was a quick run of 3 rounds."""
    limits: LimitsRecord | None
    """Limits of the machine; None if they were not measured."""
    stages: Mapping[str, Stage]
    """Records by stage."""
    failed: Mapping[str, str]
    """Stages that failed, with the reason."""
    machine: Machine
    """Description of the machine."""

    @property
    def machine_limits(self) -> Mapping[str, MachineLimit]:
        """Return the limits by name; empty if they were not measured."""
        return self.limits.results if self.limits else {}
