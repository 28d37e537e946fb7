"""Two records of a benchmark beside each other: how many times as fast is the new one, and is that more than noise?

Rounds of two runs are not pairs, so each record's rounds are drawn with replacement on their own: the interval is the middle 95 %
of the ratios of their medians (Efron's percentile bootstrap). It knows the noise within a run, not that from day to day or from
machine to machine. Counts of instructions have no noise to speak of, and no interval.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from slicemill.common.errors import ConfigError

DRAWS = 2000
COUNT = "instructions_a_slice"
LEAST = 0.02
"""Less than this is no difference, however narrow the interval."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A contender in both records."""

    name: str
    ratio: float
    """Rate of the new over the old: above 1 is faster."""
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return faster, slower or no difference."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) < LEAST:
            return "no difference"
        return "faster" if self.ratio > 1 else "slower"


def rates(record: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[float]]]:
    """Yield every contender of a record, however deep, with its seconds a unit of work in each round."""
    if not isinstance(record, Mapping):
        return
    seconds, rate, middle = (record.get(key) for key in ("seconds", "per_second", "seconds_median"))
    if isinstance(seconds, list) and seconds and rate and middle:
        amount = rate * middle
        yield " / ".join(part for part in path if part != "results"), [second / amount for second in seconds]
        return
    for key, value in record.items():
        yield from rates(value, (*path, str(key)))


def counts(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the instructions of every loop of a record of `bench instructions`."""
    return {name: row[COUNT] for name, row in record["results"].items()}


def compare(old: Mapping[str, Any], new: Mapping[str, Any], seed: int = 0) -> list[Change]:
    """Return the changes of all contenders that both records have.

    Raises
    ------
    ConfigError
        They are of different benchmarks, or have no contender with the times of its rounds in common.
    """
    if old.get("benchmark") != new.get("benchmark"):
        raise ConfigError(
            f"the records are of different benchmarks ({old.get('benchmark')} and {new.get('benchmark')}); compare two of one."
        )
    if old.get("benchmark") == "instructions":
        return compare_counts(old, new)
    before, after = dict(rates(old)), dict(rates(new))
    shared = [name for name in before if name in after]
    if not shared:
        raise ConfigError("the records have no contender with the times of its rounds in common; measure both again.")
    rng = np.random.default_rng(seed)
    return [change(name, before[name], after[name], rng) for name in shared]


def compare_counts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the changes of the loops that both records have.

    Raises
    ------
    ConfigError
        Two tools counted.
    """
    if old["counter"] != new["counter"]:
        raise ConfigError(
            f"{old['counter']} counted in one record and {new['counter']} in the other; count both again."
        )
    before, after = counts(old), counts(new)
    ratios = {name: before[name] / after[name] for name in before if name in after}
    return [Change(name=name, ratio=value, low=value, high=value) for name, value in ratios.items()]


def change(name: str, before: list[float], after: list[float], rng: np.random.Generator) -> Change:
    """Return the ratio of the medians with its interval."""
    drawn = [np.median(rng.choice(times, (DRAWS, len(times))), axis=1) for times in (before, after)]
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    return Change(name=name, ratio=median(before) / median(after), low=float(low), high=float(high))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in what the machines of two records differ, a phrase each."""
    one, other = old.get("machine", {}), new.get("machine", {})
    parts = [
        f"{key}: {one.get(key)} -> {other.get(key)}"
        for key in ("cpu", "cores", "memory_gib", "gpu", "system", "python")
        if one.get(key) != other.get(key)
    ]
    packages = sorted({*one.get("versions", {}), *other.get("versions", {})})
    return parts + [
        f"{name}: {one.get('versions', {}).get(name)} -> {other.get('versions', {}).get(name)}"
        for name in packages
        if one.get("versions", {}).get(name) != other.get("versions", {}).get(name)
    ]
