"""Input cases of `slicemill measure`: a mask file, a folder of masks with their scans, or a store."""

import glob
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import PairingError, StoreError
from slicemill.ct.dataset_json import read_dataset_json
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.index import read_folder
from slicemill.ct.formats.dicom_objects.options import NO_DICOM, DicomOptions
from slicemill.ct.formats.names import SHOWN_SUFFIXES, strip_suffix
from slicemill.ct.formats.open import mark_files
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.ct.naming import find_files, parse_name
from slicemill.ct.page_options import VIEWER_MB
from slicemill.measure.inputs.infer_output import PROBABILITY, find_masks, read_report
from slicemill.measure.inputs.names import Index, add_to_index, find_match, match_keys
from slicemill.measure.lesions.measurements import RIM_MM
from slicemill.measure.lesions.records import Stamp
from slicemill.store.reader import Store, is_store, open_store

RESERVED_NAMES = ("report", "summary")
"""Names of the page and of the table of all cases. No case may have them."""
FORMAT = 1
"""Version of the records. Records of another version are measured again."""


@dataclass(frozen=True, kw_only=True)
class MeasureJob:
    """One segmentation to measure."""

    name: str
    """Path of the results relative to the output folder, without suffix."""
    mask: Path
    """The mask file, or the store."""
    case_id: str | None = None
    """Id of the case, if `mask` is a store."""
    image: Path | None = None
    """The mask's scan."""
    labels: Labels | None = None
    """Labels from the command line. They take precedence over those of a report or a store."""
    default_labels: Labels | None = None
    """Labels of a `dataset.json` or of LiTS file names, used if there are no other labels."""
    dicom: DicomOptions = NO_DICOM
    """DICOM results that are written."""
    viewer_mb: float = VIEWER_MB
    """MiB of slices in the page of the case; 0 for none."""
    lacks_scan: bool = False
    """Whether a folder of scans was passed, but no scan matches the mask."""

    def find_labels(self) -> Labels | None:
        """Return the labels of a mask file: from the command line, its report, or the defaults, in this order."""
        report = read_report(self.mask)
        return self.labels or (report.read_labels() if report else self.default_labels)

    def stamp(self) -> Stamp:
        """Return a value that changes with the case's files, labels and settings.

        Files are identified by size and time, stored files by hash.
        """
        if self.case_id is not None:
            info = open_store(self.mask)[self.case_id].info
            files: list[object] = [info.image.sha256, info.mask.sha256 if info.mask else None]
            labels = self.labels
        else:
            maps = sorted(self.mask.parent.glob(f"{glob.escape(strip_suffix(self.mask.name))}{PROBABILITY}*"))
            files = [list(mark_files(path)) for path in (self.mask, self.image, *maps) if path is not None]
            labels = self.find_labels()
        dicom = {"dicom": changes} if (changes := self.dicom.changes()) else {}
        viewer = {} if self.viewer_mb == VIEWER_MB else {"viewer_mb": self.viewer_mb}
        named = labels.as_json() if labels else {}
        return {"format": FORMAT, "rim_mm": RIM_MM, "files": files, **named, **dicom, **viewer}


@dataclass(frozen=True, kw_only=True)
class _Scan:
    folder: str
    path: Path


def gather_jobs(masks: Path, images: Path | None, labels: Labels | None) -> list[MeasureJob]:
    """Return the cases to measure.

    Raises
    ------
    PairingError
        There is no mask, or the results of two cases would have the same name.
    """
    if is_store(masks):
        store = open_store(masks)
        case_ids = [case_id for case_id in store.case_ids if _may_have_mask(store, case_id)]
        jobs = [MeasureJob(name=case_id, mask=masks, case_id=case_id, labels=labels) for case_id in case_ids]
    elif masks.is_file():
        if images is not None and images.is_dir() and not read_folder(images).series:
            raise PairingError(f"{images}: is a folder, but {masks} is a file; pass the file of its scan.")
        jobs = [file_job(masks, images, labels)]
    elif masks.is_dir():
        jobs = list(_folder_jobs(masks, images, labels))
    else:
        raise PairingError(f"{masks}: there is no such file, folder or store.")
    if not jobs:
        raise PairingError(f"{masks}: contains no mask (a file with {SHOWN_SUFFIXES}, or a store of cases with masks).")
    counts = Counter(job.name for job in jobs)
    for job in jobs:
        if counts[job.name] > 1 or job.name in RESERVED_NAMES:
            raise PairingError(
                f"{job.mask}: its results would overwrite others of the name {job.name}; "
                "rename it, or measure it with another --out."
            )
    return jobs


def _may_have_mask(store: Store, case_id: str) -> bool:
    """Return whether a stored case has a mask, or cannot be opened. In that case its job reports the reason."""
    try:
        return store[case_id].label is not None
    except StoreError:
        return True


def file_job(mask: Path, image: Path | None, labels: Labels | None) -> MeasureJob:
    """Return the job of one mask file."""
    return MeasureJob(
        name=strip_suffix(mask.name),
        mask=mask,
        image=image,
        labels=labels,
        default_labels=None if labels else _find_default_labels(mask, mask.parent),
    )


def _folder_jobs(folder: Path, images: Path | None, labels: Labels | None) -> Iterator[MeasureJob]:
    relative = {file: file.relative_to(folder).as_posix() for file in find_masks(folder)}
    masks = [file for file in relative if parse_name(relative[file]).role == "mask"] or list(relative)
    scans = _index_scans(images) if images is not None else {}
    for mask in masks:
        scan = find_match(relative[mask], scans)
        yield MeasureJob(
            name=relative[mask].removesuffix(mask.name) + strip_suffix(mask.name),
            mask=mask,
            image=None if scan is None else scan.path,
            labels=labels,
            default_labels=None if labels else _find_default_labels(mask, folder),
            lacks_scan=images is not None and scan is None,
        )


def _index_scans(images: Path) -> Index[_Scan]:
    if not images.is_dir():
        raise PairingError(f"{images}: must be a folder of scans, because the masks are a folder too.")
    index: Index[_Scan] = {}
    for file in find_files(images):
        relative = file.relative_to(images).as_posix()
        if parse_name(relative).role != "mask":
            add_to_index(index, match_keys(relative), _Scan(folder=parse_name(relative).folder, path=file))
    for series in find_dicom(images).series:
        if isinstance(series.location, Path):  # a folder of this machine
            relative = f"{series.relative}.nii.gz"  # the name that `infer` gives its mask
            add_to_index(index, match_keys(relative), _Scan(folder=parse_name(relative).folder, path=series.location))
    return index


def _find_default_labels(mask: Path, folder: Path) -> Labels | None:
    """Return the labels of a `dataset.json` in the folder or its parent, or of LiTS file names."""
    for parent in dict.fromkeys((folder, folder.parent)):
        if (parent / "dataset.json").exists():
            return read_dataset_json(parent / "dataset.json")
    return LITS_LABELS if mask.name.startswith("segmentation-") else None


def find_left_out(masks: Path) -> list[Path]:
    """Return the files of a folder that are not measured, because only other file names contain a word for mask.

    Scans of the measured masks are not included.
    """
    if is_store(masks) or not masks.is_dir():
        return []
    names = {file: parse_name(file.relative_to(masks).as_posix()) for file in find_masks(masks)}
    of_masks = {(name.folder, name.key) for name in names.values() if name.role == "mask"}
    if not of_masks:
        return []
    return [file for file, name in names.items() if name.role != "mask" and (name.folder, name.key) not in of_masks]
