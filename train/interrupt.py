"""When an epoch is left before its end: for a checkpoint every few minutes, and when someone asks to stop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from train.checkpoint import State
from train.config import Config
from train.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What all processes do before a step."""

    spent: float
    """Share of `max_minutes` that is over; 0 without such a limit."""
    stop: bool
    save: bool


class Interruption:
    """Decides in the first process, so that all of them do the same."""

    def __init__(
        self, config: Config, processes: Processes, asked: threading.Event, write: Callable[[State], None]
    ) -> None:
        """Begin to count the minutes to the next checkpoint; `write` writes one."""
        self._config = config
        self._processes = processes
        self._asked = asked
        self._saved = time.perf_counter()
        self.write = write

    def orders(self, seconds: float, device: torch.device) -> Orders:
        """Return what to do after so many seconds of training in all."""
        spent = seconds / (60 * self._config.max_minutes) if self._config.max_minutes else 0.0
        minutes = (time.perf_counter() - self._saved) / 60
        save = bool(self._config.save_minutes) and minutes >= self._config.save_minutes
        stop = self._asked.is_set()
        if self._processes.count > 1:
            said = torch.tensor([spent, stop, save], dtype=torch.float64, device=device)
            first, second, third = self._processes.from_first(said).tolist()
            spent, stop, save = float(first), bool(second), bool(third)
        if save:
            self._saved = time.perf_counter()
        return Orders(spent=spent, stop=stop, save=save)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Yield an event that is set by Ctrl-C or SIGTERM (what SLURM and Kubernetes send first); a second one ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(_number: int, _frame: FrameType | None) -> None:
        event.set()
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        restore()
