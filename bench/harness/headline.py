"""The headline of a benchmark: slicemill's rate compared with its limit and its peers, and what was verified."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slicemill.bench.harness.clock import Timing, ratio
from slicemill.bench.schema.base import Headline, Limit, Peer, Rate

Record = dict[str, Any]
"""A JSON object of a benchmark's record."""


@dataclass(frozen=True, kw_only=True)
class TimedContender:
    """Times of a contender, and the work that it did in each round."""

    timing: Timing
    amount: float
    """Slices, pairs or scans per round."""

    @property
    def per_second(self) -> float:
        """Return the median rate."""
        return self.amount / self.timing.median

    def speedup(self, other: "TimedContender") -> float:
        """Return the speedup over another contender, per unit of work: the median over the rounds."""
        return round(ratio(other.timing, self.timing) * self.amount / other.amount, 3)

    def rate(self) -> Rate:
        """Return the record: the rate and the times of the rounds."""
        return self.timing.rate(self.amount)


def with_amount(times: Mapping[str, Timing], amount: float) -> dict[str, TimedContender]:
    """Return the times of contenders that all did the same amount of work."""
    return {name: TimedContender(timing=timing, amount=amount) for name, timing in times.items()}


def headline(
    times: Mapping[str, TimedContender],
    *,
    contender: str,
    limit: str,
    bound: str,
    peers: Mapping[str, str],
    verified: str,
) -> Headline:
    """Return the record ``headline`` of a benchmark.

    Parameters
    ----------
    limit
        The contender that does only the unavoidable work.
    bound
        That work, in a few words.
    peers
        Name of a contender -> a sentence on its differences from slicemill.
    verified
        What was compared after the measurement; the caller raises an error if the comparison fails.
    """
    own = times[contender]
    rates = {name: round(times[name].per_second, 2) for name in (contender, limit, *peers)}
    return Headline(
        ours=contender,
        per_second=rates[contender],
        bound=bound,
        limit=Limit(name=limit, per_second=rates[limit], fraction=own.speedup(times[limit])),
        peers={
            name: Peer(per_second=rates[name], times=own.speedup(times[name]), what=sentence)
            for name, sentence in peers.items()
        },
        verified=verified,
    )


def check(what: str, *, holds: bool) -> None:
    """Stop a benchmark whose contenders do not do the same work. This is a bug, so it keeps its traceback.

    Raises
    ------
    RuntimeError
        `what` does not hold.
    """
    if not holds:
        raise RuntimeError(f"the contenders did different work; this check failed: {what}")
