"""A collection -> a store, one Dask task per case. Only its task writes the shards of a case.

1. `plan` compares each case with the store: new, unchanged (same files by size and time, or by hash), changed, or
   failed before. The largest cases are submitted first, so that no long task runs alone at the end.
2. A worker claims its case, converts it (`work`) and returns a small outcome. Only this process writes the ledgers.
   A case that another run has claimed is tried again until it is done or its claim is free.
3. A task that raises or loses its worker fails with a reason (`cluster`); the others continue.
4. At the end the manifest, slice and lesion tables are built from the groups.
"""

import os
import time
from dataclasses import dataclass, replace

from slicemill.common.errors import StoreError
from slicemill.common.files import Location
from slicemill.common.names import natural_key
from slicemill.common.progress import progress
from slicemill.ingest.cluster import TaskRunner, open_client
from slicemill.ingest.dicom_ids import hash_patients, needs_salt
from slicemill.ingest.discover import CaseFiles, Collection
from slicemill.ingest.left_out_points import write_left_out
from slicemill.ingest.outcomes import CaseOutcome, IngestReport, Ledgers
from slicemill.ingest.params import Params
from slicemill.ingest.plan import Task, plan_cases, require_params
from slicemill.store.patients import settle_salt
from slicemill.store.tables import reindex
from slicemill.store.writer import prepare_store, remove_partial

AUTO_THREADS = 4
"""A case uses about three cores: one thread decodes, the others encode (`slicemill bench ingest`)."""


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Options of a run; none of them changes the bytes of a store."""

    workers: int = 0
    """Worker processes; 0 means one per core, or one per case if there are fewer."""
    threads: int = 0
    """Threads of each process for one case; 0 divides the cores, at most AUTO_THREADS."""
    scheduler: str | None = None
    """Address of a Dask scheduler, instead of local processes."""
    shard: tuple[int, int] | None = None
    """I of N: only every Nth case, starting with the Ith; the tables are left to `store reindex`."""
    overwrite: bool = False
    """Whether all cases are converted again."""
    retry_failed: bool = False
    """Whether cases that failed before are tried again although their files did not change."""
    rehash: bool = False
    """Whether unchanged files are recognized by their content, not by size and time."""
    salt: str | None = None
    """Salt of the ids of DICOM patients; None for the store's own."""


def ingest(collection: Collection, store: str | Location, params: Params, options: IngestOptions) -> IngestReport:
    """Convert a collection into a store; a repeated call does only what is left.

    Raises
    ------
    StoreError
        The store has cases with other parameters.
    ConfigError
        The Dask scheduler cannot be reached, or the worker processes cannot be started.
    """
    start = time.perf_counter()
    root = prepare_store(store).absolute()
    require_params(root, params, overwrite=options.overwrite)
    remove_partial(root)
    salt = settle_salt(root, options.salt) if options.salt is not None or needs_salt(collection.cases) else ""
    cases = [make_absolute(case) for case in hash_patients(collection.cases, salt)]
    if options.shard:
        first, step = options.shard
        cases = cases[first::step]
    plan = plan_cases(
        cases,
        root,
        params,
        overwrite=options.overwrite,
        retry_failed=options.retry_failed,
        rehash=options.rehash,
    )
    ended, bug = _run_tasks(plan.tasks, root, params, options)
    problem = "" if options.shard else _build_tables(root, collection)
    outcomes = sorted([*plan.outcomes, *ended], key=lambda outcome: natural_key(outcome.case_id))
    return IngestReport(outcomes=tuple(outcomes), seconds=time.perf_counter() - start, problem=problem, bug=bug)


def make_absolute(case: CaseFiles) -> CaseFiles:
    """Return a case with absolute paths, which are valid in any worker's folder."""
    structures = tuple(replace(one, path=one.path.absolute()) for one in case.structures)
    mask = case.mask and case.mask.absolute()
    return replace(case, image=case.image.absolute(), mask=mask, structures=structures, root=case.root.absolute())


def _build_tables(root: Location, collection: Collection) -> str:
    """Build the tables; return the reason why they are not up to date, or an empty text."""
    try:
        if any(case.points is not None for case in collection.cases):
            write_left_out(root, collection.unmatched_points)
        reindex(root)
    except StoreError as error:
        return str(error)
    except OSError as error:
        why = error.strerror or error
        return f"the tables could not be written ({why}); free some space, then run `slicemill store reindex {root}`."
    return ""


def _run_tasks(
    tasks: list[Task], root: Location, params: Params, options: IngestOptions
) -> tuple[list[CaseOutcome], BaseException | None]:
    """Return the outcomes of all tasks, and the first exception that is a bug."""
    if not tasks:
        return [], None
    tasks = sorted(tasks, key=lambda task: -task.megabytes)
    cores = len(os.sched_getaffinity(0))
    workers = min(options.workers or cores, len(tasks))
    threads = options.threads or min(max(1, 1 if options.scheduler else cores // workers), AUTO_THREADS)
    ledgers = Ledgers(root)
    outcomes: list[CaseOutcome] = []
    bug: BaseException | None = None
    total = sum(task.megabytes for task in tasks)
    with open_client(options.scheduler, workers) as client, progress("ingest", total, "MB") as advance:
        start = time.perf_counter()
        try:
            for finished in TaskRunner(client, params, root, threads).run(tasks):
                bug = bug or finished.bug
                task, outcome = finished.task, finished.outcome
                if outcome.status == "claimed":
                    advance(0, f"waiting for {outcome.case_id}, which another run has claimed")
                    continue
                ledgers.append(task.case, params, outcome)
                outcomes.append(outcome)
                advance(task.megabytes, _describe_pace(outcomes, time.perf_counter() - start))
        finally:
            ledgers.flush()
    return outcomes, bug


def _describe_pace(outcomes: list[CaseOutcome], seconds: float) -> str:
    """Return slices and voxel bytes per second, and the number of failed cases so far."""
    slices = sum(outcome.slices for outcome in outcomes)
    gigabytes = sum(outcome.voxel_bytes for outcome in outcomes) / 1e9
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    return f"{slices / seconds:,.0f} slices/s, {gigabytes / seconds:.2f} GB/s of voxels, {failed} failed"
