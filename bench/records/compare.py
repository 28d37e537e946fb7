"""Comparison of two records of a benchmark: the ratio of the rates, and whether it is more than noise.

Rounds of two runs are not pairs, so each record's rounds are resampled on their own. The interval is the middle 95 %
of the ratios of their medians (Efron's percentile bootstrap). It covers the noise within a run, not that from day to
day or from machine to machine. Instruction counts have almost no noise and get no interval.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from slicemill.bench.schema.base import Document, read_record
from slicemill.bench.schema.data import InstructionsRecord
from slicemill.common.documents import from_document
from slicemill.common.errors import ConfigError

DRAWS = 2000
LEAST_CHANGE = 0.02
"""A smaller change counts as no difference."""
MACHINE_KEYS = ("cpu", "cores", "memory_gib", "gpu", "system", "python")


@dataclass(frozen=True, kw_only=True)
class Change:
    """Change of a contender that is in both records."""

    name: str
    """Its path in the records."""
    ratio: float
    """Rate of the new over the old; above 1 is faster."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""

    @property
    def verdict(self) -> str:
        """Return faster, slower or no difference."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) < LEAST_CHANGE:
            return "no difference"
        return "faster" if self.ratio > 1 else "slower"


def contender_times(record: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[float]]]:
    """Yield every contender of a record, at any depth, with its seconds per unit of work in each round."""
    if not isinstance(record, Mapping):
        return
    seconds, rate, middle = (record.get(key) for key in ("seconds", "per_second", "seconds_median"))
    if isinstance(seconds, list | tuple) and seconds and rate and middle:
        amount = rate * middle
        yield " / ".join(part for part in path if part != "results"), [second / amount for second in seconds]
        return
    for key, value in record.items():
        yield from contender_times(value, (*path, str(key)))


def compare(old: Document, new: Document, seed: int = 0) -> list[Change]:
    """Compare all contenders that both records have.

    Raises
    ------
    ConfigError
        The records are of different benchmarks, or have no contender with the times of its rounds in common.
    """
    if old.get("benchmark") != new.get("benchmark"):
        raise ConfigError(
            f"the records are of different benchmarks ({old.get('benchmark')} and {new.get('benchmark')}); "
            "compare two records of the same benchmark."
        )
    if old.get("benchmark") == "instructions":
        return _compare_counts(read_record(InstructionsRecord, old), read_record(InstructionsRecord, new))
    before, after = dict(contender_times(old)), dict(contender_times(new))
    shared = [name for name in before if name in after]
    if not shared:
        raise ConfigError("the records have no contender with the times of its rounds in common; measure both again.")
    rng = np.random.default_rng(seed)
    return [_compare_times(name, before[name], after[name], rng) for name in shared]


def _compare_counts(old: InstructionsRecord, new: InstructionsRecord) -> list[Change]:
    if old.counter != new.counter:
        raise ConfigError(f"{old.counter} counted in one record and {new.counter} in the other; count both again.")
    ratios = {
        name: loop.instructions_a_slice / new.results[name].instructions_a_slice
        for name, loop in old.results.items()
        if name in new.results
    }
    return [Change(name=name, ratio=ratio, low=ratio, high=ratio) for name, ratio in ratios.items()]


def _compare_times(name: str, before: list[float], after: list[float], rng: np.random.Generator) -> Change:
    drawn = [np.median(rng.choice(times, (DRAWS, len(times))), axis=1) for times in (before, after)]
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    return Change(name=name, ratio=median(before) / median(after), low=float(low), high=float(high))


def machine_differences(old: Document, new: Document) -> list[str]:
    """List the differences between the machines of two records."""
    one, other = (from_document(dict[str, Any], one.get("machine", {}), "machine") for one in (old, new))
    pairs = [(key, one.get(key), other.get(key)) for key in MACHINE_KEYS]
    versions, others = one.get("versions", {}), other.get("versions", {})
    pairs += [(name, versions.get(name), others.get(name)) for name in sorted({*versions, *others})]
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]
