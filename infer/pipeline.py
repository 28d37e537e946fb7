"""Scans -> segmentations, reports and pictures, in bulk.

1. `gather` names the jobs; those done before with the same model and unchanged input are skipped (`infer.ledger`).
2. The engine reads, labels and hands over (`infer.engine`). Each job is claimed first, so that runs may share a folder.
3. A scan's mask appears last, whole, after its report and picture; then its line in the ledger.
4. A scan that cannot be read or written is a failure with a reason; the others go on.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from infer.batching import Batch, Scan
from infer.canvas import plan_of
from infer.engine import Engine, Limits, Steps, Ticket
from infer.inputs import Job, LoadedScan, opened
from infer.lane import Lane
from infer.ledger import Book, Outcome, Summary, write_summary
from infer.model import Model, compare, open_model
from infer.options import (
    MAX_READERS,
    MAX_WRITERS,
    Options,
    capacity_of,
    memory_for_scans,
    memory_of,
    threads_of,
)
from infer.report import answer, overlay
from infer.single import full_report, refine
from infer.stopwatch import Stopwatch
from store.errors import ProviderError, ReadError, ScanError, StoreError
from store.files import write_json
from store.nifti import write_volume
from store.picture import save_png
from store.progress import Advance, progress

GATE_SLICES = 2
DEFAULTS = Options()
ELSEWHERE = "another run is at work on it"


def left_to_do(jobs: Sequence[Job], book: Book) -> tuple[list[Job], list[Outcome]]:
    """Return the jobs that are left, and an outcome for each of the others."""
    check_places(jobs, book.out)
    known = [(job, book.known(job)) for job in jobs]
    return [job for job, outcome in known if outcome is None], [outcome for _, outcome in known if outcome is not None]


def check_places(jobs: Sequence[Job], out: Path) -> None:
    """Refuse to write a mask over a scan.

    Raises
    ------
    ScanError
        An output would take the place of an input.
    """
    inputs = {job.path.resolve() for job in jobs if job.case_id is None}
    for job in jobs:
        if (out / job.name).resolve() in inputs:
            raise ScanError(f"{out / job.name}: the mask would replace a scan; choose an --out folder of its own.")


class Run:
    """What is done with each scan of a run, and what became of it; called from several threads."""

    def __init__(self, model: Model, book: Book, watch: Stopwatch, advance: Advance) -> None:
        self._model = model
        self._book = book
        self._watch = watch
        self._advance = advance
        self._lock = threading.Lock()
        self._claims: dict[str, contextlib.ExitStack] = {}
        self._slices = 0
        self.outcomes: list[Outcome] = []

    def read(self, job: Job, admit: Callable[[int], None]) -> Ticket | None:
        """Claim a job and read its scan; None when there is nothing to do for this run.

        Raises
        ------
        InputError
            It cannot be read as a CT scan, or not enough memory may be taken.
        """
        claim = self._book.claim(job)
        if claim is None:
            self._end(job, Outcome(name=job.name, status="skipped", reason=ELSEWHERE))
            return None
        self._claims[job.name] = claim
        if (known := self._book.known_by_now(job)) is not None:
            self._end(job, known)
            return None
        with opened(job) as scan:
            plan = plan_of(self._model.info, scan.grid.stored_shape, scan.grid.spacing_mm)
            amount = memory_of(plan)
            admit(amount)
            with self._watch.timed("decode"):
                volume, reading = scan.read()
                seen = plan.seen(volume)
            self._watch.add("read", reading)
            self._watch.add("decode", -reading)
            loaded = LoadedScan(volume=volume, grid=scan.grid, header=scan.header, warnings=scan.warnings)
        return Ticket(job=job, loaded=loaded, scan=Scan(plan, seen), memory=amount)

    def write(self, ticket: Ticket) -> None:
        """Write report, picture and mask of a scan, and its line in the ledger."""
        job, loaded, out = ticket.job, ticket.loaded, self._book.out
        segmented = ticket.scan.canvas.segmented()
        with self._watch.timed("post"):
            refine(self._model, loaded, segmented)
        with self._watch.timed("report"):
            report = full_report(self._model, loaded, segmented, job.name)
            said = answer(report)
            picture = overlay(
                loaded.volume, segmented.label, self._model.info.labels, report["lesions"], f"{job.stem}  {said}"
            )
        outcome = Outcome(name=job.name, status="done", slices=len(loaded.volume), answer=said)
        with self._watch.timed("write"):
            self._book.note(job, outcome, begun=True)
            write_json(out / f"{job.stem}.json", report)
            save_png(out / f"{job.stem}.png", picture)
            write_volume(out / job.name, loaded.header, np.uint8, loaded.grid.to_file(segmented.label))
            self._book.note(job, outcome)
        self._end(job, outcome)

    def fail(self, job: Job, error: Exception) -> None:
        """Note why a scan could not be segmented; it is in the summary, too, when there is no room for the line."""
        passing = isinstance(error, OSError | MemoryError | ReadError | StoreError | ProviderError)
        outcome = Outcome(name=job.name, status="failed", reason=reason_of(error, job), passing=passing)
        with contextlib.suppress(OSError):
            self._book.note(job, outcome)
        self._end(job, outcome)

    def labelled(self, ticket: Ticket, count: int) -> None:
        """Show that so many slices or tiles of a scan were labelled."""
        units = len(ticket.loaded.volume) * len(ticket.scan.plan.views)
        with self._lock:
            self._slices += count
            failed = sum(outcome.status == "failed" for outcome in self.outcomes)
            self._advance(count / units, f"{self._slices / self._watch.elapsed:,.1f} slices/s, {failed} failed")

    def _end(self, job: Job, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes.append(outcome)
            claim = self._claims.pop(job.name, None)
        if claim is not None:
            claim.close()


def reason_of(error: Exception, job: Job) -> str:
    """Return one sentence that names the file."""
    if isinstance(error, MemoryError):
        return f"{job.path}: not enough memory to read it; give other programs less, or use fewer --readers."
    if isinstance(error, OSError):
        return f"{error.filename or job.path}: {error.strerror or error}."
    return str(error) if str(job.path) in str(error) else f"{job.path}: {error}"


def gate(model: Model) -> Callable[[Scan, Lane], None] | None:
    """Return what compares a provider with the CPU on slices from the middle of the first scan; None on the CPU itself."""
    if model.provider == "cpu":
        return None

    def check(scan: Scan, lane: Lane) -> None:
        batch = middle_of(scan)
        batch.show(lane.image)
        label, _ = lane.run(len(batch.rows), batch.neighbors, contextlib.nullcontext())
        reference = open_model(model.path, "cpu")
        expected, _ = reference.run(lane.image[: len(batch.rows)], batch.neighbors, probability=False)
        compare(model, label, expected)

    return check


def middle_of(scan: Scan) -> Batch:
    """Return the middle of a scan as a batch of GATE_SLICES."""
    count, view = scan.plan.shape[0], scan.plan.views[len(scan.plan.views) // 2]
    zs = range(count // 2, min(count // 2 + GATE_SLICES, count))
    rows = {near: None for z in zs for near in scan.plan.window(z)}
    order = list(rows)
    return Batch(
        units=[(scan, z, view) for z in zs],
        rows=[(scan, near, view) for near in order],
        neighbors=np.array([[order.index(near) for near in scan.plan.window(z)] for z in zs], dtype=np.int32),
    )


def infer(model: Model, jobs: Sequence[Job], out: Path, options: Options = DEFAULTS) -> Summary:
    """Segment scans into a folder; the same call again does only what is left.

    Raises
    ------
    ModelError
        The provider's labels differ from the CPU's on the first scan's slices.
    ProviderError
        The device failed twice.
    """
    watch = Stopwatch()
    out.mkdir(parents=True, exist_ok=True)
    book = Book(out, model, options)
    left, outcomes = left_to_do(jobs, book)
    limits = Limits(
        capacity=capacity_of(model.info, model.provider, options.batch),
        memory_bytes=memory_for_scans(options.max_memory_gb),
        readers=threads_of(options.readers, MAX_READERS),
        writers=threads_of(options.writers, MAX_WRITERS),
    )
    with progress("infer", len(left), "scans") as advance:
        run = Run(model, book, watch, advance)
        steps = Steps(read=run.read, write=run.write, fail=run.fail, check=gate(model), advance=run.labelled)
        try:
            Engine(model, limits, steps, watch).run(iter(left))
        finally:
            ended = [*outcomes, *run.outcomes]
            reached = {outcome.name for outcome in ended}
            ended += [
                Outcome(name=job.name, status="failed", reason="the run ended before it")
                for job in left
                if job.name not in reached
            ]
            summary = Summary(
                outcomes=tuple(ended),
                seconds=watch.elapsed,
                stages=watch.table(),
                device_busy=min(1.0, watch.seconds("device") / watch.elapsed),
            )
            write_summary(out, model, summary)
    return summary
