"""Plans an ingest: decides which cases are unchanged, which failed before, and which must be converted."""

from dataclasses import dataclass, field

from slicemill.common.errors import StoreError
from slicemill.common.files import Location, to_json, write_json
from slicemill.common.locks import CLAIMS, wait_for_claim
from slicemill.common.remote import RemotePath
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.outcomes import CaseOutcome, read_done, read_failures
from slicemill.ingest.params import Params
from slicemill.ingest.stamps import Place, Stamp, locate, stamp_case
from slicemill.store.layout import ATTRIBUTE, DOCUMENT, FORMAT, GROUP, PARTIAL
from slicemill.store.reader import Store, iter_case_ids, open_store
from slicemill.store.version import stored_version
from slicemill.store.zarr_documents import make_group_document, read_attribute

PARAMS = ".params"
"""Name of the claim that a run holds while it writes a store's parameters; a case id does not start with a dot."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A case for a worker."""

    case: CaseFiles
    place: Place
    """Place of its files, as this process sees them: a worker may have a folder mounted elsewhere."""
    seen: str | None
    """Version of the stored case (`stored_version`) when the run began; None if there was none."""
    known: frozenset[Place] = frozenset()
    """Places of the files of the stored case, from the ledger."""
    overwrite: bool = False
    """Whether the stored case is replaced, whatever it was made from."""
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

    def add_task(case: CaseFiles, stamp: Stamp, place: Place) -> None:
        is_present = case.case_id in present
        if is_present and not overwrite:
            _check_params(store, case.case_id, params)
        task = Task(
            case=case,
            place=place,
            seen=stored_version(root, case.case_id) if is_present else None,
            known=frozenset(known.place for known in done.get(case.case_id, ()) if known.place),
            overwrite=overwrite,
            megabytes=stamp.megabytes,
        )
        plan.tasks.append(task)

    for case in cases:
        case_id, place = case.case_id, locate(case)
        stamp = stamp_case(case, params, place)
        if overwrite:
            add_task(case, stamp, place)
        elif case_id in present:
            if not rehash and stamp in done.get(case_id, ()):
                plan.outcomes.append(CaseOutcome(case_id=case_id, status="unchanged"))
            else:
                add_task(case, stamp, place)
        elif not retry_failed and case_id in failed and failed[case_id].is_final(stamp):
            reason = failed[case_id].reason
            plan.outcomes.append(CaseOutcome(case_id=case_id, status="failed before", reason=reason))
        else:
            add_task(case, stamp, place)
    return plan


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


def _check_params(store: Store, case_id: str, params: Params) -> None:
    """Check that a stored case has these parameters; a damaged case is checked by its worker.

    Raises
    ------
    StoreError
        It has other parameters.
    """
    try:
        info = store[case_id].info
    except StoreError:
        return
    if info.params_sha256 != params.sha256():
        stored = info.labels.as_json() if info.labels else {"labels": None}
        raise StoreError(
            f"its case {case_id!r} was written with other parameters (hash {info.params_sha256[:12]}, "
            f"{stored}) than requested now (hash {params.sha256()[:12]}, {params.as_json()}). "
            "Use another store, the same options, or --overwrite.",
            where=store.root,
        )
