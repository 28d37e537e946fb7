"""Input cases of `slicemill measure`: a mask file, a folder of masks with their scans, or a store."""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import PairingError, StoreError
from slicemill.ct.dataset_json import read_dataset_json
from slicemill.ct.formats.dicom.folders import read_folder
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object
from slicemill.ct.formats.dicom_objects.options import NO_DICOM, DicomOptions
from slicemill.ct.formats.names import SHOWN_SUFFIXES, strip_suffix
from slicemill.ct.formats.open import mark_files
from slicemill.ct.formats.png_slices import is_png_folder
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.ct.mask_files import name_labels
from slicemill.ct.naming import find_files, parse_name
from slicemill.ct.page_options import VIEWER_MB
from slicemill.measure.inputs.dicom_masks import (
    DicomMask,
    ScanSeries,
    describe_object,
    list_dicom,
    list_one,
    list_scans,
    spell_out,
    strip_name,
)
from slicemill.measure.inputs.infer_output import PROBABILITY, find_masks, read_report
from slicemill.measure.inputs.names import Index, add_to_index, find_doubles, find_match, match_keys
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
    no_scan: str = ""
    """Why the mask has no scan, although a folder of scans was passed."""

    @property
    def source_id(self) -> str:
        """Return a hash of the mask's location, which distinguishes masks with the same name."""
        return hashlib.sha256(f"{self.mask.absolute()}\0{self.case_id or ''}".encode()).hexdigest()[:16]

    def find_labels(self) -> Labels | None:
        """Return the labels of a mask file: from the command line, its report, the defaults, or the segments' names."""
        report = read_report(self.mask)
        return self.labels or (report.read_labels() if report else self.default_labels) or name_labels([self.mask])

    def files(self) -> list[Path]:
        """Return the files with voxels that are read for a mask file: itself, its scan and its probability maps."""
        maps = sorted(self.mask.parent.glob(f"{glob.escape(strip_suffix(self.mask.name))}{PROBABILITY}*"))
        return [path for path in (self.mask, self.image, *maps) if path is not None]

    def stamp(self) -> Stamp:
        """Return a value that changes with the case's files, labels and settings.

        Files are identified by location, size and time, stored files by hash.
        """
        if self.case_id is not None:
            info = open_store(self.mask)[self.case_id].info
            files: list[object] = [info.image.sha256, info.mask.sha256 if info.mask else None]
            labels = self.labels
        else:
            files = [list(mark_files(path)) for path in self.files()]
            labels = self.find_labels()
        dicom = {"dicom": changes} if (changes := self.dicom.changes()) else {}
        viewer = {} if self.viewer_mb == VIEWER_MB else {"viewer_mb": self.viewer_mb}
        named = labels.as_json() if labels else {}
        fixed = {"format": FORMAT, "source": self.source_id, "rim_mm": RIM_MM, "files": files}
        return {**fixed, **named, **dicom, **viewer}


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
    elif masks.is_file() or is_png_folder(masks):
        masks = spell_out(masks)
        jobs = [file_job(masks, _choose_scan(masks, images), labels)]
    elif masks.is_dir():
        jobs = list(_folder_jobs(masks, images, labels))
    else:
        raise PairingError(f"{masks}: there is no such file, folder or store.")
    if not jobs:
        kinds = f"a file with {SHOWN_SUFFIXES}, a folder of PNG slices, or a store of cases with masks"
        raise PairingError(f"{masks}: contains no mask ({kinds}).")
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
        name=strip_name(mask),
        mask=mask,
        image=image,
        labels=labels,
        default_labels=None if labels else _find_default_labels(mask, mask.parent),
    )


def _choose_scan(mask: Path, images: Path | None) -> Path | None:
    """Return the scan of a mask file: what was passed, or the series below it that a SEG refers to.

    PNG slices have the series beside them: a copy of it may have files of other names, which are the slices' places.
    """
    if is_png_folder(mask):
        found = list_one(mask)
        beside = found.masks[0].find_scan(found.scans)
        if beside is not None:
            if images is not None and not beside.path.resolve().is_relative_to(images.resolve()):
                raise PairingError(f"has its series beside it, {beside.path}; leave out --image {images}.", where=mask)
            return beside.path
    if images is None or not images.is_dir() or len(series := read_folder(images).series) == 1:
        return images
    if is_mask_object(mask):
        scan = describe_object(mask, mask.parent).find_scan(list_scans(images))
        if scan is not None:
            return scan.path
        raise PairingError("refers to no series in this folder, or to several; pass the scan itself.", where=mask)
    if not series:
        raise PairingError(f"{images}: is a folder, but {mask} is a file; pass the file of its scan.")
    return images


def _folder_jobs(folder: Path, images: Path | None, labels: Labels | None) -> Iterator[MeasureJob]:
    files = find_masks(folder)
    relative = {file: file.relative_to(folder).as_posix() for file in files}
    dicom = list_dicom(folder, files)
    of_dicom = {one.path: one for one in dicom.masks}
    masks = [file for file in files if parse_name(relative[file]).role == "mask"] or [
        file for file in files if file not in dicom.scan_files
    ]
    relative |= {one.path: one.relative for one in dicom.masks}
    series = dicom.scans if images is None else list_scans(images) if images.is_dir() else ()
    scans = _index_scans(images, series) if images is not None else {}
    for mask in (*masks, *of_dicom):
        scan = _find_scan(of_dicom.get(mask), series) or find_match(relative[mask], scans)
        yield MeasureJob(
            name=strip_suffix(relative[mask]),
            mask=mask,
            image=None if scan is None else scan.path,
            labels=labels,
            default_labels=None if labels else _find_default_labels(mask, folder),
            no_scan="" if images is None or scan is not None else _explain_no_scan(relative[mask], scans),
        )


def _explain_no_scan(relative: str, scans: Index[_Scan]) -> str:
    names = ", ".join(scan.path.name for scan in find_doubles(relative, scans))
    return f"several scans have its name ({names}); keep one of them" if names else "no scan of its name was found"


def _find_scan(mask: DicomMask | None, series: Sequence[ScanSeries]) -> _Scan | None:
    """Return the scan that a mask in DICOM refers to."""
    found = None if mask is None else mask.find_scan(series)
    return None if found is None else _Scan(folder="", path=found.path)


def _index_scans(images: Path, series: Sequence[ScanSeries]) -> Index[_Scan]:
    if not images.is_dir():
        raise PairingError(f"{images}: must be a folder of scans, because the masks are a folder too.")
    index: Index[_Scan] = {}
    for file in find_files(images):
        relative = file.relative_to(images).as_posix()
        if parse_name(relative).role != "mask":
            add_to_index(index, match_keys(relative), _Scan(folder=parse_name(relative).folder, path=file))
    for one in series:
        scan = _Scan(folder=parse_name(one.relative).folder, path=one.path)
        add_to_index(index, match_keys(one.relative), scan)
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
