"""Times contenders fairly on a noisy machine: warm-up, interleaved rounds, medians, and ratios of pairs.

A round runs every contender once, so that a slow minute slows all of them. The order of a round is drawn at random,
and the next round reverses it, because the previous contender affects caches and free memory. A ratio is the median
over the rounds of the two times of one round.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from msgspec.structs import asdict

from slicemill.bench.schema.base import ClockRate, ClockRatios, Rate
from slicemill.common.progress import progress

Work = Callable[[], object]
"""One run of a contender."""
Log = Callable[[str], None]
"""Callback: called with the name of a contender before each of its runs, outside the measured time."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one contender, one per round."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median time in seconds."""
        return median(self.seconds)

    def rate(self, amount: float) -> Rate:
        """Return the record for `amount` units of work per round: the rate and the times of the rounds."""
        return Rate(
            per_second=round(amount / self.median, 2),
            seconds_median=round(self.median, 6),
            seconds_min=round(min(self.seconds), 6),
            seconds_max=round(max(self.seconds), 6),
            rounds=len(self.seconds),
            seconds=tuple(round(second, 6) for second in self.seconds),
        )


def ratio(slow: Timing, fast: Timing) -> float:
    """Return the speedup of `fast` over `slow`: the median of slow / fast over the rounds.

    >>> ratio(Timing(name="a", seconds=(2.0, 4.0)), Timing(name="b", seconds=(1.0, 2.0)))
    2.0
    """
    return median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class WallAndCpu:
    """Wall and CPU time of contenders, round by round."""

    wall: dict[str, Timing]
    cpu: dict[str, Timing]

    def rates(self, amount: float) -> dict[str, ClockRate]:
        """Return the rates by wall time, and the CPU milliseconds per unit of work."""
        return {
            name: ClockRate(
                **asdict(timing.rate(amount)), cpu_milliseconds=round(1000 * self.cpu[name].median / amount, 3)
            )
            for name, timing in self.wall.items()
        }

    def speedup(self, contender: str, baseline: str) -> ClockRatios:
        """Return the speedup of a contender over a baseline, by wall time and by CPU time."""
        wall, cpu = (round(ratio(times[baseline], times[contender]), 3) for times in (self.wall, self.cpu))
        return ClockRatios(wall=wall, cpu=cpu)


def time_rounds(
    contenders: Mapping[str, Work],
    *,
    rounds: int,
    warm_up: int = 1,
    log: Log = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run all contenders `warm_up` times without counting, then `rounds` times; return the times by name.

    The clock is wall time by default. `time.process_time` counts only the CPU time of this process.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    rng = random.Random(0)  # noqa: S311 (the same orders in every benchmark run)
    order = list(contenders)
    for number in range(warm_up + rounds):
        order = order[::-1] if number % 2 else rng.sample(order, len(order))
        for name in order:
            log(name)
            start = clock()
            contenders[name]()
            seconds[name].append(clock() - start)
    return {name: Timing(name=name, seconds=tuple(times[warm_up:])) for name, times in seconds.items()}


def time_on_both_clocks(contenders: Mapping[str, Work], rounds: int, log: Log) -> WallAndCpu:
    """Run contenders as `time_rounds` does, and take wall and CPU time.

    A contender that works in another process has the attribute ``cpu_seconds``: the CPU time of its last round.
    """
    cpu: dict[str, list[float]] = {name: [] for name in contenders}

    def with_cpu_time(name: str, work: Work) -> Work:
        def run() -> None:
            start = time.process_time()
            work()
            remote = getattr(work, "cpu_seconds", None)
            cpu[name].append(time.process_time() - start if remote is None else remote)

        return run

    wall = time_rounds({name: with_cpu_time(name, work) for name, work in contenders.items()}, rounds=rounds, log=log)
    return WallAndCpu(
        wall=wall,
        cpu={name: Timing(name=name, seconds=tuple(seconds[-rounds:])) for name, seconds in cpu.items()},
    )


@contextmanager
def show_progress(title: str, contenders: int, rounds: int) -> Iterator[Log]:
    """Show a progress bar over all rounds and the warm-up while the block runs; yield the callback that advances it."""
    with progress(title, (rounds + 1) * contenders, "runs") as advance:
        yield lambda name: advance(1, name)
