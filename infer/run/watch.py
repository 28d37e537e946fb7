"""A folder that is watched: scans become jobs as they arrive, once they are whole.

1. The folder is listed every LOOK_SECONDS. A file is whole when its size and time have stayed the same for SETTLE_SECONDS and it
   is not empty; one that was renamed into place simply waits that long.
2. A scan that changes later is a job again, once it has settled and its first turn has ended.
3. Segmentations (by name), hidden files, other formats and names that are taken are left out, each said once.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slicemill.common.errors import ConfigError, ScanError
from slicemill.common.terminal import print_line
from slicemill.ct.naming import find_files, is_text, name_of, other_scans, why_no_scan
from slicemill.infer.inputs.gather import name_below
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import Model
from slicemill.infer.run.ledger import RunLedger, Summary, write_summary
from slicemill.infer.run.outputs import OutputPaths, extra_names
from slicemill.infer.run.pipeline import Run

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 5.0
"""Longer than a copy over a network pauses; a file that was taken too early fails as truncated, and is taken again when it grows."""


@dataclass(kw_only=True)
class WatchFolder:
    """A watched folder, and what is known of its files."""

    folder: Path
    settle: float = SETTLE_SECONDS
    at_work: Callable[[str], bool] = lambda _: False
    """Whether a scan of that name is being segmented."""
    tell: Callable[[str], None] = print_line
    _seen: dict[Path, tuple[list[Any], float]] = field(default_factory=dict)
    """Each file's stamp, and since when it is that."""
    _given: dict[Path, list[Any]] = field(default_factory=dict)
    _stems: dict[str, Job] = field(default_factory=dict)
    """Whose each stem is; free again when that file has gone."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Files that are not segmented, with reasons."""

    def ready(self, now: float) -> list[Job]:
        """Return the scans that are whole at `now` (seconds of any clock) and were not given as they are."""
        found = []
        for path in find_files(self.folder):
            job = Job(name=name_below(self.folder, path), path=path)
            if name_of(path.relative_to(self.folder).as_posix()).role == "mask":
                self.leave_out(path, "named like a segmentation")
                continue
            other = self._stems.get(job.stem, job)
            if other != job and (other.path.exists() or self.at_work(other.name)):
                self.leave_out(path, f"would be written as {job.stem}.*, as {other.path} is")
                continue
            self._stems[job.stem] = job
            stamp = job.stamp()
            if path not in self._seen or self._seen[path][0] != stamp:
                self._seen[path] = (stamp, now)
            settled = now - self._seen[path][1] >= self.settle and stamp[0] > 0
            if settled and self._given.get(path) != stamp and not self.at_work(job.name):
                self._given[path] = stamp
                found.append(job)
        for path in other_scans(self.folder):
            self.leave_out(path, why_no_scan(path))
        return found

    def arrivals(self, ended: Callable[[], bool]) -> Iterator[Job]:
        """Yield scans as they become whole, until `ended`."""
        while not ended():
            for job in self.ready(time.monotonic()):
                if ended():
                    return
                yield job
            pause = time.monotonic() + LOOK_SECONDS
            while time.monotonic() < pause and not ended():
                time.sleep(0.05)

    def leave_out(self, path: Path, why: str) -> None:
        """Note that a file is not segmented, and tell of it once."""
        if path not in self.left_out:
            self.left_out[path] = why
            self.tell(f"left out: {path}: {why}")


def watch(
    model: Model, folder: Path, book: RunLedger, ended: Callable[[], bool], settle: float = SETTLE_SECONDS
) -> Summary:
    """Segment what arrives in a folder until `ended`; what was begun then is finished first.

    Raises
    ------
    ConfigError
        There is no such folder, or masks would arrive in it.
    """
    if not folder.is_dir() or not is_text(folder):
        raise ConfigError(f"--watch {folder}: there is no such folder.")
    if book.out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--watch {folder}: --out {book.out} lies in it, so that masks would arrive as scans; choose another."
        )
    book.out.mkdir(parents=True, exist_ok=True)
    run = Run(model, book.options, book)
    places = OutputPaths(book.out, extra_names(model.info.labels, book.options), book.names)
    book.clear([Job(name=name, path=folder / name) for name in book.names])
    run.tell = lambda outcome: print_line(f"{outcome.status}: {outcome.name}: {outcome.answer or outcome.reason}")
    inbox = WatchFolder(folder=folder, settle=settle, at_work=run.at_work)
    try:
        run.drive(in_their_place(inbox.arrivals(ended), places, inbox.leave_out), 0)
    finally:
        summary = replace(run.summary(list(run.ended)), left_out=tuple(inbox.left_out.items()))
        write_summary(book.out, model, summary, book.options.part)
    return summary


@contextmanager
def until_signalled() -> Iterator[Callable[[], bool]]:
    """Yield what says whether Ctrl-C or SIGTERM came; a second one does what it always does."""
    came = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restored() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        came.set()
        restored()

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield came.is_set
    finally:
        restored()


def in_their_place(jobs: Iterable[Job], places: OutputPaths, leave_out: Callable[[Path, str], None]) -> Iterator[Job]:
    """Yield the jobs of which no file would take the place of another's, and leave out the others."""
    for job in jobs:
        try:
            places.add(job)
        except ScanError as error:
            leave_out(Path(str(job.path)), str(error).removeprefix(f"{job.path}: "))
        else:
            yield job
