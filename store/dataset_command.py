"""The command `slicemill store export --format`."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import StoreError
from slicemill.common.failures import explain_failure, raise_system_limit
from slicemill.common.progress import progress
from slicemill.common.remote import RemotePath
from slicemill.common.terminal import count_noun, print_always, print_json, print_line
from slicemill.ct.labels import format_labels
from slicemill.store.case import CaseInfo
from slicemill.store.dataset_plan import DatasetPlan, plan_dataset
from slicemill.store.layout import DatasetFormat, Link, Suffix
from slicemill.store.reader import Store, open_store
from slicemill.store.split import Split, read_split
from slicemill.store.tables import REMOTE_READERS
from slicemill.store.to_dataset import check_folder, export_dataset, find_sources, list_pending, read_notes

MAX_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """The options of an export."""

    out: Path
    form: DatasetFormat
    suffix: Suffix
    splits: tuple[Path, ...] = ()
    link: Link = "never"
    source: Path | None = None
    dry_run: bool = False
    workers: int = 0


def run_export(path: str, request: DatasetRequest, *, json: bool = False) -> None:
    """Export a store as a collection, or print what would be done, and print the outcome.

    Raises
    ------
    InputError
        A split, the folder or the store does not allow it.
    SystemExit
        A case failed; the status is 1.
    """
    store = open_store(path)
    splits = {str(split): read_split(split, store.case_ids) for split in request.splits}
    plan = plan_dataset(read_infos(store, splits), request.form, request.suffix, splits)
    sources = find_sources(request.link, request.source)
    if request.dry_run:
        print_plan(store, request, plan, json=json)
        return
    report = export_dataset(store, request.out, plan, sources, request.workers)
    for outcome in report.outcomes:
        if outcome.status == "failed":
            print_always(f"failed: {outcome.reason}")
    counts = [f"{report.count(status)} {status}" for status in ("done", "skipped", "failed")]
    linked = f"; {report.linked} files are links" if request.link != "never" or report.linked else ""
    print_line(f"{len(report.outcomes)} cases: {', '.join(counts)}{linked}: {request.out}")
    print_changed(plan)
    if request.link != "never" and not report.linked:
        print_line(f"note: no source file has the bytes of an exported file that ends in {request.suffix}")
    if json:
        print_json({"out": str(request.out), "format": request.form, "linked": report.linked, "cases": report.outcomes})
    if report.count("failed"):
        raise SystemExit(1)


def read_infos(store: Store, splits: Mapping[str, Split]) -> list[CaseInfo]:
    """Return the cases that the splits name, all without a split, in the order of the store.

    Raises
    ------
    StoreError
        A case cannot be read: a collection without it would look complete.
    """
    named = {case_id for split in splits.values() for case_id in (*split.train, *split.validation, *split.test)}
    case_ids = [case_id for case_id in store.case_ids if case_id in named or not splits]
    readers = REMOTE_READERS if isinstance(store.root, RemotePath) else 1
    with ThreadPoolExecutor(readers) as pool, progress("read", len(case_ids), "cases") as advance:

        def read(case_id: str) -> CaseInfo | str:
            advance(1, case_id)
            return _read_info(store, case_id)

        found = list(pool.map(read, case_ids))
    reasons = [reason for reason in found if isinstance(reason, str)]
    if reasons:
        raise StoreError(
            f"{count_noun(len(reasons), 'case')} cannot be read, so nothing was exported. The first: {reasons[0]}",
            where=store.root,
        )
    return [info for info in found if isinstance(info, CaseInfo)]


def _read_info(store: Store, case_id: str) -> CaseInfo | str:
    """Return a case, or why it cannot be read."""
    try:
        return store[case_id].info
    except (StoreError, OSError) as error:
        raise_system_limit(error)
        return explain_failure(error, case_id).reason


def print_plan(store: Store, request: DatasetRequest, plan: DatasetPlan, *, json: bool) -> None:
    """Print what an export would write."""
    check_folder(request.out, plan, read_notes(request.out))
    pending = list_pending(store, request.out, plan)
    parts = Counter(case.part for case in plan.cases)
    described = ", ".join(f"{parts[part]} {part}" for part in ("training", "validation", "test") if parts[part])
    print_line(f"{len(plan.cases)} cases ({described}), labels {format_labels(plan.labels)}: {request.out}")
    for case in pending[:MAX_SHOWN]:
        print_line(f"  {case.case_id}: {case.image}{f', {case.label}' if case.label else ''}")
    if len(pending) > MAX_SHOWN:
        print_line(f"  and {len(pending) - MAX_SHOWN} more")
    print_changed(plan)
    print_line(f"dry run: {len(pending)} to write, {len(plan.cases) - len(pending)} complete; nothing was written")
    if json:
        print_json({"out": str(request.out), "format": request.form, "labels": plan.labels, "pending": pending})


def print_changed(plan: DatasetPlan) -> None:
    """Print which label values differ from those of the store."""
    if plan.changed:
        changes = ", ".join(f"{old} to {new}" for old, new in plan.changed.items())
        print_line(f"note: label values were changed as the format wants them: {changes}")
