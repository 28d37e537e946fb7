"""The cases that `slicemill view` shows: one scan with masks, a store, or masks with their scans or references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from slicemill.common.errors import PairingError, UsageError
from slicemill.common.files import Location
from slicemill.common.tables import read_table
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.lookup import holds_series
from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.labels import Labels, make_labels
from slicemill.ct.naming import derive_case_id
from slicemill.measure.inputs.infer_output import find_masks, read_report
from slicemill.measure.inputs.pairs import Pair, StoredMask, pair_up
from slicemill.measure.lesions.jobs import MeasureJob, file_job, gather_jobs
from slicemill.store.reader import Store, is_store, open_store
from slicemill.web.mask_files import MaskFile
from slicemill.web.opened import CaseSource
from slicemill.web.sources import open_files, open_stored

DICE = "dice_"
"""Start of the names of the columns of evaluation.csv that hold a label's Dice."""
EVALUATION = "evaluation.csv"
MOST_NAMES = 255


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A case that can be opened."""

    name: str
    """Shown name; unique."""
    case_id: str
    """Id of the case, as in tables of `evaluate`."""
    open: Callable[[], CaseSource]
    """Reads the headers; may raise InputError."""
    dice: float | None = None
    """Dice of `evaluate`; None without one."""
    dice_of: str | None = None
    """Label of that Dice."""


@dataclass(frozen=True, kw_only=True)
class ViewRequest:
    """What a user asked to see."""

    path: Location
    masks: tuple[Location, ...] = ()
    scans: Path | None = None
    references: Path | None = None
    labels: Labels | None = None
    evaluation: Path | None = None


def find_entries(request: ViewRequest) -> list[Entry]:
    """Return the cases of a request, in the order of their names, or the worst first.

    Raises
    ------
    InputError
        There are none, or paths do not belong together.
    """
    entries = _find(request)
    if not entries:
        raise PairingError("contains no case to show.", where=request.path)
    return entries if request.evaluation is None else sort_by_dice(entries, request.evaluation)


def _find(request: ViewRequest) -> list[Entry]:
    path = request.path
    if is_store(path):
        _refuse(request, masks=request.masks, scans=request.scans, references=request.references)
        return _stored_entries(open_store(path))
    if isinstance(path, Path) and path.is_dir() and not _is_scan(request, path):
        _refuse(request, masks=request.masks)
        if request.references is not None:
            _refuse(request, scans=request.scans)
            pairs = pair_up(path, request.references).pairs
            return [_pair_entry(pair, request.labels) for pair in pairs]
        return _folder_entries(path, request)
    _refuse(request, scans=request.scans, references=request.references)
    if isinstance(path, Path) and path.is_dir() and not request.masks:
        return _series_entries(path)
    masks = tuple(MaskFile(path=mask, labels=_labels_of(mask, request)) for mask in request.masks)
    open_case = partial(open_files, path.name, path, masks)
    open_case()  # a scan that cannot be read is reported at once
    return [Entry(name=path.name, case_id=derive_case_id(path.name), open=open_case)]


def _is_scan(request: ViewRequest, folder: Path) -> bool:
    """Return whether a folder is one of DICOM files: it has no masks to pair, or masks were passed with it."""
    if request.scans is not None or request.references is not None:
        return False
    return bool(request.masks and holds_series(folder)) or not find_masks(folder)


def _series_entries(folder: Path) -> list[Entry]:
    """Return a case for each DICOM series below a folder."""
    found = find_dicom(folder)
    if not found.series:
        reasons = "".join(f" ({path.name}: {why})" for path, why in found.left_out[:1])
        raise PairingError(f"contains neither masks nor CT series in DICOM{reasons}.", where=folder)
    return [
        Entry(
            name=one.relative,
            case_id=derive_case_id(f"{one.relative}.nii.gz"),
            open=partial(open_files, one.relative, one.location, ()),
        )
        for one in found.series
    ]


def _refuse(request: ViewRequest, **others: object) -> None:
    """Refuse arguments that do not go with the first one."""
    path = request.path
    is_scan = path.is_file() or (isinstance(path, Path) and _is_scan(request, path))
    kind = "a store" if is_store(path) else "a scan" if is_scan else "a folder of masks"
    for name, value in others.items():
        if value:
            what = "more paths do" if name == "masks" else f"--{name} does"
            raise UsageError(f"{request.path}: is {kind}; {what} not go with it. See `slicemill view --help`.")


def _labels_of(mask: Location, request: ViewRequest) -> Labels | None:
    if request.labels is not None or not isinstance(mask, Path):
        return request.labels
    return file_job(mask, None, None).find_labels()


def _stored_entries(store: Store) -> list[Entry]:
    def open_case(case_id: str) -> CaseSource:
        return open_stored(store[case_id])

    return [Entry(name=case_id, case_id=case_id, open=partial(open_case, case_id)) for case_id in store.case_ids]


def _folder_entries(folder: Path, request: ViewRequest) -> list[Entry]:
    scans = request.scans or folder
    jobs = [job for job in gather_jobs(folder, scans, request.labels) if job.image != job.mask]
    without = [job.name for job in jobs if job.image is None]
    found = [job for job in jobs if job.image is not None]
    if not found:
        raise PairingError(
            f"none of the {len(without)} masks has a scan of its name in {scans}; pass --scans FOLDER, "
            "or --references with a store of the same cases.",
            where=folder,
        )
    return [_job_entry(job) for job in found]


def _job_entry(job: MeasureJob) -> Entry:
    def open_case() -> CaseSource:
        assert job.image is not None  # noqa: S101 (such jobs were left out)
        return open_files(job.name, job.image, (MaskFile(path=job.mask, labels=job.find_labels()),))

    return Entry(name=job.name, case_id=derive_case_id(f"{job.name}.nii"), open=open_case)


def _pair_entry(pair: Pair, labels: Labels | None) -> Entry:
    reference = pair.reference.mask
    name = strip_suffix(pair.name)

    def open_case() -> CaseSource:
        if pair.stored is not None:
            raise PairingError("a store of predictions cannot be shown beside its references; view it alone.")
        report = read_report(pair.prediction)
        names = labels or (report.read_labels() if report else None)
        if isinstance(reference, StoredMask):
            own = names or reference.case.info.labels
            return open_stored(reference.case, (MaskFile(path=pair.prediction, labels=own),))
        if reference.image is None:
            raise PairingError("its scan is not in the folder of the references.", where=reference.path)
        both = (pair.prediction, reference.path)
        return open_files(name, reference.image, tuple(MaskFile(path=path, labels=names) for path in both))

    return Entry(name=name, case_id=pair.reference.case_id, open=open_case)


def sort_by_dice(entries: Sequence[Entry], evaluation: Path) -> list[Entry]:
    """Return the cases with their Dice from a table of `evaluate`, the worst first; cases without one come last.

    The Dice is that of the tumor (`slicemill.ct.labels.make_labels` recognizes it by its name), or else of the first
    label.

    Raises
    ------
    InputError
        The table has no such column, or none of the cases.
    """
    path = evaluation / EVALUATION if evaluation.is_dir() else evaluation
    rows = read_table(path, required=("case_id",), keeps_further=True)
    names = [name.removeprefix(DICE) for name in (rows[0].cells if rows else ()) if name.startswith(DICE)]
    if not names:
        raise PairingError("has no column dice_NAME; pass evaluation.csv of `slicemill evaluate`.", where=path)
    name = make_labels({name: value for value, name in enumerate(names[:MOST_NAMES], start=1)}).tumor or names[0]
    try:
        dice = {row.cells["case_id"]: row.number(DICE + name) for row in rows if row.cells[DICE + name]}
    except ValueError as error:
        raise PairingError(f"its column {DICE + name} must have numbers ({error}).", where=path) from error
    scored = [replace(entry, dice=dice.get(entry.case_id), dice_of=name) for entry in entries]
    if all(entry.dice is None for entry in scored):
        raise PairingError(f"has a Dice of none of the {len(entries)} cases to show.", where=path)
    return sorted(scored, key=_worst_first)


def _worst_first(entry: Entry) -> tuple[bool, float]:
    return entry.dice is None, entry.dice or 0.0
