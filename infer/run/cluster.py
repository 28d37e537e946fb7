"""Cluster: each worker of a Dask cluster runs over all scans; claims divide the scans among the workers.

1. A worker (one for each device) gets one task: all jobs, starting at a different one, so that workers do not compete
   for the same scan.
2. Each worker claims scans that are free and skips what is in the ledger, as runs started by hand do. So a scan is not
   a Dask task, batches are filled across scans, and a fast worker does more scans.
3. A killed worker loses its claims with its process. Dask gives its task to another worker, which continues it.
4. The outcomes of all workers are merged: a scan is done if a worker or the ledger reports it done.
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slicemill.common.cluster import RESPONSE_SECONDS, connect
from slicemill.common.errors import ConfigError, InputError, ProviderError
from slicemill.common.left_out import LeftOut
from slicemill.common.progress import progress
from slicemill.common.terminal import print_line
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.outputs import extra_names
from slicemill.infer.run.pipeline import CLAIMED_ELSEWHERE, describe_device, infer, make_unreached_outcome, select_jobs
from slicemill.infer.run.summary import ScanOutcome, Summary, write_summary
from slicemill.infer.run.timing import share_times
from slicemill.infer.runtime.providers import Provider

BY_LEDGER = "done according to the ledger: its worker died before it reported, or another run did it"
POLL_SECONDS = 2.0
"""How often the ledger is read for the progress bar."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """The task of one worker."""

    model: Path
    sha256: str
    """Hash of the model file, which must be the same for all workers."""
    provider: Provider
    jobs: tuple[Job, ...]
    out: Path
    options: InferOptions
    topic: str
    """Dask topic to which the worker logs its device."""


def run_task(task: WorkerTask) -> Summary:
    """Run a worker's task, in the worker.

    Raises
    ------
    ConfigError
        The worker has a different model file, or the output folder is not visible to it.
    """
    from distributed import get_worker

    if not task.out.is_dir():
        raise ConfigError("not visible to a worker; --out must be a folder that all workers share.", where=task.out)
    model = open_model(task.model, task.provider, task.options.devices[0], task.options.batch)
    if model.info.sha256 != task.sha256:
        raise ConfigError(
            "a worker has a different file at this path; all workers must share the model file.", where=task.model
        )
    worker = get_worker()
    worker.log_event(task.topic, f"worker {worker.address}: {describe_device(model, task.options)}")
    return infer(model, task.jobs, task.out, task.options)


def infer_on(
    address: str,
    model: Model,
    provider: Provider,
    jobs: Sequence[Job],
    ledger: RunLedger,
    left_out: Sequence[LeftOut] = (),
) -> Summary:
    """Segment scans on the workers of the Dask scheduler at `address`; see `slicemill.infer.run.pipeline.infer`.

    Raises
    ------
    ConfigError
        No scheduler can be reached, or it has no worker.
    InputError
        The error that ended the run of every worker.
    """
    start = time.perf_counter()
    out, options = ledger.out, ledger.options
    out.mkdir(parents=True, exist_ok=True)
    left, known = select_jobs(jobs, ledger, extra_names(model.info.labels, options))
    before = {outcome.name: outcome for outcome in known}
    follower = LedgerFollower(left)
    results = WorkerResults()
    try:
        with connect(address) as client:
            tasks = split_tasks(model, provider, left, ledger, _count_workers(client, address))
            results = _run_tasks(client, tasks, ledger, follower)
    finally:
        with contextlib.suppress(OSError):  # the summary still has the outcomes that workers returned
            follower.update(ledger)
        summary = merge_summaries(jobs, before, follower.outcomes, results.summaries, time.perf_counter() - start)
        summary = replace(summary, left_out=tuple(left_out))
        write_summary(out, model, summary, options.part)
    if results.errors and (not results.summaries or not isinstance(results.errors[0], InputError)):
        raise results.errors[0]
    return summary


def split_tasks(
    model: Model, provider: Provider, left: Sequence[Job], ledger: RunLedger, workers: int
) -> list[WorkerTask]:
    """Return a task for each worker: all jobs that are left, each starting at a different one."""
    # absolute paths, which hold in the folder of every worker
    jobs = [replace(job, path=job.path.absolute()) for job in left]
    count, topic = min(workers, len(jobs)), f"infer-{uuid.uuid4().hex}"
    starts = [len(jobs) * index // count for index in range(count)]
    return [
        WorkerTask(
            model=model.path.absolute(),
            sha256=model.info.sha256,
            provider=provider,
            jobs=(*jobs[first:], *jobs[:first]),
            out=ledger.out.absolute(),
            options=ledger.options.for_worker(index),
            topic=topic,
        )
        for index, first in enumerate(starts)
    ]


class LedgerFollower:
    """Follows the ledger for outcomes of some jobs since a run began."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.name: job for job in jobs}
        self._start = time.perf_counter()
        self.outcomes: dict[str, ScanOutcome] = {}
        """Outcome of each scan that has ended, by name."""

    def update(self, ledger: RunLedger) -> int:
        """Read new lines of the ledger and return the number of scans that have ended since."""
        before = len(self.outcomes)
        self.outcomes |= ledger.read_news(self.jobs)
        return len(self.outcomes) - before

    def __str__(self) -> str:
        """Return rate and failures."""
        slices = sum(outcome.slices for outcome in self.outcomes.values())
        failed = sum(outcome.status == "failed" for outcome in self.outcomes.values())
        return f"{slices / (time.perf_counter() - self._start):,.1f} slices/s, {failed} failed"


def merge_summaries(
    jobs: Sequence[Job],
    before: Mapping[str, ScanOutcome],
    by_ledger: Mapping[str, ScanOutcome],
    summaries: Sequence[Summary],
    seconds: float,
) -> Summary:
    """Merge the summaries of workers; of a scan's outcomes, the one with the highest priority counts.

    Parameters
    ----------
    before
        Outcomes from before the run.
    by_ledger
        Outcomes in the ledger since then, including those of workers that died later and of other runs into the folder.
    summaries
        One for each worker that finished its task.
    seconds
        Duration of the run.
    """
    outcomes = dict(before)
    ledger = (replace(one, reason=one.reason or BY_LEDGER) for one in by_ledger.values())
    for outcome in itertools.chain(*(summary.outcomes for summary in summaries), ledger):
        if outcome.name not in outcomes or _rank(outcome) > _rank(outcomes[outcome.name]):
            outcomes[outcome.name] = outcome
    stages = summaries[0].stages if summaries else ()
    stage_seconds = {stage: sum(summary.stages[stage].seconds for summary in summaries) for stage in stages}
    busy = sum(summary.device_busy * summary.seconds for summary in summaries)
    return Summary(
        outcomes=tuple(outcomes.get(job.name) or make_unreached_outcome(job.name) for job in jobs),
        seconds=seconds,
        provider=", ".join(sorted({summary.provider for summary in summaries})),
        stages=share_times(stage_seconds),
        device_busy=busy / (sum(summary.seconds for summary in summaries) or 1.0),
    )


def _rank(outcome: ScanOutcome) -> int:
    """Return the merge priority of an outcome: done, skipped, failed, claimed elsewhere."""
    if outcome.status == "skipped":
        return 0 if outcome.reason == CLAIMED_ELSEWHERE else 2
    return {"failed": 1, "done": 3}[outcome.status]


@dataclass(frozen=True, kw_only=True)
class WorkerResults:
    """Results of the tasks of all workers."""

    summaries: list[Summary] = field(default_factory=list)
    """Summaries of tasks that finished."""
    errors: list[BaseException] = field(default_factory=list)
    """Errors of tasks that failed."""


def _run_tasks(client: Any, tasks: Sequence[WorkerTask], ledger: RunLedger, follower: LedgerFollower) -> WorkerResults:
    """Run a task on each worker and wait for all; meanwhile show the progress of the ledger."""
    from distributed import wait

    if tasks:
        client.subscribe_topic(tasks[0].topic, lambda event: print_line(event[1]))
    futures = [client.submit(run_task, task, key=f"infer-{uuid.uuid4().hex}", pure=False) for task in tasks]
    with progress("infer", len(follower.jobs), "scans") as advance:
        while futures and not all(future.done() for future in futures) and client.status in ("running", "connecting"):
            with contextlib.suppress(TimeoutError, CancelledError):
                wait(futures, timeout=POLL_SECONDS)
            advance(follower.update(ledger), f"{len(tasks)} workers, {follower}")
    results = WorkerResults()
    for future in futures:
        try:
            results.summaries.append(future.result(timeout=RESPONSE_SECONDS))
        except Exception as error:  # noqa: BLE001 (a worker raised it; the caller raises it again)
            results.errors.append(_explain(error, ledger.out))
    return results


def _explain(error: Exception, out: Path) -> Exception:
    """Return an actionable error for a failed worker or scheduler; return other errors unchanged."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return ProviderError("workers were killed repeatedly, probably for lack of memory; run it again.", where=out)
    if isinstance(error, CancelledError | TimeoutError | OSError):
        return ProviderError(
            "--scheduler: connection lost; run the same command again with a running scheduler to continue."
        )
    return error


def _count_workers(client: Any, address: str) -> int:
    try:
        client.wait_for_workers(1, timeout=RESPONSE_SECONDS)
    except TimeoutError as error:
        raise ConfigError(f"--scheduler {address}: has no workers; start one per device.") from error
    return len(client.nthreads())
