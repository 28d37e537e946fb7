"""Contenders timed by the wall and by CPU time at once."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.clock import Timing, interleaved, ratio


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
