"""Plans an ingest: decides which cases are unchanged, which failed before, and which must be converted."""

from dataclasses import dataclass, field

from slicemill.common.errors import StoreError
from slicemill.common.files import Location, to_json, write_json
from slicemill.common.locks import CLAIMS, wait_for_claim
from slicemill.common.remote import RemotePath
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.outcomes import CaseOutcome, Stamp, read_done, read_failures, stamp_case
from slicemill.ingest.params import Params
from slicemill.store.layout import ATTRIBUTE, DOCUMENT, FORMAT, GROUP, PARTIAL
from slicemill.store.reader import Store, iter_case_ids, open_store, read_attribute
from slicemill.store.zarr_documents import make_group_document

PARAMS = ".params"
"""Name of the claim that a run holds while it writes a store's parameters; a case id does not start with a dot."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A case for a worker."""

    case: CaseFiles
    seen: str | None
    """Version of the stored case (`stored_version`) when the run began; None if there was none."""
    compare: bool
    """Whether its files are compared with the stored hashes before conversion."""
    megabytes: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Outcomes that are known in advance, and the tasks that remain."""

    outcomes: list[CaseOutcome] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)


def plan_cases(
    cases: list[CaseFiles], root: Location, params: Params, *, overwrite: bool, retry_failed: bool, rehash: bool
) -> Plan:
    """Compare the cases with the store and its ledgers.

    Raises
    ------
    StoreError
        A stored case has other parameters.
    """
    store = open_store(root)
    present = set(store.case_ids)
    done, failed = read_done(root), read_failures(root)
    plan = Plan()

    def add_task(case: CaseFiles, stamp: Stamp, *, stored: bool) -> None:
        seen = stored_version(root, case.case_id) if stored else None
        compare = stored and not overwrite
        plan.tasks.append(Task(case=case, seen=seen, compare=compare, megabytes=stamp.megabytes))

    for case in cases:
        case_id, stamp = case.case_id, stamp_case(case, params)
        if overwrite:
            add_task(case, stamp, stored=case_id in present)
        elif case_id in present:
            if not rehash and case_id in done and done[case_id].stamp == stamp:
                plan.outcomes.append(CaseOutcome(case_id=case_id, status="unchanged"))
            else:
                add_task(case, stamp, stored=_is_readable(store, case_id, params))
        elif not retry_failed and case_id in failed and failed[case_id].is_final(stamp):
            reason = failed[case_id].reason
            plan.outcomes.append(CaseOutcome(case_id=case_id, status="failed before", reason=reason))
        else:
            add_task(case, stamp, stored=False)
    return plan


def stored_version(root: Location, case_id: str) -> str | None:
    """Return a version tag of the stored case, which changes when a run replaces it, or None if it is absent."""
    try:
        status = (root / GROUP / case_id / DOCUMENT).stat()
    except OSError:
        return None
    return f"{status.st_mtime_ns}/{getattr(status, 'st_ino', None) or getattr(status, 'e_tag', None)}"


def require_params(root: Location, params: Params, *, overwrite: bool) -> None:
    """Write the parameters into the document of a store without cases, or compare them with those of the store.

    Raises
    ------
    StoreError
        The store has other parameters, and `overwrite` is false.
    """
    with wait_for_claim(root, PARAMS):
        attribute = read_attribute(root / GROUP)
        stored = attribute.get("params") if isinstance(attribute, dict) else None
        if stored == params.as_json():
            return
        if stored is not None and not overwrite and not _is_unused(root):
            raise StoreError(
                f"was created with other parameters ({to_json(stored)}) than requested now "
                f"({to_json(params.as_json())}). Use another store, the same options, or --overwrite, which converts "
                "all cases again.",
                where=root,
            )
        attributes = {ATTRIBUTE: {"format": FORMAT, "params": params.as_json()}}
        write_json(root / GROUP / DOCUMENT, make_group_document(attributes))


def _is_unused(root: Location) -> bool:
    """Return whether a store has no case, and none that is being written."""
    if next(iter_case_ids(root), None) is not None:
        return False
    if isinstance(root, RemotePath):
        return not any(not path.name.startswith(".") for path, _ in (root / CLAIMS).files())
    return not (root / PARTIAL).exists() or not any((root / PARTIAL).iterdir())


def _is_readable(store: Store, case_id: str, params: Params) -> bool:
    """Return whether a stored case can be compared with its files; a damaged one is converted again.

    Raises
    ------
    StoreError
        It has other parameters.
    """
    try:
        info = store[case_id].info
    except StoreError:
        return False
    if info.params_sha256 != params.sha256():
        stored = info.labels.as_json() if info.labels else {"labels": None}
        raise StoreError(
            f"its case {case_id!r} was written with other parameters (hash {info.params_sha256[:12]}, "
            f"{stored}) than requested now (hash {params.sha256()[:12]}, {params.as_json()}). "
            "Use another store, the same options, or --overwrite.",
            where=store.root,
        )
    return True
