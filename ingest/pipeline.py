"""A collection -> a store: one Dask task a case, each the sole owner of its shards.

1. Each case is new, unchanged (same files by size and time, or by hash), changed, or failed before; only what is left
   is submitted, the largest first, so that no long case is left to the end.
2. A worker claims its case, converts it and returns a small outcome; this process alone appends to the ledgers. A case
   that another run has claimed is asked for again until it is done or its claim is free.
3. A task that raises or loses its worker is a failure with a reason; the others go on.
4. At the end the manifest, slice and lesion tables are built from the groups.
"""

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any, Literal

from slicemill.common.errors import ConfigError, InputError, ReadError, StoreError
from slicemill.common.files import Location, read_lines, sha256_of_file, to_json, write_json
from slicemill.common.ledger import LEDGER, Ledger
from slicemill.common.locks import try_claim, wait_for_claim
from slicemill.common.progress import progress
from slicemill.common.terminal import peak_mib
from slicemill.ct.formats.nifti.names import files_of
from slicemill.ct.naming import natural_key
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, Collection
from slicemill.ingest.params import Params
from slicemill.store.case import SourceFile
from slicemill.store.layout import ATTRIBUTE, DOCUMENT, FAILURES, FORMAT, GROUP
from slicemill.store.reader import Store, open_case, open_store, read_document
from slicemill.store.tables import reindex
from slicemill.store.writer import prepare_store, remove_partial
from slicemill.store.zarr_documents import group_document

Status = Literal["done", "unchanged", "failed", "failed before", "claimed"]
PARAMS = ".params"
"""Name of the claim of whoever settles a store's parameters; a case id does not start with a dot."""
AUTO_THREADS = 4
"""A case keeps about three cores busy: one decodes, the others encode (`slicemill bench ingest`)."""
TIMES_LOST = 5
"""How often a task is done again whose result died with its worker."""
ASK_AGAIN_SECONDS = 2.0
"""How long a case that another run works on is left before it is asked for again."""


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How to run; none of it changes the bytes of a store."""

    workers: int = 0
    """Processes; 0 is one per core, or per case where there are fewer."""
    threads: int = 0
    """Threads of each process that work on one case; 0 shares the cores out, AUTO_THREADS at most."""
    scheduler: str | None = None
    """Address of a Dask scheduler, instead of processes here."""
    shard: tuple[int, int] | None = None
    """I of N: only every Nth case, from the Ith on; tables are left to `store reindex`."""
    overwrite: bool = False
    retry_failed: bool = False
    rehash: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """How one case ended."""

    case_id: str
    status: Status
    reason: str = ""
    passing: bool = False
    """Whether the reason lies not in the case's files (a full disk, a read error, a killed worker), so that it is tried again."""
    slices: int = 0
    voxel_bytes: int = 0
    warnings: tuple[str, ...] = ()
    peak_mib: float = 0.0
    stamp: dict[str, Any] | None = None
    """What the case's files were when they were read."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How an ingest ended: every case is accounted for."""

    outcomes: tuple[CaseOutcome, ...]
    seconds: float
    problem: str = ""
    """Why the tables are not up to date, when they are not."""
    bug: BaseException | None = None
    """What no rule foresaw; its case counts as failed."""

    def count(self, *statuses: Status) -> int:
        """Return how many cases ended so."""
        return sum(outcome.status in statuses for outcome in self.outcomes)

    @property
    def failures(self) -> list[CaseOutcome]:
        """Return the cases that are not in the store, with reasons."""
        return [outcome for outcome in self.outcomes if outcome.status in ("failed", "failed before")]


def ingest(collection: Collection, store: str | Location, params: Params, options: IngestOptions) -> Report:
    """Bring a collection into a store; the same call again does only what is left.

    Raises
    ------
    StoreError
        The store holds cases of other parameters.
    """
    start = time.perf_counter()
    root = prepare_store(store).absolute()
    settle_params(root, params, overwrite=options.overwrite)
    remove_partial(root)
    cases = [absolute(case) for case in collection.cases]
    if options.shard:
        cases = cases[options.shard[0] :: options.shard[1]]
    outcomes: list[CaseOutcome] = []
    left: list[Task] = []
    for planned in _planned(cases, root, params, options):
        (outcomes if isinstance(planned, CaseOutcome) else left).append(planned)  # type: ignore[arg-type]
    ended, bug = _run(left, root, params, options)
    outcomes += ended
    problem = ""
    if not options.shard:
        try:
            reindex(root)
        except StoreError as error:
            problem = str(error)
        except OSError as error:
            problem = f"the tables could not be written ({error.strerror or error}); make room, then `slicemill store reindex {root}`."
    outcomes.sort(key=lambda outcome: natural_key(outcome.case_id))
    return Report(outcomes=tuple(outcomes), seconds=time.perf_counter() - start, problem=problem, bug=bug)


def absolute(case: CaseFiles) -> CaseFiles:
    """Return a case whose paths hold in any worker's folder."""
    return replace(
        case, image=case.image.absolute(), mask=case.mask and case.mask.absolute(), root=case.root.absolute()
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """A case that is to be looked at."""

    case: CaseFiles
    seen: str | None
    """What told the case apart that was in the store when the run began; None where there was none."""
    compare: bool
    """Whether its files are compared with the stored hashes before it is done again."""
    megabytes: float


def _planned(
    cases: list[CaseFiles], root: Location, params: Params, options: IngestOptions
) -> Iterator[CaseOutcome | Task]:
    """Yield each case's outcome where that is known, else what is to be done."""
    store = open_store(root)
    present = set(store.case_ids)
    done = {line.get("case_id"): line for line in read_lines(root / LEDGER)}
    failed = {line.get("case_id"): line for line in read_lines(root / FAILURES)}
    for case in cases:
        stamp = stamp_of(case, params)
        there = case.case_id in present
        if there and not options.overwrite:
            if done.get(case.case_id, {}).get("stamp") == stamp and not options.rehash:
                yield CaseOutcome(case_id=case.case_id, status="unchanged")
                continue
            there = _is_readable(store, case.case_id, params)
        elif _failed_for_good(failed.get(case.case_id, {}), stamp) and not (options.retry_failed or options.overwrite):
            reason = failed[case.case_id].get("reason", "")
            yield CaseOutcome(case_id=case.case_id, status="failed before", reason=reason)
            continue
        yield Task(
            case=case,
            seen=identity(root, case.case_id) if there else None,
            compare=there and not options.overwrite,
            megabytes=_megabytes(stamp),
        )


def identity(root: Location, case_id: str) -> str | None:
    """Return what tells a stored case apart from one that another run puts in its place; None where there is none."""
    try:
        status = (root / GROUP / case_id / DOCUMENT).stat()
    except OSError:
        return None
    return f"{status.st_mtime_ns}/{getattr(status, 'st_ino', None) or getattr(status, 'e_tag', None)}"


def _failed_for_good(line: dict[str, Any], stamp: dict[str, Any]) -> bool:
    """Return whether a line of the failures says that these very files cannot be ingested."""
    return line.get("stamp") == stamp and not line.get("passing", False)


def settle_params(root: Location, params: Params, *, overwrite: bool) -> None:
    """Write into a store's own document what all its cases are ingested with, or compare with what stands there.

    Raises
    ------
    StoreError
        The store was begun with other parameters.
    """
    document = root / GROUP / DOCUMENT
    with wait_for_claim(root, PARAMS):
        attribute = read_document(root / GROUP).get("attributes", {}).get(ATTRIBUTE, {})
        stored = attribute.get("params") if isinstance(attribute, dict) else None
        if stored == params.as_json():
            return
        if stored is not None and not overwrite:
            raise StoreError(
                f"{root}: was begun with other parameters ({to_json(stored)}) than now asked for ({to_json(params.as_json())}). "
                "Use another store, the same options, or --overwrite, which does all cases again."
            )
        write_json(document, group_document({ATTRIBUTE: {"format": FORMAT, "params": params.as_json()}}))


def _is_readable(store: Store, case_id: str, params: Params) -> bool:
    """Return whether a stored case can be compared with its files; one that is damaged is done again.

    Raises
    ------
    StoreError
        It was written with other parameters.
    """
    try:
        info = store[case_id].info
    except StoreError:
        return False
    if info.params_sha256 != params.sha256():
        stored = info.labels.as_json() if info.labels else {"labels": None}
        raise StoreError(
            f"{store.root}: its case {case_id!r} was written with other parameters (hash {info.params_sha256[:12]}, {stored}) than now asked for "
            f"(hash {params.sha256()[:12]}, {params.as_json()}). Use another store, the same options, or --overwrite."
        )
    return True


def stamp_of(case: CaseFiles, params: Params) -> dict[str, Any]:
    """Return what tells whether a case must be done again: size and time of its files, and the parameters."""

    def mark(path: Location | None) -> list[int] | None:
        if path is None:
            return None
        try:
            found = [file.stat() for file in files_of(path)]
        except OSError:
            return [-1, -1]
        return [number for status in found for number in (status.st_size, status.st_mtime_ns)]

    return {
        "image": mark(case.image),
        "mask": mark(case.mask),
        "patient_id": case.patient_id,
        "params_sha256": params.sha256(),
    }


def run_case(task: Task, params: Params, root: Location, threads: int) -> CaseOutcome:
    """Claim one case and convert it, or find it unchanged; every reason that is the user's to mend becomes an outcome."""
    case = task.case
    try:
        with try_claim(root, case.case_id) as claim:
            if claim is None:
                return CaseOutcome(case_id=case.case_id, status="claimed")
            stamp = stamp_of(case, params)
            # another run may have done it since this one began
            done_since = identity(root, case.case_id) not in (task.seen, None)
            if (task.compare or done_since) and _same_content(case, params, root):
                return CaseOutcome(case_id=case.case_id, status="unchanged", stamp=stamp)
            info = convert_case(case, params, root, threads=threads, still_ours=claim.held)
            if stamp_of(case, params) != stamp:
                reason = f"{case.image}: changed, or its mask did, while it was read; the next run does it again."
                return CaseOutcome(case_id=case.case_id, status="failed", reason=reason, passing=True, stamp=stamp)
    except InputError as error:
        passing = isinstance(error, ReadError | StoreError)
        return CaseOutcome(
            case_id=case.case_id, status="failed", reason=str(error), passing=passing, stamp=stamp_of(case, params)
        )
    except OSError as error:
        reason = f"{error.filename or root}: {error.strerror or error}."
        return CaseOutcome(case_id=case.case_id, status="failed", reason=reason, passing=True)
    except MemoryError:
        reason = f"{case.image}: not enough memory to read it; use fewer --workers, or machines with more."
        return CaseOutcome(case_id=case.case_id, status="failed", reason=reason, passing=True)
    slices, ny, nx = info.shape
    return CaseOutcome(
        case_id=case.case_id,
        status="done",
        slices=slices,
        voxel_bytes=slices * ny * nx * (3 if info.mask else 2),
        warnings=info.warnings,
        peak_mib=peak_mib(),
        stamp=stamp,
    )


def _same_content(case: CaseFiles, params: Params, root: Location) -> bool:
    try:
        info = open_case(root, case.case_id).info
    except StoreError:
        return False
    pairs = ((case.image, info.image), (case.mask, info.mask))

    def same(path: Location | None, source: SourceFile | None) -> bool:
        if path is None or source is None:
            return path is None and source is None
        return sha256_of_file(*files_of(path)) == source.sha256

    known = info.patient_id == case.patient_id and info.params_sha256 == params.sha256()
    return known and all(same(path, source) for path, source in pairs)


def _run(
    left: list[Task], root: Location, params: Params, options: IngestOptions
) -> tuple[list[CaseOutcome], BaseException | None]:
    """Return what became of every task, and the first thing that went wrong against all rules."""
    if not left:
        return [], None
    left = sorted(left, key=lambda task: -task.megabytes)
    total = sum(task.megabytes for task in left)
    workers = min(options.workers or len(os.sched_getaffinity(0)), len(left))
    spare = 1 if options.scheduler else len(os.sched_getaffinity(0)) // workers
    threads = options.threads or min(max(1, spare), AUTO_THREADS)
    ledgers = {False: Ledger(root / LEDGER), True: Ledger(root / FAILURES)}
    outcomes: list[CaseOutcome] = []
    bug: BaseException | None = None
    with _client(options, workers) as client, progress("ingest", total, "MB") as advance:
        start = time.perf_counter()
        try:
            for task, outcome, error in _outcomes(client, left, (params, root, threads)):
                bug = bug or error
                if outcome.status == "claimed":
                    advance(0, f"waiting for {outcome.case_id}, which another run has claimed")
                    continue
                failed = outcome.status == "failed"
                ledgers[failed].append(_record(task.case, params, outcome))
                outcomes.append(outcome)
                advance(task.megabytes, _pace(outcomes, time.perf_counter() - start))
        finally:
            for ledger in ledgers.values():
                ledger.flush()
    return outcomes, bug


def _outcomes(
    client: Any, left: list[Task], settings: tuple[Params, Location, int]
) -> Iterator[tuple[Task, CaseOutcome, BaseException | None]]:
    """Yield what becomes of each task, with the bug that ended it if one did, in the order in which they end.

    A task whose case is claimed elsewhere comes again; one whose result died with its worker is done again.
    """
    from distributed import as_completed

    params, root, threads = settings
    turn = itertools.count()

    def submit(task: Task) -> Any:
        # a key of its own for each turn: Dask hands out the old result for one that it knows
        key = f"ingest-{task.case.case_id}-{next(turn)}-{uuid.uuid4().hex[:8]}"
        return client.submit(run_case, task, params, root, threads, key=key, pure=False)

    futures = {submit(task): task for task in left}
    waiting: list[Task] = []
    lost: Counter[str] = Counter()
    while futures:
        for future in as_completed(list(futures)):
            task = futures.pop(future)
            outcome, bug = _ended(task.case.case_id, future)
            if outcome is None and lost[task.case.case_id] < TIMES_LOST and _answers(client):
                lost[task.case.case_id] += 1
                waiting.append(task)
                continue
            outcome = outcome or _untold(task, client)
            if outcome.status == "done" and identity(root, outcome.case_id) is None:
                reason = f"{outcome.case_id}: written where this process cannot see it; use a shared folder."
                outcome = replace(outcome, status="failed", reason=reason)
            if outcome.status == "claimed":
                waiting.append(task)
            yield task, outcome, bug
        if waiting and _answers(client):
            time.sleep(ASK_AGAIN_SECONDS)
            futures, waiting = {submit(task): task for task in waiting}, []
    for task in waiting:
        yield task, _untold(task, client), None


def _answers(client: Any) -> bool:
    """Return whether the client has its scheduler; wait while it looks for one that it lost."""
    while client.status == "connecting":
        time.sleep(0.1)
    return bool(client.status == "running")


def _pace(outcomes: list[CaseOutcome], seconds: float) -> str:
    """Return slices and bytes of voxels a second, and how many cases failed so far."""
    slices = sum(outcome.slices for outcome in outcomes)
    gigabytes = sum(outcome.voxel_bytes for outcome in outcomes) / 1e9
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    return f"{slices / seconds:,.0f} slices/s, {gigabytes / seconds:.2f} GB/s of voxels, {failed} failed"


def _ended(case_id: str, future: Any) -> tuple[CaseOutcome | None, BaseException | None]:
    """Return the outcome of a task, None where it died with the worker that kept it or with the scheduler; and the bug, if one ended it."""
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        try:
            return future.result(), None
        except (OSError, CancelledError, KilledWorker):
            pass  # lost on the way; where another worker has tried it since, it may have ended otherwise
    if future.status != "error":
        return None, None
    error = future.exception()
    if isinstance(error, KilledWorker):
        error, reason = (
            None,
            "its worker process died again and again, probably for want of memory; use fewer --workers.",
        )
    else:
        reason = f"a bug, please report it: {type(error).__name__}: {error}"
    return CaseOutcome(case_id=case_id, status="failed", reason=f"{case_id}: {reason}", passing=True), error


def _untold(task: Task, client: Any) -> CaseOutcome:
    """Return the outcome of a task of which no one can tell how it ended."""
    case_id = task.case.case_id
    reason = f"{case_id}: the Dask scheduler is gone; run the same command again with one that answers."
    if _answers(client):
        reason = (
            f"{case_id}: {TIMES_LOST + 1} workers died before they could tell how it ended; run the same command again."
        )
    return CaseOutcome(case_id=case_id, status="failed", reason=reason, passing=True)


def _record(case: CaseFiles, params: Params, outcome: CaseOutcome) -> dict[str, Any]:
    """Return an outcome's line of the ledger of what is done, or of that of what failed."""
    record: dict[str, Any] = {"case_id": case.case_id, "stamp": outcome.stamp or stamp_of(case, params)}
    if outcome.status == "failed":
        return {**record, "image": case.name(case.image), "reason": outcome.reason, "passing": outcome.passing}
    return {**record, "status": outcome.status}


def _megabytes(stamp: dict[str, Any]) -> float:
    """Return the size of a case's files by their stamp."""
    marks: list[list[int] | None] = [stamp["image"], stamp["mask"]]
    return sum(max(0, mark[0]) for mark in marks if mark) / 1e6


@contextlib.contextmanager
def _client(options: IngestOptions, workers: int) -> Iterator[Any]:
    """Yield a Dask client: of the scheduler asked for, or of processes here, one thread each."""
    from distributed import Client, LocalCluster

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it logs as errors is told as outcomes here
    if options.scheduler:
        try:
            client = Client(options.scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise ConfigError(f"--scheduler {options.scheduler}: no Dask scheduler answers there ({error}).") from error
        with client:
            yield client
        return
    with contextlib.ExitStack() as stack:
        try:
            with _interrupts_ignored():
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=":0",  # any port: another run of this machine may have the usual one
                    silence_logs=logging.CRITICAL,
                )
        except (RuntimeError, OSError, TimeoutError) as error:
            raise ConfigError(
                f"the {workers} worker processes could not be started, or were ended at once ({error}). Is there memory for them? "
                "What was finished is kept; use fewer --workers, or run the same command again."
            ) from error
        stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster))


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: it goes to all of a terminal's processes, but only this one says what happened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
