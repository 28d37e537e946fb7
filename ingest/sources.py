"""Compares a stored case with the files that it would be replaced by.

1. Files with the content of the stored case: unchanged, wherever they are.
2. Other content at the place that the stored case was made from: a new version of the case, which replaces it.
3. Other content at another place, or at an unknown one: perhaps another scan of the same name. It is refused.
"""

from slicemill.common.errors import StoreError
from slicemill.common.files import Location
from slicemill.ct.formats.open import hash_scan
from slicemill.ct.geometry_option import Uneven
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ingest.plan import Task
from slicemill.ingest.stamps import Place
from slicemill.ingest.structures import combine_hashes
from slicemill.store.case import CaseInfo, SourceFile
from slicemill.store.reader import open_case

SHOWN_DIGITS = 12
"""Digits of a hash in a message."""


def is_unchanged(task: Task, params: Params, root: Location, known: frozenset[Place]) -> bool:
    """Return whether the stored case was made from files with the same content, and with the same parameters.

    Parameters
    ----------
    known
        Places of the files of the stored case; empty if nothing is known about them.

    Raises
    ------
    StoreError
        The files are another source than that of the stored case.
    """
    case = task.case
    try:
        info = open_case(root, case.case_id).info
    except StoreError:
        if known and task.place.image not in {place.image for place in known} and not task.overwrite:
            raise _refuse(task, root, case.image, "a damaged case") from None
        return False
    same_image = _has_content((case.image,), info.image, params.uneven)
    same_mask = _has_same_mask(case, info, params.uneven)
    if not task.overwrite:
        _check_source(task, info, root, known, (same_image, same_mask))
    has_settings = info.patient_id == case.patient_id and info.params_sha256 == params.sha256()
    same_points = info.points_sha256 == (case.points.sha256 if case.points else None)
    return same_image and same_mask and same_points and has_settings


def _check_source(task: Task, info: CaseInfo, root: Location, known: frozenset[Place], same: tuple[bool, bool]) -> None:
    """Refuse files of another content, at a place that the stored case was not made from.

    A mask may come to an image without one. At another place, a mask must not be missing.
    """
    same_image, same_mask = same
    is_known = task.place.image in {place.image for place in known}
    if not is_known and not same_image:
        raise _refuse(task, root, task.case.image, _describe(info.image))
    if info.mask is None or same_mask:
        return
    mask_is_known = task.place.mask in {place.mask for place in known}
    if not is_known or (task.place.mask is not None and not mask_is_known):
        raise _refuse(task, root, (task.case.mask or task.case.image), f"the mask {_describe(info.mask)}")


def _describe(source: SourceFile) -> str:
    return f"{source.name} ({source.bytes:,} bytes, SHA-256 {source.sha256[:SHOWN_DIGITS]})"


def _refuse(task: Task, root: Location, path: Location, stored: str) -> StoreError:
    return StoreError(
        f"{root} already has a case {task.case.case_id!r}, made from {stored}. This file has other content, "
        "and that case is not known to be made from this path. Pass --prefix NAME to store this collection under ids "
        "of its own, or --overwrite to replace stored cases.",
        where=path,
    )


def _has_same_mask(case: CaseFiles, info: CaseInfo, uneven: Uneven) -> bool:
    if case.points is not None and not case.points.has_lungs:  # no file: its mask is made from points
        return info.points is not None
    return _has_content(case.mask_files, info.mask, uneven)


def _has_content(paths: tuple[Location, ...], source: SourceFile | None, uneven: Uneven) -> bool:
    if not paths or source is None:
        return not paths and source is None
    return combine_hashes([hash_scan(path, uneven) for path in paths]) == source.sha256
