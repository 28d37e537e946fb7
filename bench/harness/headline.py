"""What a stage's benchmark comes down to: ours in slices a second, beside its limit and its peers, and what was verified."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slicemill.bench.harness.clock import Timing, ratio

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A contender's times with the work that it did in each."""

    timing: Timing
    amount: float
    """Slices, pairs or scans a round."""

    @property
    def per_second(self) -> float:
        """Return the median rate."""
        return self.amount / self.timing.median


def headline(
    times: Mapping[str, Timed], *, ours: str, limit: str, bound: str, peers: Mapping[str, str], verified: str
) -> Record:
    """Return the record ``headline`` of a benchmark.

    Parameters
    ----------
    limit
        The contender that does only what cannot be left out.
    bound
        What that is, in a few words.
    peers
        Name of a contender -> what it does more or less than ours, in a sentence.
    verified
        What was compared after the clock had stopped; the caller raises where it fails.
    """

    def faster(name: str) -> float:
        """Return the rate of ours over another's, the median of rounds."""
        own, other = times[ours], times[name]
        return round(ratio(other.timing, own.timing) * own.amount / other.amount, 3)

    return {
        "ours": ours,
        "per_second": round(times[ours].per_second, 2),
        "bound": bound,
        "limit": {"name": limit, "per_second": round(times[limit].per_second, 2), "fraction": faster(limit)},
        "peers": {
            name: {"per_second": round(times[name].per_second, 2), "times": faster(name), "what": sentence}
            for name, sentence in peers.items()
        },
        "verified": verified,
    }


def check(what: str, *, holds: bool) -> None:
    """Stop a benchmark whose contenders do not do the same work: a bug, which keeps its traceback."""
    if not holds:
        raise RuntimeError(f"the benchmark measured different work: not so: {what}")
