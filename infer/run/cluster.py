"""Many machines: each worker of a Dask cluster is one run over all scans, which share them by their claims.

1. A worker (one for each device) gets one task: all jobs, from a place of its own on, so that workers do not ask for the same.
2. Each claims what nobody else has and skips what is in the ledger, as runs that are started by hand do. So a scan is no
   task of Dask's, batches are filled across scans, and a worker that is fast does more.
3. A worker that is killed loses its claims with its process; Dask gives its task to another worker, which does what is left.
4. The outcomes of all are put together: a scan is done if one of them did it, or the ledger says so.
"""

import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slicemill.common.errors import ConfigError, InputError, ProviderError
from slicemill.common.progress import progress
from slicemill.common.terminal import print_line
from slicemill.infer.inputs.jobs import Job, LeftOut
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.ledger import RunLedger, ScanOutcome, Summary, write_summary
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.outputs import extra_names
from slicemill.infer.run.pipeline import ELSEWHERE, infer, left_to_do, unreached, where_of
from slicemill.infer.runtime.providers import Provider

ANSWER_SECONDS = 20
"""How long a scheduler, and then its first worker, may take to answer."""
BY_LEDGER = "done, by the ledger: its worker did not live to say so, or another run did it"
LOOK_SECONDS = 2.0
"""How often the ledger is read for the progress that is shown."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one worker is to do."""

    model: Path
    sha256: str
    provider: Provider
    jobs: tuple[Job, ...]
    out: Path
    options: InferOptions
    topic: str
    """Where the worker tells what it works on."""


def work(part: Part) -> Summary:
    """Do a worker's part, in the worker.

    Raises
    ------
    ConfigError
        The worker sees another model file, or another folder.
    """
    from distributed import get_worker

    if not part.out.is_dir():
        raise ConfigError(f"{part.out}: a worker does not see this folder; --out must be shared with all of them.")
    model = open_model(part.model, part.provider, part.options.devices[0], part.options.batch)
    if model.info.sha256 != part.sha256:
        raise ConfigError(
            f"{part.model}: a worker sees another file of this name; the model must be shared with all of them."
        )
    worker = get_worker()
    worker.log_event(part.topic, f"worker {worker.address}: {where_of(model, part.options)}")
    return infer(model, part.jobs, part.out, part.options)


def infer_on(
    address: str,
    model: Model,
    provider: Provider,
    jobs: Sequence[Job],
    book: RunLedger,
    left_out: LeftOut | None = None,
) -> Summary:
    """Segment scans on the workers of the Dask scheduler at `address`; see `slicemill.infer.run.pipeline.infer`.

    Raises
    ------
    ConfigError
        No scheduler or no worker answers.
    InputError
        What ended the run of every worker.
    """
    start = time.perf_counter()
    out, options = book.out, book.options
    out.mkdir(parents=True, exist_ok=True)
    left, known = left_to_do(jobs, book, extra_names(model.info.labels, options))
    ended = {outcome.name: outcome for outcome in known}
    seen = Seen(left)
    summaries: list[Summary] = []
    errors: list[BaseException] = []
    try:
        with _client(address) as client:
            parts = parts_of(model, provider, left, book, len(_workers(client, address)))
            for ending in _endings(client, parts, book, seen):
                (summaries if isinstance(ending, Summary) else errors).append(ending)  # type: ignore[arg-type]
    finally:
        with contextlib.suppress(OSError):  # what the workers said is in the summary all the same
            seen.look(book)
        summary = together(jobs, ended, seen.outcomes, summaries, time.perf_counter() - start)
        summary = replace(summary, left_out=tuple(left_out or ()))
        write_summary(out, model, summary, options.part)
    if errors and (not summaries or not isinstance(errors[0], InputError)):
        raise errors[0]
    return summary


def parts_of(model: Model, provider: Provider, left: Sequence[Job], book: RunLedger, workers: int) -> list[Part]:
    """Return a part for each worker: all that is left, from another place on."""
    jobs = [
        Job(name=job.name, path=job.path.absolute(), case_id=job.case_id, window=job.window) for job in left
    ]  # paths must hold in any worker's folder
    count, topic = min(workers, len(jobs)), f"infer-{uuid.uuid4().hex}"
    starts = [len(jobs) * index // count for index in range(count)]
    return [
        Part(
            model=model.path.absolute(),
            sha256=model.info.sha256,
            provider=provider,
            jobs=(*jobs[first:], *jobs[:first]),
            out=book.out.absolute(),
            options=book.options.of_worker(index),
            topic=topic,
        )
        for index, first in enumerate(starts)
    ]


class Seen:
    """What the ledger told of scans since a run began."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.name: job for job in jobs}
        self._start = time.perf_counter()
        self.outcomes: dict[str, ScanOutcome] = {}
        """How scans ended, by name."""

    def look(self, book: RunLedger) -> int:
        """Take in what the ledger tells since, and return how many scans are new in it."""
        before = len(self.outcomes)
        self.outcomes |= book.news(self.jobs)
        return len(self.outcomes) - before

    def __str__(self) -> str:
        """Return rate and failures."""
        slices = sum(outcome.slices for outcome in self.outcomes.values())
        failed = sum(outcome.status == "failed" for outcome in self.outcomes.values())
        return f"{slices / (time.perf_counter() - self._start):,.1f} slices/s, {failed} failed"


def together(
    jobs: Sequence[Job],
    known: Mapping[str, ScanOutcome],
    told: Mapping[str, ScanOutcome],
    summaries: Sequence[Summary],
    seconds: float,
) -> Summary:
    """Return the summaries of workers as one: of the outcomes of a scan, the one that says most.

    `known` are those of before the run; `told` those that the ledger tells of since: of workers that died later, too, and of other
    runs into the same folder.
    """
    ended = dict(known)
    ledger = (replace(one, reason=one.reason or BY_LEDGER) for one in told.values())
    for outcome in itertools.chain(*(summary.outcomes for summary in summaries), ledger):
        if outcome.name not in ended or _rank(outcome) > _rank(ended[outcome.name]):
            ended[outcome.name] = outcome
    stages: dict[str, dict[str, Any]] = {}
    total = sum(row["seconds"] for summary in summaries for row in summary.stages.values()) or 1.0
    for stage in summaries[0].stages if summaries else ():
        taken = sum(summary.stages[stage]["seconds"] for summary in summaries)
        stages[stage] = {"seconds": round(taken, 6), "share": round(taken / total, 4)}
    busy = sum(summary.device_busy * summary.seconds for summary in summaries)
    return Summary(
        outcomes=tuple(ended.get(job.name) or unreached(job.name) for job in jobs),
        seconds=seconds,
        provider=", ".join(sorted({summary.provider for summary in summaries})),
        stages=stages,
        device_busy=busy / (sum(summary.seconds for summary in summaries) or 1.0),
    )


def _rank(outcome: ScanOutcome) -> int:
    """Return how much an outcome says: another worker may have done what this one only saw at work or done."""
    if outcome.status == "skipped":
        return 0 if outcome.reason == ELSEWHERE else 2
    return {"failed": 1, "done": 3}[outcome.status]


def _endings(client: Any, parts: Sequence[Part], book: RunLedger, seen: Seen) -> list[Summary | BaseException]:
    """Return how each part ended; meanwhile show how far the ledger is."""
    from distributed import wait
    from distributed.scheduler import KilledWorker

    if parts:
        client.subscribe_topic(parts[0].topic, lambda event: print_line(event[1]))
    futures = [client.submit(work, part, key=f"infer-{uuid.uuid4().hex}", pure=False) for part in parts]
    with progress("infer", len(seen.jobs), "scans") as advance:
        while futures and not all(future.done() for future in futures) and client.status in ("running", "connecting"):
            _wait(wait, futures)
            advance(seen.look(book), f"{len(parts)} workers, {seen}")
    endings: list[Summary | BaseException] = []
    for future in futures:
        try:
            endings.append(future.result(timeout=ANSWER_SECONDS))
        except KilledWorker:
            endings.append(
                ProviderError(
                    f"{book.out}: workers were killed again and again, probably for want of memory; run it again."
                )
            )
        except (CancelledError, TimeoutError, OSError):
            endings.append(
                ProviderError(
                    "--scheduler: is gone; run the same command again with one that answers, it goes on from here."
                )
            )
        except Exception as error:  # noqa: BLE001 (what a worker raised; the caller raises it)
            endings.append(error)
    return endings


def _wait(wait: Any, futures: Sequence[Any]) -> None:
    try:
        wait(futures, timeout=LOOK_SECONDS)
    except (TimeoutError, CancelledError):
        return


def _workers(client: Any, address: str) -> list[str]:
    try:
        client.wait_for_workers(1, timeout=ANSWER_SECONDS)
    except TimeoutError as error:
        raise ConfigError(f"--scheduler {address}: has no worker; start one for each device.") from error
    return list(client.nthreads())


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            "--scheduler needs Dask, here and in the workers: pip install 'slicemill[ingest]'."
        ) from error
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it logs as errors is told as outcomes here
    try:
        return Client(address, timeout=f"{ANSWER_SECONDS}s")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--scheduler {address}: no Dask scheduler answers there ({error}).") from error
