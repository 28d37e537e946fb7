"""Interruptions of an epoch: a checkpoint every few minutes, and stop signals."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from slicemill.train.config import Config
from slicemill.train.network.processes import Processes
from slicemill.train.run.checkpoint import State


@dataclass(frozen=True, kw_only=True)
class StepDecision:
    """The decision to save or to stop before a step, equal in all processes."""

    spent: float
    """Share of `max_minutes` that has passed; 0 without a limit."""
    stop: bool
    """Write a checkpoint and stop."""
    save: bool
    """Write a checkpoint."""


class Interruption:
    """Decides when to save and when to stop, equally in all processes.

    The clock of rank 0 is used; a stop signal to any process stops all.
    """

    def __init__(
        self, config: Config, processes: Processes, stop_requested: threading.Event, write: Callable[[State], None]
    ) -> None:
        """Start the clock; `write` is called to write a checkpoint."""
        self._config = config
        self._processes = processes
        self._stop_requested = stop_requested
        self._saved = time.perf_counter()
        self._write = write

    def write(self, state: State) -> None:
        """Write a checkpoint, and restart the clock."""
        self._write(state)
        self._saved = time.perf_counter()

    def decide(self, seconds: float, device: torch.device) -> StepDecision:
        """Decide whether to save or stop, after `seconds` of training in total."""
        spent = seconds / (60 * self._config.max_minutes) if self._config.max_minutes else 0.0
        minutes = (time.perf_counter() - self._saved) / 60
        save = bool(self._config.save_minutes) and minutes >= self._config.save_minutes
        stop = self._stop_requested.is_set()
        if self._processes.count > 1:
            first = float(self._processes.first)
            local = torch.tensor([spent * first, stop, save * first], dtype=torch.float64, device=device)
            total = self._processes.sum(local).tolist()
            spent, stop, save = float(total[0]), bool(total[1]), bool(total[2])
        return StepDecision(spent=spent, stop=stop, save=save)


@contextmanager
def catch_stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM (the first signal of SLURM and Kubernetes) set.

    A second Ctrl-C ends the process at once. A second SIGTERM does not: a scheduler and torchrun may each send one.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
