"""The work on one case in a worker: claim it, convert it, and return the outcome."""

from slicemill.common.errors import InputError, ReadError
from slicemill.common.failures import explain_failure
from slicemill.common.files import Location
from slicemill.common.locks import try_claim
from slicemill.common.memory_limits import bound_thread_starts
from slicemill.common.terminal import peak_mib
from slicemill.ingest.convert import convert_case
from slicemill.ingest.outcomes import CaseOutcome
from slicemill.ingest.params import Params
from slicemill.ingest.plan import Task
from slicemill.ingest.sources import is_unchanged
from slicemill.ingest.stamps import Stamp, stamp_case
from slicemill.store.version import stored_version


def dask_setup(_worker: object) -> None:
    """Prepare a local worker process; Dask calls it in each one that preloads this module."""
    bound_thread_starts()


def run_case(task: Task, params: Params, root: Location, threads: int) -> CaseOutcome:
    """Convert one case, unless it is unchanged. Every error that the user can fix becomes an outcome."""
    case = task.case
    try:
        return _run_claimed(task, params, root, threads)
    except Exception as error:
        failure = explain_failure(error, root if isinstance(error, OSError) else case.image)
        if failure.bug:  # the caller keeps its traceback
            raise
        reason = str(error) if isinstance(error, InputError) else failure.reason
        return CaseOutcome(
            case_id=case.case_id,
            status="failed",
            reason=reason,
            passing=failure.passing,
            stamp=stamp_case(case, params, task.place),
        )


def _run_claimed(task: Task, params: Params, root: Location, threads: int) -> CaseOutcome:
    case = task.case
    with try_claim(root, case.case_id) as claim:
        if claim is None:
            return CaseOutcome(case_id=case.case_id, status="claimed")
        stamp = stamp_case(case, params, task.place)
        version = stored_version(root, case.case_id)
        # another run may have replaced it since this one began, from files of another place
        replaced = version not in (task.seen, None)
        if version is not None and (replaced or not task.overwrite):
            known = frozenset() if replaced else task.known
            if is_unchanged(task, params, root, known):
                return CaseOutcome(case_id=case.case_id, status="unchanged", stamp=stamp)
        info = convert_case(
            case,
            params,
            root,
            threads=threads,
            holds_claim=claim.held,
            check_files=lambda: _check_stamp(task, params, stamp),
        )
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


def _check_stamp(task: Task, params: Params, stamp: Stamp) -> None:
    """Check that no file has changed since it had this stamp.

    Raises
    ------
    ReadError
        A file was replaced, shortened or written to while it was read.
    """
    if stamp_case(task.case, params, task.place) != stamp:
        raise ReadError(
            "the image or its mask changed during reading; the next run converts it again.", where=task.case.image
        )
