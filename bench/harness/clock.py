"""Times contenders fairly on a noisy machine: warm-up, interleaved rounds, medians, and ratios pair by pair.

One round runs every contender once, so that a slow minute slows all of them, in a drawn order and the next one backward, since it
matters who ran before (caches, memory given back). A ratio is the median over rounds of the two times of the same round.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one contender, one a round."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median time in seconds."""
        return median(self.seconds)

    def as_json(self, amount: float) -> dict[str, Any]:
        """Return the record of `amount` units of work a round: rate, and the times of the rounds."""
        return {
            "per_second": round(amount / self.median, 2),
            "seconds_median": round(self.median, 6),
            "seconds_min": round(min(self.seconds), 6),
            "seconds_max": round(max(self.seconds), 6),
            "rounds": len(self.seconds),
            "seconds": [round(second, 6) for second in self.seconds],
        }


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    tell: Callable[[str], None] = lambda _: None,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every contender `warm_up` times uncounted, then `rounds` times in drawn orders; `tell` hears of each before it runs, untimed.

    `timer` is the wall by default; `time.process_time` counts this process's own work, however busy the machine is.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    orders = random.Random(0)  # noqa: S311 (the same orders every time)
    order = list(contenders)
    for turn in range(warm_up + rounds):
        order = order[::-1] if turn % 2 else orders.sample(order, len(order))
        for name in order:
            tell(name)
            start = timer()
            contenders[name]()
            if turn >= warm_up:
                times[name].append(timer() - start)
    return {name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in times.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """Return how many times as fast `fast` is: the median of slow / fast over the rounds.

    >>> ratio(Timing(name="a", seconds=(2.0, 4.0)), Timing(name="b", seconds=(1.0, 2.0)))
    2.0
    """
    return median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class TwoClocks:
    """Wall and CPU time of contenders, round by round."""

    wall: dict[str, Timing]
    cpu: dict[str, Timing]

    def as_json(self, amount: float) -> dict[str, Any]:
        """Return rates by the wall and CPU milliseconds a unit."""
        return {
            name: {
                **self.wall[name].as_json(amount),
                "cpu_milliseconds": round(1000 * self.cpu[name].median / amount, 3),
            }
            for name in self.wall
        }

    def faster(self, ours: str, theirs: str) -> dict[str, float]:
        """Return how many times as fast ours is, by the wall and by CPU time."""
        return {
            "wall": round(ratio(self.wall[theirs], self.wall[ours]), 3),
            "cpu": round(ratio(self.cpu[theirs], self.cpu[ours]), 3),
        }


def timed(contenders: Mapping[str, Callable[[], object]], rounds: int, tell: Callable[[str], None]) -> TwoClocks:
    """Run contenders as `interleaved` does; one that works in another process says with its ``cpu_seconds`` what its last round took."""
    cpu: dict[str, list[float]] = {name: [] for name in contenders}

    def counted(name: str, work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            start = time.process_time()
            work()
            own = getattr(work, "cpu_seconds", None)
            cpu[name].append(time.process_time() - start if own is None else own)

        return run

    wall = interleaved({name: counted(name, work) for name, work in contenders.items()}, rounds=rounds, tell=tell)
    return TwoClocks(
        wall=wall,
        cpu={name: Timing(name=name, seconds=tuple(seconds[-rounds:])) for name, seconds in cpu.items()},
    )
