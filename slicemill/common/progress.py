"""Progress bars with rate and time left, on standard error. Nothing is shown if that is not a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slicemill.common.output import current_output, escape
from slicemill.common.terminal import is_terminal

Advance = Callable[[float, str], None]
"""Called with the amount done since the last call, and a note that replaces the previous one."""


@contextmanager
def progress(title: str, total: float, unit: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar of `total` units while the block runs, and yield the function that advances it.

    With `quiet`, or the command's `--quiet`, nothing is shown.

    >>> with progress("ingest", 100, "slices") as advance:
    ...     advance(100, "no failures")
    """
    if quiet or not is_terminal(sys.stderr):
        yield _show_nothing  # a disabled bar of rich before 15 prints an empty line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else f"- {unit}/s", style="cyan")

    hidden = quiet or current_output().quiet
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, disable=hidden, redirect_stdout=is_terminal(sys.stdout)) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda amount, note: bar.update(task, advance=amount, note=escape(note))


def _show_nothing(_amount: float, _note: str) -> None:
    """Show no progress."""
