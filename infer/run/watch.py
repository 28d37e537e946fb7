"""Watch folder: scans become jobs as they arrive, once they are complete.

1. The folder is listed every POLL_SECONDS. A file is complete when it is not empty and its size and time have not
   changed for SETTLE_SECONDS. This applies to renamed files, too.
2. A scan that changes later is a job again, once it has settled and its previous job has ended.
3. Segmentations (by name), hidden files, other formats and names that are in use are left out; each is reported once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from slicemill.common.errors import ConfigError, ScanError
from slicemill.common.left_out import LeftOut
from slicemill.common.names import is_text
from slicemill.common.terminal import print_line
from slicemill.ct.formats.dicom.files import is_dicom_file
from slicemill.ct.formats.dicom.index import may_be_dicom
from slicemill.ct.naming import find_files, find_unread_scans, parse_name
from slicemill.infer.inputs.gather import name_below
from slicemill.infer.inputs.jobs import Job, Stamp
from slicemill.infer.network.model import Model
from slicemill.infer.run.folder_claim import claim_folder
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.outputs import OutputPaths, extra_names
from slicemill.infer.run.pipeline import BulkRun
from slicemill.infer.run.summary import ScanOutcome, Summary, write_summary

POLL_SECONDS = 1.0
"""Time between two listings of the folder."""
SETTLE_SECONDS = 5.0
"""Longer than the pauses of a network copy. A file that is read too early fails as truncated and is tried again."""


@dataclass(kw_only=True)
class WatchFolder:
    """A watched folder and the state of its files."""

    folder: Path
    settle_seconds: float = SETTLE_SECONDS
    """How long a file must not have changed."""
    is_in_progress: Callable[[str], bool] = lambda _: False
    """Return whether the scan of a name is being segmented."""
    log: Callable[[str], None] = print_line
    _seen: dict[Path, tuple[Stamp, float]] = field(default_factory=dict)
    """Version tag of each file, and the time at which it last changed."""
    _taken: dict[Path, Stamp] = field(default_factory=dict)
    """Version tag of each file that became a job."""
    _owners: dict[str, Job] = field(default_factory=dict)
    """Job of each stem; the stem is free again when that job's file is deleted."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Files that are not segmented, with reasons."""

    def find_ready(self, now: float) -> list[Job]:
        """Return scans that are complete at `now` (seconds of any clock) and are no jobs yet in this version."""
        ready = []
        for path in find_files(self.folder):
            job = Job(name=name_below(self.folder, path), path=path)
            if parse_name(path.relative_to(self.folder).as_posix()).role == "mask":
                self.leave_out(path, "named like a segmentation")
                continue
            other = self._owners.get(job.stem, job)
            if other != job and (other.path.exists() or self.is_in_progress(other.name)):
                self.leave_out(path, f"would be written as {job.stem}.*, like {other.path}")
                continue
            self._owners[job.stem] = job
            stamp = job.stamp()
            if path not in self._seen or self._seen[path][0] != stamp:
                self._seen[path] = (stamp, now)
            size = stamp[0]  # -1 for a deleted file
            settled = now - self._seen[path][1] >= self.settle_seconds and size not in (0, -1)
            if settled and self._taken.get(path) != stamp and not self.is_in_progress(job.name):
                self._taken[path] = stamp
                ready.append(job)
        for path, reason in find_unread_scans(self.folder).items():
            self.leave_out(path, reason)
        self._leave_out_dicom()
        return ready

    def _leave_out_dicom(self) -> None:
        """Record the folders that hold DICOM: nothing tells when all slices of a series have arrived."""
        for directory, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            folder = Path(directory)
            new = next((name for name in names if may_be_dicom(name)), None)
            if new is not None and folder not in self.left_out and is_dicom_file(folder / new):
                self.leave_out(folder, "DICOM is not watched; run infer on the folder when the series is complete")

    def wait_for_jobs(self, ended: Callable[[], bool]) -> Iterator[Job]:
        """Yield scans as they become complete, until `ended` returns true."""
        while not ended():
            for job in self.find_ready(time.monotonic()):
                if ended():
                    return
                yield job
            next_poll = time.monotonic() + POLL_SECONDS
            while time.monotonic() < next_poll and not ended():
                time.sleep(0.05)

    def leave_out(self, path: Path, reason: str) -> None:
        """Record that a file is not segmented, and report it once."""
        if path not in self.left_out:
            self.left_out[path] = reason
            self.log(f"left out: {path}: {reason}")


def watch(
    model: Model, folder: Path, ledger: RunLedger, ended: Callable[[], bool], settle_seconds: float = SETTLE_SECONDS
) -> Summary:
    """Segment scans that arrive in a folder until `ended` returns true; scans in progress are finished first.

    Raises
    ------
    ConfigError
        The folder does not exist, or contains the output folder; or another run writes results of another model, or
        with other options, into the output folder.
    """
    if not folder.is_dir() or not is_text(folder):
        raise ConfigError(f"--watch {folder}: there is no such folder.")
    if ledger.out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--watch {folder}: --out {ledger.out} is inside it, so masks would be taken for scans; choose another."
        )
    ledger.out.mkdir(parents=True, exist_ok=True)
    run = BulkRun(model, ledger.options, ledger)
    outputs = OutputPaths(ledger.out, extra_names(model.info.labels, ledger.options), ledger.names)
    ledger.remove_unfinished([Job(name=name, path=folder / name) for name in ledger.names])
    run.on_outcome = print_outcome
    watched = WatchFolder(folder=folder, settle_seconds=settle_seconds, is_in_progress=run.is_in_progress)
    with claim_folder(ledger.out, model.info.sha256, ledger.options):
        try:
            run.run(filter_conflicts(watched.wait_for_jobs(ended), outputs, watched.leave_out), 0)
        finally:
            left_out = tuple(LeftOut(path, reason) for path, reason in watched.left_out.items())
            summary = replace(run.summarize(list(run.outcomes)), left_out=left_out)
            write_summary(ledger.out, model, summary, ledger.options.part)
    return summary


def print_outcome(outcome: ScanOutcome) -> None:
    """Print one line about a scan that has ended, and one with its warnings."""
    print_line(f"{outcome.status}: {outcome.name}: {outcome.answer or outcome.reason}")
    if outcome.warnings:
        print_line(f"warning: {outcome.name}: {outcome.warnings}")


@contextmanager
def until_signaled() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C or SIGTERM was received; a second signal has its usual effect."""
    came = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        came.set()
        restore()

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield came.is_set
    finally:
        restore()


def filter_conflicts(
    jobs: Iterable[Job], outputs: OutputPaths, leave_out: Callable[[Path, str], None]
) -> Iterator[Job]:
    """Yield the jobs whose files overwrite no others, and leave out the rest."""
    for job in jobs:
        try:
            outputs.add(job)
        except ScanError as error:
            leave_out(Path(str(job.path)), error.reason if error.where == str(job.path) else str(error))
        else:
            yield job
