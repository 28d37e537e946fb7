"""The work on one case in a worker: claim it, convert it, and return the outcome."""

from slicemill.common.errors import InputError, StoreError
from slicemill.common.failures import explain_failure
from slicemill.common.files import Location, sha256_of_file
from slicemill.common.locks import try_claim
from slicemill.common.terminal import peak_mib
from slicemill.ct.formats.nifti.names import scan_files
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.outcomes import CaseOutcome, stamp_case
from slicemill.ingest.params import Params
from slicemill.ingest.plan import Task, stored_version
from slicemill.ingest.structures import combine_hashes
from slicemill.store.case import SourceFile
from slicemill.store.reader import open_case


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
            stamp=stamp_case(case, params),
        )


def _run_claimed(task: Task, params: Params, root: Location, threads: int) -> CaseOutcome:
    case = task.case
    with try_claim(root, case.case_id) as claim:
        if claim is None:
            return CaseOutcome(case_id=case.case_id, status="claimed")
        stamp = stamp_case(case, params)
        # another run may have converted it since this one began
        replaced = stored_version(root, case.case_id) not in (task.seen, None)
        if (task.compare or replaced) and _is_unchanged(case, params, root):
            return CaseOutcome(case_id=case.case_id, status="unchanged", stamp=stamp)
        info = convert_case(case, params, root, threads=threads, holds_claim=claim.held)
        if stamp_case(case, params) != stamp:
            reason = f"{case.image}: the image or its mask changed during reading; the next run converts it again."
            return CaseOutcome(case_id=case.case_id, status="failed", reason=reason, passing=True, stamp=stamp)
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


def _is_unchanged(case: CaseFiles, params: Params, root: Location) -> bool:
    """Return whether the stored case was made from files with the same content, with the same parameters."""
    try:
        info = open_case(root, case.case_id).info
    except StoreError:
        return False
    return (
        info.patient_id == case.patient_id
        and info.params_sha256 == params.sha256()
        and _has_content((case.image,), info.image)
        and _has_content(case.mask_files, info.mask)
    )


def _has_content(paths: tuple[Location, ...], source: SourceFile | None) -> bool:
    if not paths or source is None:
        return not paths and source is None
    return combine_hashes([sha256_of_file(*scan_files(path)) for path in paths]) == source.sha256
