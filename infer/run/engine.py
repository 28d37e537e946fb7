"""Readers -> batches across scans -> the network -> writers: all at work at the same time, bounded by memory.

1. Reader threads take jobs, decode scans and put them in line (`slicemill.infer.run.scan_queue`).
2. Lanes take batches from the line: on a CPU one for each core, up to eight, two for each other device, one of which is computed while the other
   is emptied and filled (`slicemill.infer.network.lanes`).
3. A scan whose last slice is labelled goes to the writer threads; then its memory is given back.
4. A scan that cannot be read or written fails by itself. When the device fails, the scans of that batch fail and the session
   is made anew, once; a device that fails again ends the run.

Nothing here knows files, ledgers or labels: what is read, written and noted are functions that the caller gives.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from slicemill.common.errors import InputError, ProviderError
from slicemill.infer.inputs.jobs import Job, LoadedScan
from slicemill.infer.network.lanes import Lane, make_lane, turns_of
from slicemill.infer.network.model import Model
from slicemill.infer.run.scan_queue import ScanQueue, Stopped
from slicemill.infer.run.timing import Stopwatch
from slicemill.infer.runtime.capacity import Capacity, lanes_on
from slicemill.infer.runtime.messages import first_line
from slicemill.infer.slices.batches import Batch, Scan

HEAR_SECONDS = 0.2
"""How long the main thread may take to hear Ctrl-C or SIGTERM."""
PASSING = (InputError, OSError, MemoryError)
"""What fails one scan and not the run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may be at work at a time."""

    capacity: Capacity
    wanted: tuple[str, ...]
    """Outputs that the network is asked for."""
    memory_bytes: int
    """What scans may take, from the reading of the first voxel to the writing of the mask."""
    readers: int
    writers: int


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A scan with all that belongs to it."""

    job: Job
    loaded: LoadedScan
    scan: Scan
    memory: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What is done with a scan before and after the network; called from several threads at once."""

    read: Callable[[Job, Callable[[int], None]], Ticket | None]
    """Read a scan; the function that it is given waits until so many bytes of memory are free. None: there is nothing to do."""
    write: Callable[[Ticket], None]
    """Do what is done with a scan's labels."""
    fail: Callable[[Job, Exception], None]
    """Note why a scan could not be segmented."""
    check: Callable[[Model, Scan, Lane], None] | None
    """Compare a device with the CPU on its first scan, and raise a ModelError to end the run."""
    advance: Callable[[Ticket, int], None]
    """Hear that so many slices or tiles of a scan were labelled."""


@dataclass(frozen=True, slots=True)
class _At:
    """Where a batch is labelled."""

    model: Model
    session: Any
    """The model's session when the lane was made."""
    lane: Lane
    turns: threading.Semaphore


class Engine:
    """One run over many scans, on one device or several of a kind: a model for each."""

    def __init__(self, models: Sequence[Model], limits: Limits, steps: Steps, watch: Stopwatch) -> None:
        self._models = models
        self._limits = limits
        self._steps = steps
        self._watch = watch
        self._line = ScanQueue(limits.capacity, limits.memory_bytes)
        self._tickets: dict[Scan, Ticket] = {}
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._unchecked = set(models) if steps.check else set()
        self._rebuilt: set[Model] = set()
        self._problem: BaseException | None = None

    def run(self, jobs: Iterator[Job]) -> None:
        """Segment every job; when it returns, each was written or has failed.

        Raises
        ------
        ModelError
            The check stopped the run.
        ProviderError
            The device failed twice.
        """
        with ThreadPoolExecutor(self._limits.writers, "writer") as writers:
            work = [partial(self._read_all, jobs)] * self._limits.readers
            for model in self._models:
                work += [partial(self._drive, model, turns_of(model), writers)] * lanes_on(model.provider)
            threads = [threading.Thread(target=self._guarded, args=(one,), daemon=True) for one in work]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():  # a join without a timeout may sleep through a signal
                        thread.join(HEAR_SECONDS)
            finally:
                self._line.stop()
        if self._problem is not None:
            raise self._problem

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread's work; what goes wrong against all rules ends the run and is raised by it."""
        try:
            work()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 (raised by `run`)
            self._problem = self._problem or error
            self._line.stop()

    def _read_all(self, jobs: Iterator[Job]) -> None:
        with self._line.reader():
            while True:
                with self._asking:
                    job = next(jobs, None)
                if job is None:
                    return
                with self._line.at_work():
                    self._read(job)

    def _read(self, job: Job) -> None:
        taken: list[int] = []

        def admit(amount: int) -> None:
            self._line.admit(amount)
            taken.append(amount)

        try:
            ticket = self._steps.read(job, admit)
        except PASSING as error:
            self._line.release(sum(taken))
            self._steps.fail(job, error)
        else:
            if ticket is not None:
                self._tickets[ticket.scan] = ticket
                self._line.add(ticket.scan)

    def _drive(self, model: Model, turns: threading.Semaphore, writers: ThreadPoolExecutor) -> None:
        """Be a lane until the line ends; a session that was made anew gets new buffers."""
        session: Any = None
        while True:
            if model.session is not session:
                session = model.session
                lane = make_lane(model, self._limits.capacity, self._limits.wanted)
            if not self._run_batch(_At(model, session, lane, turns), writers):
                return

    def _run_batch(self, at: "_At", writers: ThreadPoolExecutor) -> bool:
        """Take a batch, run it and scatter it, copied only where the lane wants it; return whether there was one.

        Nothing of the batch is kept when this returns, so that the memory of its scans is free once they are written.
        """
        with self._watch.timed("wait"):
            batch = self._line.take()
        if batch is None:
            return False
        self._check(at, batch.units[0][0])
        with self._watch.timed("fill"):
            image = batch.show(at.lane.image, in_place=at.lane.reads_in_place)
        try:
            answer = at.lane.run(image, batch.neighbors, self._turn(at.turns), batch.targets())
        except Exception as error:  # noqa: BLE001 (onnxruntime raises many types, some of them private)
            self._device_failed(at, batch, error)
            return True
        with self._watch.timed("scatter"):
            whole = batch.put(answer)
        for scan, count in Counter(scan for scan, _, _ in batch.units).items():
            if ticket := self._tickets.get(scan):
                self._steps.advance(ticket, count)
        for scan in whole:
            if ticket := self._tickets.get(scan):
                writers.submit(self._guarded, partial(self._write, ticket))
        return True

    @contextmanager
    def _turn(self, turns: threading.Semaphore) -> Iterator[None]:
        with turns, self._watch.timed("device"):
            yield

    def _check(self, at: "_At", scan: Scan) -> None:
        with self._lock:
            if self._steps.check is not None and at.model in self._unchecked:
                self._unchecked.remove(at.model)
                self._steps.check(at.model, scan, at.lane)

    def _device_failed(self, at: "_At", batch: Batch, error: Exception) -> None:
        """Fail the scans of a batch and make the session anew, unless the other lane just did.

        Raises
        ------
        ProviderError
            It was made anew before.
        """
        reason = ProviderError(f"{at.model.provider}: the device failed ({first_line(error)}).")
        for scan in dict.fromkeys(scan for scan, _, _ in batch.units):
            if ticket := self._tickets.get(scan):
                self._fail(ticket, reason)
        with self._lock:
            if at.model.session is not at.session:
                return
            if at.model in self._rebuilt:
                raise ProviderError(
                    f"--provider {at.model.provider}: the device failed again after its session was made anew ({first_line(error)}). "
                    "Run the same command again, it goes on from here; or use --provider cpu."
                )
            self._rebuilt.add(at.model)
            at.model.rebuild()

    def _write(self, ticket: Ticket) -> None:
        try:
            self._steps.write(ticket)
        except PASSING as error:
            self._fail(ticket, error)
        else:
            self._forget(ticket)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._line.drop(ticket.scan)
        if self._forget(ticket):
            self._steps.fail(ticket.job, error)

    def _forget(self, ticket: Ticket) -> bool:
        """Give a scan's memory back and return whether it was still held."""
        with self._lock:
            held = self._tickets.pop(ticket.scan, None) is not None
        if held:
            self._line.release(ticket.memory)
        return held
