"""When an epoch is left before its end: for a checkpoint every few minutes, and when someone asks to stop."""

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
class Orders:
    """What all processes do before a step."""

    spent: float
    """Share of `max_minutes` that is over; 0 without such a limit."""
    stop: bool
    save: bool


class Interruption:
    """Decides by the clock of the first process, and by whoever was asked to stop, so that all of them do the same."""

    def __init__(
        self, config: Config, processes: Processes, asked: threading.Event, write: Callable[[State], None]
    ) -> None:
        """Begin to count the minutes to the next checkpoint; `write` writes one."""
        self._config = config
        self._processes = processes
        self._asked = asked
        self._saved = time.perf_counter()
        self._write = write

    def write(self, state: State) -> None:
        """Write a checkpoint, and begin to count the minutes to the next."""
        self._write(state)
        self._saved = time.perf_counter()

    def orders(self, seconds: float, device: torch.device) -> Orders:
        """Return what to do after so many seconds of training in all."""
        spent = seconds / (60 * self._config.max_minutes) if self._config.max_minutes else 0.0
        minutes = (time.perf_counter() - self._saved) / 60
        save = bool(self._config.save_minutes) and minutes >= self._config.save_minutes
        stop = self._asked.is_set()
        if self._processes.count > 1:
            first = float(self._processes.first)
            said = torch.tensor([spent * first, stop, save * first], dtype=torch.float64, device=device)
            whole = self._processes.together(said).tolist()
            spent, stop, save = float(whole[0]), bool(whole[1]), bool(whole[2])
        return Orders(spent=spent, stop=stop, save=save)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Yield an event that is set by Ctrl-C or SIGTERM (what SLURM and Kubernetes send first); a second Ctrl-C ends at once.

    A second SIGTERM does not: a scheduler and torchrun may each send one.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(_number: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
