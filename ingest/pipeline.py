"""A collection -> a store: one Dask task a case, each the sole owner of its shards.

1. Each case is new, unchanged (same files by size and time, or by hash), changed, or failed before; only what is left is submitted.
2. Workers convert and return a small outcome; this process alone appends to the ledgers.
3. A task that raises or loses its worker is a failure with a reason; the others go on.
4. At the end the manifest, slice and lesion tables are built from the groups.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ingest.convert import convert_case
from ingest.discover import CaseFiles, Collection
from ingest.params import Params
from store.case import SourceFile
from store.errors import ConfigError, InputError, StoreError
from store.files import append_line, read_lines, sha256_of_file
from store.layout import DOCUMENT, FAILURES, GROUP, LEDGER
from store.manifest import reindex
from store.naming import natural_key
from store.progress import progress
from store.reader import Store, open_store
from store.screen import peak_mib
from store.writer import prepare_store, remove_partial

Status = Literal["done", "unchanged", "failed", "failed before"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run; none of it changes the bytes of a store."""

    workers: int = 0
    """Processes; 0 is one per core."""
    scheduler: str | None = None
    """Address of a Dask scheduler, instead of processes here."""
    shard: tuple[int, int] | None = None
    """I of N: only every Nth case, from the Ith on; tables are left to `store reindex`."""
    overwrite: bool = False
    retry_failed: bool = False
    rehash: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one case ended."""

    case_id: str
    status: Status
    reason: str = ""
    passing: bool = False
    """Whether the reason lies not in the case's files (a full disk, a killed worker), so that it is tried again."""
    slices: int = 0
    voxel_bytes: int = 0
    warnings: tuple[str, ...] = ()
    peak_mib: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """How an ingest ended: every case is accounted for."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    problem: str = ""
    """Why the tables are not up to date, when they are not."""

    def count(self, *statuses: Status) -> int:
        """Return how many cases ended so."""
        return sum(outcome.status in statuses for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        """Return the cases that are not in the store, with reasons."""
        return [outcome for outcome in self.outcomes if outcome.status in ("failed", "failed before")]


def ingest(collection: Collection, store: str | Path, params: Params, options: Options) -> Report:
    """Bring a collection into a store; the same call again does only what is left.

    Raises
    ------
    StoreError
        The store holds cases of other parameters.
    """
    start = time.perf_counter()
    root = prepare_store(store).resolve()
    remove_partial(root)
    cases = [absolute(case) for case in collection.cases]
    if options.shard:
        cases = cases[options.shard[0] :: options.shard[1]]
    outcomes: list[Outcome] = []
    left: list[tuple[CaseFiles, bool]] = []
    for case, known in _planned(cases, root, params, options):
        if isinstance(known, Outcome):
            outcomes.append(known)
        else:
            left.append((case, known))
    outcomes += _run(left, root, params, options)
    problem = ""
    if not options.shard:
        try:
            reindex(root)
        except OSError as error:
            problem = f"the tables could not be written ({error.strerror or error}); make room, then `slicemill store reindex {root}`."
    outcomes.sort(key=lambda outcome: natural_key(outcome.case_id))
    return Report(outcomes=tuple(outcomes), seconds=time.perf_counter() - start, problem=problem)


def absolute(case: CaseFiles) -> CaseFiles:
    """Return a case whose paths hold in any worker's folder."""
    return replace(
        case, image=case.image.absolute(), mask=case.mask and case.mask.absolute(), root=case.root.absolute()
    )


def _planned(
    cases: list[CaseFiles], root: Path, params: Params, options: Options
) -> Iterator[tuple[CaseFiles, Outcome | bool]]:
    """Yield each case with its outcome when that is known, else with whether its hash must be compared first."""
    store = open_store(root)
    present = set(store.case_ids)
    done = {line.get("case_id"): line for line in read_lines(root / LEDGER)}
    failed = {line.get("case_id"): line for line in read_lines(root / FAILURES)}
    for case in cases:
        stamp = stamp_of(case, params)
        if case.case_id in present and not options.overwrite:
            same = done.get(case.case_id, {}).get("stamp") == stamp
            _check_params(store, case.case_id, params)
            yield case, Outcome(case_id=case.case_id, status="unchanged") if same and not options.rehash else True
        elif _failed_for_good(failed.get(case.case_id, {}), stamp) and not (options.retry_failed or options.overwrite):
            yield (
                case,
                Outcome(case_id=case.case_id, status="failed before", reason=failed[case.case_id].get("reason", "")),
            )
        else:
            yield case, False


def _failed_for_good(line: dict[str, Any], stamp: dict[str, Any]) -> bool:
    """Return whether a line of the failures says that these very files cannot be ingested."""
    return line.get("stamp") == stamp and not line.get("passing", False)


def _check_params(store: Store, case_id: str, params: Params) -> None:
    info = store[case_id].info
    if info.params_sha256 != params.sha256():
        stored = info.labels.as_json() if info.labels else {"labels": None}
        raise StoreError(
            f"{store.root}: its case {case_id!r} was written with other parameters (hash {info.params_sha256[:12]}, {stored}) than now asked for "
            f"(hash {params.sha256()[:12]}, {params.as_json()}). Use another store, the same options, or --overwrite."
        )


def stamp_of(case: CaseFiles, params: Params) -> dict[str, Any]:
    """Return what tells whether a case must be done again: size and time of its files, and the parameters."""

    def mark(path: Path | None) -> list[int] | None:
        if path is None:
            return None
        try:
            status = path.stat()
        except OSError:
            return [-1, -1]
        return [status.st_size, status.st_mtime_ns]

    return {
        "image": mark(case.image),
        "mask": mark(case.mask),
        "patient_id": case.patient_id,
        "params_sha256": params.sha256(),
    }


def run_case(case: CaseFiles, params: Params, root: Path, *, compare_hash: bool) -> Outcome:
    """Convert one case, or find it unchanged by its hash; every reason that is the user's to mend becomes an outcome."""
    try:
        if compare_hash and _same_content(case, root):
            return Outcome(case_id=case.case_id, status="unchanged")
        info = convert_case(case, params, root)
    except InputError as error:
        return Outcome(case_id=case.case_id, status="failed", reason=str(error))
    except OSError as error:
        reason = f"{error.filename or root}: {error.strerror or error}."
        return Outcome(case_id=case.case_id, status="failed", reason=reason, passing=True)
    slices, ny, nx = info.shape
    return Outcome(
        case_id=case.case_id,
        status="done",
        slices=slices,
        voxel_bytes=slices * ny * nx * (3 if info.mask else 2),
        warnings=info.warnings,
        peak_mib=peak_mib(),
    )


def _same_content(case: CaseFiles, root: Path) -> bool:
    info = open_store(root)[case.case_id].info
    pairs = ((case.image, info.image), (case.mask, info.mask))

    def same(path: Path | None, source: SourceFile | None) -> bool:
        if path is None or source is None:
            return path is None and source is None
        return sha256_of_file(path) == source.sha256

    return info.patient_id == case.patient_id and all(same(path, source) for path, source in pairs)


def _run(left: list[tuple[CaseFiles, bool]], root: Path, params: Params, options: Options) -> list[Outcome]:
    if not left:
        return []
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    outcomes: list[Outcome] = []
    bug: BaseException | None = None
    by_id = {case.case_id: case for case, _ in left}
    megabytes = {case_id: _megabytes(case) for case_id, case in by_id.items()}
    with _client(options, len(left)) as client, progress("ingest", sum(megabytes.values()), "MB") as advance:
        start = time.perf_counter()
        futures = {
            client.submit(
                run_case, case, params, root, compare_hash=compare, key=f"ingest-{case.case_id}-{index}", pure=False
            ): case.case_id
            for index, (case, compare) in enumerate(left)
        }
        for future in as_completed(futures):
            case_id = futures[future]
            error = future.exception()
            outcome = future.result() if error is None else _lost(case_id, error)
            if error is not None and not isinstance(error, KilledWorker):
                bug = bug or error
            if outcome.status == "done" and not (root / GROUP / case_id / DOCUMENT).is_file():
                outcome = replace(
                    outcome,
                    status="failed",
                    reason=f"{case_id}: written where this process cannot see it; use a shared folder.",
                )
            _note(root, by_id[case_id], params, outcome)
            outcomes.append(outcome)
            slices = sum(one.slices for one in outcomes)
            failures = sum(one.status == "failed" for one in outcomes)
            advance(megabytes[case_id], f"{slices / (time.perf_counter() - start):,.0f} slices/s, {failures} failed")
    if bug is not None:
        raise bug
    return outcomes


def _lost(case_id: str, error: BaseException) -> Outcome:
    """Return the outcome of a task that ended in no outcome of its own: its worker died, or there is a bug."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        reason = (
            f"{case_id}: its worker process died again and again, probably for want of memory; use fewer --workers."
        )
    else:
        reason = f"{case_id}: a bug, please report it: {type(error).__name__}: {error}"
    return Outcome(case_id=case_id, status="failed", reason=reason, passing=True)


def _note(root: Path, case: CaseFiles, params: Params, outcome: Outcome) -> None:
    """Append an outcome to the ledger of what is done, or to that of what failed."""
    record: dict[str, Any] = {"case_id": case.case_id, "stamp": stamp_of(case, params)}
    if outcome.status == "failed":
        append_line(
            root / FAILURES,
            {**record, "image": case.name(case.image), "reason": outcome.reason, "passing": outcome.passing},
        )
    else:
        append_line(root / LEDGER, {**record, "status": outcome.status})


def _megabytes(case: CaseFiles) -> float:
    paths = [path for path in (case.image, case.mask) if path is not None and path.exists()]
    return sum(path.stat().st_size for path in paths) / 1e6


@contextlib.contextmanager
def _client(options: Options, tasks: int) -> Iterator[Any]:
    """Yield a Dask client: of the scheduler asked for, or of processes here, one thread each."""
    from distributed import Client, LocalCluster

    if options.scheduler:
        try:
            client = Client(options.scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise ConfigError(f"--scheduler {options.scheduler}: no Dask scheduler answers there ({error}).") from error
        with client:
            yield client
        return
    workers = min(options.workers or len(os.sched_getaffinity(0)), tasks)
    with contextlib.ExitStack() as stack:
        with _interrupts_ignored():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
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
