"""The time left of work in steps, from the seconds that each step takes on another machine.

1. Each step has its seconds on a reference machine. The pace is the time so far, over what that machine takes for it.
2. The time left is the pace times the reference seconds of what is left. Steps with a time limit take that time.
3. A step that reports its share done corrects the pace while it runs; else its time passes until it should have ended.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from slicemill.common.terminal import is_terminal

TRUST_SECONDS = 10.0
"""Reference seconds until which the pace is mostly 1: the first steps are short, and their pace is not that of all."""
NOTE_SECONDS = 30.0
"""Seconds between two lines about the time left, where no bar is shown."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the work."""

    name: str
    seconds: float
    """Seconds on the reference machine, or of the time limit."""
    limited: bool = False
    """Whether `seconds` is a time limit, which is the same on every machine."""


class Countdown:
    """The time left of steps that follow each other."""

    def __init__(self, steps: Sequence[Step], clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = tuple(steps)
        self._clock = clock
        self._shares: list[float] = []
        """The share done of each step that has begun."""
        self._seconds: list[float] = []
        """The time that each share took."""
        self._begun = self._noted = clock()

    @property
    def place(self) -> str:
        """Return number and name of the current step, such as ``3/9 train``."""
        number = len(self._shares)
        return f"{number}/{len(self.steps)} {self.steps[number - 1].name if number else ''}".rstrip()

    def begin(self, name: str) -> None:
        """End the current step, and begin the next.

        Raises
        ------
        ValueError
            The next step has another name.
        """
        if self._shares:
            self.report(1.0)
        if [name] != [step.name for step in self.steps[len(self._shares) :][:1]]:
            raise ValueError(f"{name} does not follow {self.place}.")
        self._shares.append(0.0)
        self._seconds.append(0.0)
        self._begun = self._noted = self._clock()

    def report(self, share: float) -> None:
        """Report the share of the current step that is done, 0 to 1."""
        self._shares[-1], self._seconds[-1] = share, self._clock() - self._begun

    @property
    def left_seconds(self) -> float:
        """Return the estimate of the seconds left."""
        pace, number = self._pace, len(self._shares)
        seconds = [step.seconds if step.limited else step.seconds * pace for step in self.steps]
        later = sum(seconds[number:])
        if not number:
            return later
        since_report = self._clock() - self._begun - self._seconds[-1]
        return later + max(0.0, (1 - self._shares[-1]) * seconds[number - 1] - since_report)

    @property
    def _pace(self) -> float:
        """Return the seconds that a reference second takes here."""
        begun = zip(self.steps, self._shares, self._seconds, strict=False)  # steps that have not begun have no share
        known = [(share * step.seconds, seconds) for step, share, seconds in begun if share and not step.limited]
        reference, here = sum(work for work, _ in known), sum(seconds for _, seconds in known)
        return (here + TRUST_SECONDS) / (reference + TRUST_SECONDS)

    def describe_left(self) -> str:
        """Return the time left in words."""
        return f"{describe_seconds(self.left_seconds)} left"

    def due_note(self) -> str | None:
        """Return the time left in words if the last step or note began half a minute ago; else None."""
        now = self._clock()
        if now - self._noted < NOTE_SECONDS:
            return None
        self._noted = now
        return self.describe_left()


def describe_seconds(seconds: float) -> str:
    """Return a rounded duration.

    >>> [describe_seconds(seconds) for seconds in (3, 41, 89, 200, 7300)]
    ['about 5 s', 'about 40 s', 'about 1.5 min', 'about 3.5 min', 'about 122 min']
    """
    if seconds < 57.5:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    return f"about {round(2 * minutes) / 2:g} min" if minutes < 10 else f"about {minutes:,.0f} min"


@contextmanager
def show_countdown(countdown: Countdown) -> Iterator[bool]:
    """Show a bar with step and time left while the block runs; yield whether it is shown.

    It is on standard error, and only if that is a terminal.
    """
    shown = is_terminal(sys.stderr)
    if not shown:
        yield False
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TimeElapsedColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class Place(ProgressColumn):
        def render(self, _task: Task) -> Text:
            return Text(countdown.place)

    class Bar(ProgressColumn):
        def render(self, task: Task) -> ProgressBar:
            elapsed = task.elapsed or 0.0
            return ProgressBar(total=elapsed + countdown.left_seconds, completed=elapsed, width=30)

    class Left(ProgressColumn):
        def render(self, _task: Task) -> Text:
            return Text(countdown.describe_left())

    columns = (Place(), Bar(), TimeElapsedColumn(), Left())
    console, own_output = Console(stderr=True), is_terminal(sys.stdout)
    with Progress(*columns, console=console, redirect_stdout=own_output, transient=True) as bar:
        bar.add_task("")
        yield True
