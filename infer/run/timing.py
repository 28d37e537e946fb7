"""Where the time of a run goes: seconds of each stage, added up over all threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

Stage = Literal["read", "decode", "wait", "fill", "device", "scatter", "post", "report", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""read: bytes from disk or bucket; decode: gzip, HU and orientation; wait: a lane without slices; fill: slices copied into a
batch, where they must be; device: the network; scatter: labels copied out of one; post:
components; report: measures and picture; write: gzip and disk."""


class Stopwatch:
    """Seconds of stages; safe to use from several threads."""

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._start = time.perf_counter()

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: Stage, seconds: float) -> None:
        """Count so many seconds; negative ones take back what was counted twice."""
        with self._lock:
            self._seconds[stage] += seconds

    @property
    def elapsed(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self._start

    def table(self) -> dict[str, dict[str, Any]]:
        """Return seconds of each stage and their share of all."""
        total = sum(self._seconds.values()) or 1.0
        return {
            stage: {"seconds": round(seconds, 6), "share": round(seconds / total, 4)}
            for stage, seconds in self._seconds.items()
        }

    def seconds(self, stage: Stage) -> float:
        """Return the seconds of one stage."""
        return self._seconds[stage]
