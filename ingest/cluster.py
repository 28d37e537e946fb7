"""Runs tasks on Dask workers, and converts results and failures to outcomes."""

import contextlib
import itertools
import logging
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

from slicemill.common.cluster import connect, quiet_dask
from slicemill.common.errors import ConfigError, StoreError
from slicemill.common.files import Location
from slicemill.common.locks import ClaimWait
from slicemill.common.signals import hold_sigterm
from slicemill.ingest.outcomes import CaseOutcome
from slicemill.ingest.params import Params
from slicemill.ingest.plan import Task
from slicemill.ingest.work import run_case
from slicemill.store.version import stored_version

TIMES_LOST = 5
"""Number of times that a task is repeated after its result was lost with its worker."""
RETRY_SECONDS = 2.0
"""Waiting time before a case that another run has claimed is tried again."""


@dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """A task that ended."""

    task: Task
    outcome: CaseOutcome
    bug: BaseException | None = None
    """The exception that the task raised, if it is a bug."""


class TaskRunner:
    """Submits tasks to a Dask client and collects their outcomes."""

    def __init__(self, client: Any, params: Params, root: Location, threads: int) -> None:
        self._client = client
        self._params = params
        self._root = root
        self._threads = threads
        self._numbers = itertools.count()

    def run(self, tasks: list[Task]) -> Iterator[FinishedTask]:
        """Yield each task when it ends.

        A task whose case is claimed by another run is yielded as ``claimed`` and repeated until it ends otherwise, or
        that run is found to be stopped. A task whose result was lost with its worker is repeated, TIMES_LOST times at
        most.
        """
        from distributed import as_completed

        futures = {self._submit(task): task for task in tasks}
        waiting: list[Task] = []
        lost: Counter[str] = Counter()
        waits: dict[str, ClaimWait] = {}
        while futures:
            may_report = True  # one case of each round
            for future in as_completed(list(futures)):
                task = futures.pop(future)
                case_id = task.case.case_id
                outcome, bug = read_future(case_id, future)
                if outcome is None and lost[case_id] < TIMES_LOST and self._is_connected():
                    lost[case_id] += 1
                    waiting.append(task)
                    continue
                outcome = self._check_visible(outcome or self._lost_outcome(task))
                if outcome.status == "claimed":
                    wait = waits.setdefault(case_id, ClaimWait(self._root, case_id))
                    try:
                        may_report = not wait.check(report=may_report) and may_report
                        waiting.append(task)
                    except StoreError as error:
                        outcome = replace(outcome, status="failed", reason=str(error), passing=True)
                yield FinishedTask(task=task, outcome=outcome, bug=bug)
            if waiting and self._is_connected():
                time.sleep(RETRY_SECONDS)
                futures, waiting = {self._submit(task): task for task in waiting}, []
        for task in waiting:  # the connection to the scheduler is lost
            yield FinishedTask(task=task, outcome=self._lost_outcome(task))

    def _submit(self, task: Task) -> Any:
        # each try has a new key: for a known key, Dask returns the old result
        key = f"ingest-{task.case.case_id}-{next(self._numbers)}-{uuid.uuid4().hex[:8]}"
        return self._client.submit(run_case, task, self._params, self._root, self._threads, key=key, pure=False)

    def _is_connected(self) -> bool:
        """Return whether the client has its scheduler, after waiting for a reconnection in progress."""
        while self._client.status == "connecting":
            time.sleep(0.1)
        return bool(self._client.status == "running")

    def _check_visible(self, outcome: CaseOutcome) -> CaseOutcome:
        """Return a failure for a case that is done but missing in the store that this process reads."""
        if outcome.status != "done" or stored_version(self._root, outcome.case_id) is not None:
            return outcome
        reason = f"{outcome.case_id}: its worker wrote it to a folder that this process cannot see; share it."
        return replace(outcome, status="failed", reason=reason)

    def _lost_outcome(self, task: Task) -> CaseOutcome:
        """Return the outcome of a task whose result is permanently lost."""
        case_id = task.case.case_id
        reason = f"{case_id}: the Dask scheduler is gone; run the same command again with a running one."
        if self._is_connected():
            reason = (
                f"{case_id}: {TIMES_LOST + 1} workers died before they reported its outcome; "
                "run the same command again."
            )
        return CaseOutcome(case_id=case_id, status="failed", reason=reason, passing=True)


def read_future(case_id: str, future: Any) -> tuple[CaseOutcome | None, BaseException | None]:
    """Return a task's outcome and the exception that it raised, if that is a bug.

    The outcome is None if it was lost with a worker or the scheduler.
    """
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        # the result may be lost in transit; if another worker then repeats the task, its status changes
        with contextlib.suppress(OSError, CancelledError, KilledWorker):
            return future.result(), None
    if future.status != "error":
        return None, None
    error = future.exception()
    if isinstance(error, KilledWorker):
        reason = "its worker process died several times, probably for lack of memory; use fewer --workers."
        bug = None
    else:
        reason = f"this is a bug, please report it: {type(error).__name__}: {error}"
        bug = error
    return CaseOutcome(case_id=case_id, status="failed", reason=f"{case_id}: {reason}", passing=True), bug


@contextlib.contextmanager
def open_client(scheduler: str | None, workers: int) -> Iterator[Any]:
    """Yield a Dask client: of the scheduler at this address, or of `workers` local processes with one thread each.

    Raises
    ------
    ConfigError
        Dask is not installed, the scheduler cannot be reached, or the processes cannot be started.
    """
    if scheduler is not None:
        with connect(scheduler) as client:
            yield client
        return
    with (
        quiet_dask() as distributed,
        _start_workers(distributed, workers) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _start_workers(distributed: Any, workers: int) -> Any:
    """Return a cluster of `workers` local processes."""
    try:
        with _ignore_interrupts(), hold_sigterm():
            return distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",  # any port: another run on this machine may use the default one
                silence_logs=logging.CRITICAL,
                preload=[run_case.__module__],
            )
    except (RuntimeError, OSError, TimeoutError) as error:
        raise ConfigError(
            f"the {workers} worker processes could not be started, or ended immediately ({error}), perhaps for lack of "
            "memory. Finished cases are kept; use fewer --workers, or run the same command again."
        ) from error


@contextlib.contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Make new processes ignore Ctrl-C, which a terminal sends to all processes: only this one handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
