"""Records of benchmarks: frozen structs that stages write and tables read. Fields, in their order, are the JSON keys.

A field's ``name`` is its JSON key, if that is not a Python name. A class's ``tag`` is the value of ``benchmark``.
Fields that are missing in records of earlier versions are None.
"""

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Struct

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import ConfigError
from slicemill.common.files import to_json
from slicemill.common.machine import machine_info

Document = Mapping[str, Any]
"""A record as in its JSON file."""
T = TypeVar("T")


def now() -> str:
    """Return the time in UTC for a record, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def origin() -> dict[str, Any]:
    """Return the fields of a new record that say when and where it was measured."""
    return {"date": now(), "machine": machine_info()}


class BenchmarkRecord(Struct, frozen=True, kw_only=True, tag_field="benchmark"):
    """Fields of all records. `origin` makes them."""

    date: str
    """When it was written, ISO 8601."""
    machine: Document
    """The machine, as `machine_info` describes it."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON values, the machine last."""
        document = to_document(self)
        machine = document.pop("machine")
        return {**document, "machine": machine}


def read_record(kind: type[T], document: Document) -> T:
    """Read a record as `kind`.

    The document may come from a file or from a benchmark that has just run: numpy scalars and tuples are
    converted as in JSON.

    Raises
    ------
    ConfigError
        It is the record of another benchmark.
    InputError
        A value is missing or has another type.
    """
    benchmark, expected = document.get("benchmark", "?"), kind_name(kind)
    if expected not in (None, benchmark):
        raise ConfigError(f"a record of bench {expected} is needed, not one of {benchmark}.")
    return from_document(kind, json.loads(to_json(document)), f"record of bench {benchmark}", is_part=True)


def kind_name(kind: type[object]) -> str | None:
    """Return the value of ``benchmark`` in records of a class; None if it is no complete record."""
    return kind.__struct_config__.tag if issubclass(kind, Struct) else None  # type: ignore[return-value] # never an int


class Processor(Struct, frozen=True, kw_only=True):
    """The processor that a figure was measured on."""

    cpu: str
    """Name of the processor."""
    cores: int
    """Cores that the benchmark could use."""


def read_processor(description: Document) -> Processor:
    """Read the processor of a machine description."""
    return from_document(Processor, description, "machine description", is_part=True)


class Rate(Struct, frozen=True, kw_only=True):
    """A contender's rate, and the times of its rounds."""

    per_second: float
    """Units of work per second, median of the rounds."""
    seconds_median: float
    seconds_min: float
    seconds_max: float
    rounds: int
    seconds: tuple[float, ...] | None = None
    """Seconds of each round."""


class ClockRate(Rate, frozen=True, kw_only=True):
    """A rate by wall time, with CPU time."""

    cpu_milliseconds: float | None = None
    """CPU time per unit of work, ms; None if it was not measured."""


class ClockRatios(Struct, frozen=True, kw_only=True):
    """Speedup by each clock."""

    wall: float
    cpu: float | None = None
    """None if it was not compared."""


class Limit(Struct, frozen=True, kw_only=True):
    """The contender that does only the unavoidable work."""

    name: str
    per_second: float
    fraction: float
    """slicemill's rate over the limit's."""


class Peer(Struct, frozen=True, kw_only=True):
    """Another tool that does the same work."""

    per_second: float
    times: float
    """slicemill's rate over the peer's."""
    what: str
    """Differences of the peer from slicemill."""


class Headline(Struct, frozen=True, kw_only=True):
    """Result of a stage: slicemill's rate, the limit, and the peers."""

    ours: str
    """Name of slicemill's contender."""
    per_second: float
    """Units of work per second of slicemill's contender."""
    bound: str
    """The unavoidable work, in a few words."""
    limit: Limit
    peers: Mapping[str, Peer]
    verified: str
    """The check after the measurement."""
    gflop: float | None = None
    """Arithmetic of one unit of work, GFLOP."""
    arithmetic: str | None = None
    """Number format of the arithmetic, such as bfloat16."""


class StageRecord(BenchmarkRecord, frozen=True, kw_only=True):
    """A benchmark whose contenders do the same work."""

    unit: str
    """Unit of work; a comma may add how it is done."""
    clock: str
    results: Mapping[str, Rate]
    """By contender."""
    headline: Headline


class MachineLimit(Rate, frozen=True, kw_only=True):
    """One limit of a machine."""

    most: float
    """Rate of the best round, because noise only slows rounds down."""
    unit: str
    """Unit of `most`, such as GB/s."""


class LimitsRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="limits"):
    """Record of `bench limits`."""

    results: Mapping[str, MachineLimit]
