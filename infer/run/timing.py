"""Time of a run by stage: seconds added up over all threads."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

Stage = Literal["read", "decode", "wait", "fill", "device", "scatter", "post", "candidates", "report", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages of a run.

- read: bytes from disk or bucket
- decode: gzip, HU and orientation
- wait: a lane waits for slices
- fill: copy slices into a batch, where needed
- device: the network
- scatter: copy labels out of a batch
- post: post-processing
- candidates: lumps found, crops cut and judged; only with a classifier or --candidates
- report: measures and picture
- write: gzip and disk
"""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Time of one stage."""

    seconds: float
    """Seconds of all threads together."""
    share: float
    """Share of the seconds of all stages, 0 to 1."""


def share_times(seconds: Mapping[Stage, float] | Mapping[str, float]) -> dict[str, StageTime]:
    """Return seconds of stages with their shares, rounded for documents."""
    total = sum(seconds.values()) or 1.0
    return {
        stage: StageTime(seconds=round(value, 6), share=round(value / total, 4)) for stage, value in seconds.items()
    }


class Stopwatch:
    """Seconds of each stage; safe to use from several threads."""

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._computing: Counter[int] = Counter()
        """Threads that compute on each device."""
        self._since: dict[int, float] = {}
        """When the first of them began."""
        self._busy = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    @contextmanager
    def computing(self, device: int) -> Iterator[None]:
        """Add the time of the block to the stage ``device``, and to the time in which that device is busy."""
        with self._lock:
            start = time.perf_counter()
            if not self._computing[device]:
                self._since[device] = start
            self._computing[device] += 1
        try:
            yield
        finally:
            with self._lock:
                end = time.perf_counter()
                self._seconds["device"] += end - start
                self._computing[device] -= 1
                if not self._computing[device]:
                    self._busy += end - self._since[device]

    def add(self, stage: Stage, seconds: float) -> None:
        """Add seconds to a stage; negative seconds remove time that was counted twice."""
        with self._lock:
            self._seconds[stage] += seconds

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start of the run."""
        return time.perf_counter() - self._start

    @property
    def busy_seconds(self) -> float:
        """Return the seconds in which at least one thread computed, added up over the devices."""
        return self._busy

    def stage_times(self) -> dict[str, StageTime]:
        """Return the time of each stage."""
        return share_times(self._seconds)

    def seconds(self, stage: Stage) -> float:
        """Return the seconds of one stage."""
        return self._seconds[stage]
