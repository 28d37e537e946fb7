"""Scans -> segmentations, reports and pictures, in bulk.

1. `gather` names the jobs; those done before with the same model and unchanged input are skipped (`slicemill.infer.run.ledger`).
2. The engine reads, labels and hands over (`slicemill.infer.run.engine`). Each job is claimed first, so that runs may share a folder.
3. A scan's mask appears last, whole, after its report and picture; then its line in the ledger.
4. A scan that cannot be read or written is a failure with a reason; the others go on.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ProviderError, ReadError, StoreError
from slicemill.common.files import write_json
from slicemill.common.progress import Advance, progress
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.pictures import save_png
from slicemill.infer.cpu_check import check_parity
from slicemill.infer.inputs.jobs import Job, LeftOut, LoadedScan, opened
from slicemill.infer.network.lanes import memory_of_lanes
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.report import answer, overlay
from slicemill.infer.run.buffers import BufferPool
from slicemill.infer.run.engine import Engine, Limits, Steps, Ticket
from slicemill.infer.run.ledger import RunLedger, ScanOutcome, Summary, write_summary
from slicemill.infer.run.options import (
    MAX_READERS,
    MAX_WRITERS,
    InferOptions,
    memory_for_scans,
    memory_of,
    threads_of,
)
from slicemill.infer.run.outputs import beside, check_output_paths, extra_names
from slicemill.infer.run.timing import Stopwatch
from slicemill.infer.runtime.capacity import HOSTS, capacity_of, lanes_on
from slicemill.infer.single import full_report
from slicemill.infer.slices.assembly import Segmented, plan_of, wanted_of
from slicemill.infer.slices.batches import Scan

DEFAULTS = InferOptions()
ELSEWHERE = "another run is at work on it"


def left_to_do(jobs: Sequence[Job], book: RunLedger, extras: Sequence[str] = ()) -> tuple[list[Job], list[ScanOutcome]]:
    """Return the jobs that are left, and an outcome for each of the others; `extras` are names of files beside each mask."""
    check_output_paths(jobs, book.out, extras, book.names)
    known = [(job, book.known(job)) for job in jobs]
    return [job for job, outcome in known if outcome is None], [outcome for _, outcome in known if outcome is not None]


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is held of a scan from its reading to its end."""

    claim: contextlib.ExitStack
    stamp: list[Any]
    """What told the file when it was read."""


class Run:
    """What is done with each scan of a run, and what became of it; called from several threads."""

    def __init__(self, model: Model, options: InferOptions, book: RunLedger) -> None:
        self._model = model
        check_devices(model, options.devices)
        self._options = options
        self._book = book
        self._watch = Stopwatch()
        self._blocks = BufferPool()
        self._advance: Advance = lambda *_: None
        self._lock = threading.Lock()
        self._begun: dict[str, _Begun] = {}
        self._slices = 0
        self.tell: Callable[[ScanOutcome], None] = lambda _: None
        """Hears what became of a scan when it ends."""
        self.ended: dict[str, ScanOutcome] = {}
        """What became of each scan, by name."""

    def drive(self, jobs: Iterator[Job], total: int) -> None:
        """Segment every job, on every device; `total` is how many they are, 0 where nobody knows.

        Raises
        ------
        ModelError
            A device's labels differ from the CPU's on its first scan.
        ProviderError
            A device failed twice.
        """
        info, options = self._model.info, self._options
        capacity, wanted = capacity_of(info, self._model.provider, options.batch), wanted_of(info, options.manner)
        lanes_bytes = memory_of_lanes(self._model, capacity, wanted) if options.max_memory_gb else 0
        limits = Limits(
            capacity=capacity,
            wanted=wanted,
            memory_bytes=memory_for_scans(options.max_memory_gb, lanes_bytes),
            readers=threads_of(options.readers, MAX_READERS),
            writers=threads_of(options.writers, MAX_WRITERS),
        )
        check = None if self._model.provider == "cpu" else check_parity
        steps = Steps(read=self.read, write=self.write, fail=self.fail, check=check, advance=self.labelled)
        with progress("infer", total, "scans", quiet=not total) as self._advance:
            Engine(models_of(self._model, options.devices), limits, steps, self._watch).run(jobs)

    def at_work(self, name: str) -> bool:
        """Return whether a scan has begun and not ended."""
        return name in self._begun

    def summary(self, names: Sequence[str]) -> Summary:
        """Return how the run ended for scans of these names, at the end or before it."""
        cpu = self._model.provider == "cpu"
        at_once = lanes_on("cpu") if cpu else len(self._options.devices)
        return Summary(
            outcomes=tuple(self.ended.get(name) or unreached(name) for name in names),
            seconds=self._watch.elapsed,
            provider=self._model.provider,
            stages=self._watch.table(),
            device_busy=min(1.0, self._watch.seconds("device") / self._watch.elapsed / at_once),
        )

    def read(self, job: Job, admit: Callable[[int], None]) -> Ticket | None:
        """Claim a job and read its scan; None when there is nothing to do for this run.

        Raises
        ------
        InputError
            It cannot be read as a CT scan, or not enough memory may be taken.
        """
        claim = self._book.claim(job)
        if claim is None:
            self._end(job, ScanOutcome(name=job.name, status="skipped", reason=ELSEWHERE))
            return None
        stamp = job.stamp()
        self._begun[job.name] = _Begun(claim, stamp)
        if (known := self._book.known_by_now(job)) is not None:
            self._end(job, known)
            return None
        with opened(job) as scan:
            plan = plan_of(self._model.info, scan.grid.stored_shape, scan.grid.spacing_mm, self._options.manner)
            amount = memory_of(plan)
            admit(amount)
            with self._watch.timed("decode"):
                volume, reading = scan.read(self._blocks.empty)
                seen = plan.seen(volume)
            if job.stamp() != stamp:
                raise ReadError(f"{job.path}: changed while it was read; the next run does it again.")
            self._watch.add("read", reading)
            self._watch.add("decode", -reading)
            loaded = LoadedScan(volume=volume, grid=scan.grid, header=scan.header, warnings=scan.warnings)
        return Ticket(job=job, loaded=loaded, scan=Scan(plan, seen, self._blocks.empty), memory=amount)

    def write(self, ticket: Ticket) -> None:
        """Write report, picture and mask of a scan, and its line in the ledger."""
        job, loaded, out, info = ticket.job, ticket.loaded, self._book.out, self._model.info
        segmented = ticket.scan.canvas.segmented()
        with self._watch.timed("post"):
            if self._options.postprocess:
                postprocess(segmented.label, info.labels, info.rules, loaded.grid, segmented.tumor_probability)
        with self._watch.timed("report"):
            report = full_report(self._model, loaded, segmented, job.name)
            said = answer(report)
            picture = overlay(loaded.volume, segmented.label, info.labels, report["lesions"], f"{job.stem}  {said}")
        outcome = ScanOutcome(name=job.name, status="done", slices=len(loaded.volume), answer=said)
        with self._watch.timed("write"):
            stamp = self._begun[job.name].stamp
            self._book.note(job, outcome, stamp=stamp, begun=True)
            write_json(out / f"{job.stem}.json", report)
            save_png(out / f"{job.stem}.png", picture)
            for name, volume, slope in self._extras(segmented):
                write_volume(out / beside(job, name), loaded.header, np.uint8, loaded.grid.to_file(volume), slope=slope)
            write_volume(out / job.name, loaded.header, np.uint8, loaded.grid.to_file(segmented.label))
            self._book.note(job, outcome, stamp=stamp)
        self._end(job, outcome)

    def _extras(self, segmented: Segmented) -> Iterator[tuple[str, npt.NDArray[np.uint8], float]]:
        """Yield the name, volume uint8[z, y, x] and slope of what is written beside the labels."""
        names = extra_names(self._model.info.labels, self._options)
        if self._options.separate:
            for name, value in zip(names, self._model.info.labels.values.values(), strict=False):
                yield name, (segmented.label == value).view(np.uint8), 1.0
        if segmented.probability is not None:
            yield from (
                (name, volume, 1 / 255)
                for name, volume in zip(names[-len(segmented.probability) :], segmented.probability, strict=True)
            )

    def fail(self, job: Job, error: Exception) -> None:
        """Note why a scan could not be segmented; it is in the summary, too, when there is no room for the line."""
        passing = isinstance(error, OSError | MemoryError | ReadError | StoreError | ProviderError)
        outcome = ScanOutcome(name=job.name, status="failed", reason=reason_of(error, job), passing=passing)
        begun = self._begun.get(job.name)
        with contextlib.suppress(OSError):
            self._book.note(job, outcome, stamp=begun.stamp if begun else None)
        self._end(job, outcome)

    def labelled(self, ticket: Ticket, count: int) -> None:
        """Show that so many slices or tiles of a scan were labelled."""
        units = len(ticket.loaded.volume) * len(ticket.scan.plan.views)
        with self._lock:
            self._slices += count
            failed = sum(outcome.status == "failed" for outcome in self.ended.values())
            self._advance(count / units, f"{self._slices / self._watch.elapsed:,.1f} slices/s, {failed} failed")

    def _end(self, job: Job, outcome: ScanOutcome) -> None:
        with self._lock:
            self.ended[job.name] = outcome
            begun = self._begun.pop(job.name, None)
        if begun is not None:
            begun.claim.close()
        self.tell(outcome)


def reason_of(error: Exception, job: Job) -> str:
    """Return one sentence that names the file."""
    if isinstance(error, MemoryError):
        return f"{job.path}: not enough memory to read it; give other programs less, or use fewer --readers."
    if isinstance(error, OSError):
        return f"{error.filename or job.path}: {error.strerror or error}."
    return str(error) if str(job.path) in str(error) else f"{job.path}: {error}"


def where_of(model: Model, options: InferOptions) -> str:
    """Return what a run of these options works on: provider, devices and batch, and why that provider."""
    numbers = ", ".join(map(str, options.devices))
    device = count_noun(len(os.sched_getaffinity(0)), "core") if model.provider in HOSTS else f"GPU {numbers}"
    batch = capacity_of(model.info, model.provider, options.batch).labels
    lanes = lanes_on(model.provider)
    return f"{model.provider} ({device}), {count_noun(batch, 'slice')} a batch, {lanes} at a time: {model.reason}"


def check_devices(model: Model, devices: Sequence[int]) -> None:
    """Refuse several devices for a model on the processor, which is one.

    Raises
    ------
    ProviderError
        It is so.
    """
    if len(devices) > 1 and model.provider in HOSTS:
        numbers = ",".join(map(str, devices))
        raise ProviderError(
            f"--devices {numbers}: {model.provider} runs on one device, the processor ({model.reason})."
        )


def models_of(model: Model, devices: Sequence[int]) -> list[Model]:
    """Return a model for each device; the first is the one that is open."""
    return [model, *(open_model(model.path, model.provider, device, model.batch) for device in devices[1:])]


def unreached(name: str) -> ScanOutcome:
    """Return the outcome of a scan that a run ended before."""
    return ScanOutcome(name=name, status="failed", reason="the run ended before it", passing=True)


def infer(
    model: Model,
    jobs: Sequence[Job],
    out: Path,
    options: InferOptions = DEFAULTS,
    left_out: LeftOut | None = None,
) -> Summary:
    """Segment scans into a folder; the same call again does only what is left. Files `left_out`, with reasons, stand in its summary.

    Raises
    ------
    ModelError
        The provider's labels differ from the CPU's on the first scan's slices.
    ProviderError
        The device failed twice.
    """
    out.mkdir(parents=True, exist_ok=True)
    book = RunLedger(out, model, options)
    run = Run(model, options, book)
    book.clear(jobs)
    left, known = left_to_do(jobs, book, extra_names(model.info.labels, options))
    run.ended.update({outcome.name: outcome for outcome in known})
    try:
        run.drive(iter(left), len(left))
    finally:
        summary = replace(run.summary([job.name for job in jobs]), left_out=tuple(left_out or ()))
        write_summary(out, model, summary, options.part)
    return summary
