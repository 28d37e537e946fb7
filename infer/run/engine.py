"""Engine: readers, batches across scans, the network and writers, in parallel and within a memory limit.

1. Reader threads take jobs, decode scans and put them into a queue (`slicemill.infer.slices.scan_queue`).
2. Lanes take batches from the queue (`slicemill.infer.network.lanes`): on a CPU one lane for each core, up to eight;
   two for each other device, so that it computes one while the other is emptied and filled.
3. A scan whose last slice is labeled goes to the writer threads; one that chooses its slices by the labels of others
   asks for more there, or is written. Then its memory is released.
4. A scan that cannot be read or written fails alone, whatever the reason; a bug is raised after the other scans. When a
   device fails, the scans of that batch fail and the session is rebuilt, once; a device that fails again ends the run,
   as does one that this process can no longer use. The next run does the rest.

The engine does not depend on files, ledgers or labels: the caller supplies functions that read, write and record
(`Steps`).
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from slicemill.common.errors import ModelError, ProviderError
from slicemill.common.failures import explain_failure
from slicemill.infer.inputs.jobs import Job, LoadedScan
from slicemill.infer.network.lanes import ComputeLimit, Lane, count_sharers, make_compute_limit, make_lane
from slicemill.infer.network.model import Model
from slicemill.infer.run.timing import Stopwatch
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.runtime.messages import explain_batch_failure, find_cause
from slicemill.infer.slices.batches import NetworkBatch, NetworkScan
from slicemill.infer.slices.scan_queue import ScanQueue, Stopped

JOIN_SECONDS = 0.2
"""How often the main thread wakes up to handle Ctrl-C or SIGTERM: a longer join may sleep through a signal."""
READER_SECONDS = 5.0
"""How long a run that ends waits for readers; they read files, and may be killed in the middle of one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on concurrent work."""

    capacity: Capacity
    outputs: tuple[str, ...]
    """Names of the outputs that are requested from the network."""
    memory_bytes: int
    """Memory that all scans may take, from reading the first voxel to writing the mask."""
    readers: int
    """Number of reader threads."""
    writers: int
    """Number of writer threads."""


@dataclass(eq=False, kw_only=True)
class ScanInProgress:
    """A scan in progress: its job, its arrays, its memory."""

    job: Job
    loaded: LoadedScan
    scan: NetworkScan
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Functions that process a scan before and after the network; called from several threads at once."""

    read: Callable[[Job, Callable[[int], None]], ScanInProgress | None]
    """Read a scan, or return None if there is nothing to do.

    The second argument is a function that waits until a number of bytes of memory is free."""
    write: Callable[[ScanInProgress], None]
    """Post-process and write a labeled scan."""
    fail: Callable[[Job, Exception], None]
    """Record the reason of a scan's failure."""
    check: Callable[[Model, NetworkScan, Lane], None] | None
    """Compare a device with the CPU on its first scan; a ModelError ends the run. None for no comparison."""
    advance: Callable[[ScanInProgress, int], None]
    """Progress callback: called with the number of slices or tiles of a scan that were labeled."""
    open_lane: Callable[[Model, Capacity, Sequence[str]], Lane] = make_lane
    """Make the buffers for the batches of one thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LaneThread:
    """The model and lane that one thread uses. It holds no session, so that a failed one can be dropped."""

    model: Model
    rebuilt: int
    """How often the model's session had been made again when the lane was made."""
    lane: Lane
    compute_limit: ComputeLimit


def _join(threads: Sequence[threading.Thread], seconds: float) -> bool:
    """Wait up to `seconds` until all threads have ended, and return whether one has not."""
    end = time.monotonic() + seconds
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, end - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


class Engine:
    """One run over many scans, on one or several devices of the same kind, each with its model."""

    def __init__(self, models: Sequence[Model], limits: Limits, steps: Steps, watch: Stopwatch) -> None:
        self._models = models
        self._limits = limits
        self._steps = steps
        self._watch = watch
        self._queue = ScanQueue(limits.capacity, limits.memory_bytes, sharers=count_sharers(models))
        self._scans: dict[NetworkScan, ScanInProgress] = {}
        self._scans_lock = threading.Lock()
        self._jobs_lock = threading.Lock()
        self._device_lock = threading.Lock()
        """Held while a device is checked or rebuilt, for seconds: no lane starts a batch, but scans can end."""
        self._unchecked = set(models) if steps.check else set()
        self._rebuilt: set[Model] = set()
        self._error: BaseException | None = None
        self._bug: Exception | None = None

    def run(self, jobs: Iterator[Job]) -> None:
        """Segment every job; on return, each one is written or has failed.

        Raises
        ------
        ModelError
            The check ended the run, or the model's labels have another shape than it declares.
        ProviderError
            A device failed twice.
        """
        with ThreadPoolExecutor(self._limits.writers, "writer") as writers:
            lanes = [
                self._thread(partial(self._run_lane, model, limit, writers))
                for model in self._models
                for limit in [make_compute_limit(model)] * model.lanes
            ]
            readers = [self._thread(partial(self._read_all, jobs)) for _ in range(self._limits.readers)]
            try:
                for thread in (*readers, *lanes):
                    thread.start()
                while self._error is None and _join([*readers, *lanes], JOIN_SECONDS):
                    pass
            finally:
                self._queue.stop()
                while _join(lanes, JOIN_SECONDS):  # one inside onnxruntime at the end of Python would abort the process
                    pass
                _join(readers, READER_SECONDS)
        if self._error is not None:
            raise self._error
        if self._bug is not None:
            raise self._bug

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._guard, args=(work,), daemon=True)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; an unexpected error ends the run, and `run` raises it."""
        try:
            work()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 (raised by `run`)
            self._error = self._error or error
            self._queue.stop()

    def _read_all(self, jobs: Iterator[Job]) -> None:
        with self._queue.reader():
            while True:
                with self._jobs_lock:
                    job = next(jobs, None)
                if job is None:
                    return
                with self._queue.busy():
                    self._read(job)

    def _read(self, job: Job) -> None:
        taken: list[int] = []

        def reserve_memory(amount_bytes: int) -> None:
            self._queue.reserve_memory(amount_bytes)
            taken.append(amount_bytes)

        try:
            current = self._steps.read(job, reserve_memory)
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 (any error fails one scan and not the run)
            self._queue.release(sum(taken))
            self._note_bug(error)
            self._steps.fail(job, error)
        else:
            if current is None:
                self._queue.release(sum(taken))
            else:
                self._scans[current.scan] = current
                self._queue.add(current.scan)

    def _run_lane(self, model: Model, compute_limit: ComputeLimit, writers: ThreadPoolExecutor) -> None:
        """Label batches until the queue ends; make a new lane after the session was rebuilt."""
        rebuilt = -1
        while True:
            if model.rebuilt != rebuilt:
                rebuilt = model.rebuilt
                lane = self._steps.open_lane(model, self._limits.capacity, self._limits.outputs)
            thread = _LaneThread(model=model, rebuilt=rebuilt, lane=lane, compute_limit=compute_limit)
            if not self._run_batch(thread, writers):
                return

    def _run_batch(self, thread: _LaneThread, writers: ThreadPoolExecutor) -> bool:
        """Take a batch, run it and pass the labels to its scans; return whether there was a batch.

        Nothing of the batch is referenced when this returns, so that the memory of its scans is free once they are
        written.
        """
        with self._watch.timed("wait"):
            batch = self._queue.take()
        if batch is None:
            return False
        self._check(thread, batch.units[0].scan)
        with self._watch.timed("fill"):
            image = batch.fill(thread.lane.image, in_place=thread.lane.reads_in_place)
        output, failure = None, ""
        try:
            output = thread.lane.run(image, batch.neighbors, self._limit_compute(thread), batch.targets())
        except Exception as error:  # noqa: BLE001 (onnxruntime raises many types, some of them private)
            failure = find_cause(error)
        if output is None:  # the error is gone by now, and with it what it holds of the session
            self._fail_batch(thread, batch, failure)
            return True
        with self._watch.timed("scatter"):
            labeled = batch.put(output)
        for scan, count in Counter(unit.scan for unit in batch.units).items():
            if current := self._scans.get(scan):
                self._steps.advance(current, count)
        for scan in labeled:
            if current := self._scans.get(scan):
                writers.submit(self._guard, partial(self._ask_or_write, current))
        return True

    @contextmanager
    def _limit_compute(self, thread: _LaneThread) -> Iterator[None]:
        with thread.compute_limit, self._watch.computing(thread.model.device):
            yield

    def _check(self, thread: _LaneThread, scan: NetworkScan) -> None:
        """Check a device before its first batch; every lane waits here while a device is checked or rebuilt."""
        with self._device_lock:
            if self._steps.check is not None and thread.model in self._unchecked:
                self._unchecked.remove(thread.model)
                self._steps.check(thread.model, scan, thread.lane)

    def _fail_batch(self, thread: _LaneThread, batch: NetworkBatch, failure: str) -> None:
        """Fail the scans of a batch and rebuild the session, unless another lane has already rebuilt it.

        Raises
        ------
        ModelError
            The model's labels have another shape than it declares.
        ProviderError
            The session was rebuilt before, or cannot be rebuilt.
        """
        reason = explain_batch_failure(thread.model.provider, failure)
        for scan in dict.fromkeys(unit.scan for unit in batch.units):
            if current := self._scans.get(scan):
                self._fail(current, reason)
        if isinstance(reason, ModelError):  # every batch would fail so
            raise reason
        with self._device_lock:
            if thread.model.rebuilt != thread.rebuilt:
                return
            if thread.model in self._rebuilt:
                raise ProviderError(
                    f"--provider {thread.model.provider}: the device failed again after its session was rebuilt "
                    f"({failure}). Run the same command again to continue, or use --provider cpu."
                )
            self._rebuilt.add(thread.model)
            with thread.compute_limit.exclude_all():
                _rebuild(thread.model, failure)

    def _ask_or_write(self, current: ScanInProgress) -> None:
        scan = current.scan
        try:
            if scan.ask_more():
                self._queue.add(scan)
                if scan not in self._scans:  # it has failed meanwhile, in another batch
                    self._queue.drop(scan)
                return
            self._queue.finish(scan)
            self._steps.write(current)
        except Exception as error:  # noqa: BLE001 (any error fails one scan and not the run)
            self._note_bug(error)
            self._fail(current, error)
        else:
            self._forget(current)

    def _note_bug(self, error: Exception) -> None:
        """Keep the first error that is a bug; `run` raises it when all other scans are done."""
        if explain_failure(error, "").bug:
            self._bug = self._bug or error

    def _fail(self, current: ScanInProgress, error: Exception) -> None:
        held = self._forget(current)
        self._queue.drop(current.scan)  # after it is forgotten: `_ask_or_write` adds a scan, then looks for it
        if held:
            self._steps.fail(current.job, error)

    def _forget(self, current: ScanInProgress) -> bool:
        """Release a scan's memory and return whether it was still in progress."""
        with self._scans_lock:
            held = self._scans.pop(current.scan, None) is not None
        if held:
            self._queue.release(current.memory_bytes)
        return held


def _rebuild(model: Model, failure: str) -> None:
    """Rebuild the session of a device that failed.

    Raises
    ------
    ProviderError
        It cannot be rebuilt.
    """
    try:
        model.rebuild()
    except ProviderError as error:
        raise ProviderError(
            f"--provider {model.provider}: the device failed ({failure}), and this process can no longer use it "
            f"({find_cause(error.__cause__ or error)}). Run the same command again to continue, or use --provider cpu."
        ) from error
