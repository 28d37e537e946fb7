"""Masks of DICOM series below a folder: SEG, RTSTRUCT, series of label values, PNG slices; and these series."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import InputError, ScanError
from slicemill.ct.formats.dicom.discover import FoundDicom, find_dicom
from slicemill.ct.formats.dicom.files import strip_dicom
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom_objects.open_mask import References, is_mask_object, read_references
from slicemill.ct.formats.dicom_objects.options import ENDINGS
from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.formats.nifti.header import read_signature
from slicemill.ct.formats.png_slices import find_png_folders, is_png_folder
from slicemill.ct.mask_files import find_png_masks
from slicemill.ct.name_words import folder_role
from slicemill.ct.naming import parse_name
from slicemill.measure.inputs.infer_output import read_report

SUFFIX = ".nii.gz"
"""Suffix of the name that a mask in DICOM gets, so that it pairs as the mask of `infer` does."""
NO_REFERENCES = References(frame_of_reference_uid="", series_uids=())


@dataclass(frozen=True, kw_only=True)
class ScanSeries:
    """A series that may be a scan."""

    path: Path
    relative: str
    """Path below the folder, as `infer` names its mask."""
    series_uid: str
    frame_of_reference_uid: str

    def is_scan_of(self, references: References) -> bool:
        """Return whether a mask refers to this series: by its UID, else, if it names none, by frame of reference."""
        if references.series_uids:
            return self.series_uid in references.series_uids
        return bool(self.frame_of_reference_uid) and references.frame_of_reference_uid == self.frame_of_reference_uid


@dataclass(frozen=True, kw_only=True)
class DicomMask:
    """A SEG, an RTSTRUCT, a series of label values or a folder of PNG slices."""

    path: Path
    relative: str
    """Path below the folder, without the endings of DICOM and with SUFFIX; of PNG slices beside a series, that of the
    series."""
    references: References
    """What it refers to; nothing for a series. PNG slices refer to the series beside them."""
    beside: ScanSeries | None = None
    """The series beside PNG slices."""

    def find_scan(self, scans: Iterable[ScanSeries]) -> ScanSeries | None:
        """Return the series beside it, or the only one that it refers to; None if there is none, or several."""
        if self.beside is not None:
            return self.beside
        fitting = [one for one in scans if one.is_scan_of(self.references)]
        return fitting[0] if len(fitting) == 1 else None


@dataclass(frozen=True, kw_only=True)
class DicomListing:
    """The DICOM below a folder."""

    masks: tuple[DicomMask, ...]
    scans: tuple[ScanSeries, ...]
    scan_files: frozenset[Path] = frozenset()
    """Files of other formats that are no masks but scans: those beside a SEG or RTSTRUCT of the same name."""


def list_dicom(folder: Path, files: Sequence[Path]) -> DicomListing:
    """Find the masks and scans in DICOM below a folder.

    A SEG or RTSTRUCT beside a mask of the same name in another format is the same mask, as `infer --dicom-seg` writes
    it, and is not listed. A file of this name that is no mask (`is_known_mask`) is its scan. A series is a mask if its
    path says so, or if there is no other mask. Folders of PNG slices: see `_list_png_masks`.

    Parameters
    ----------
    files
        The scans and masks of other formats below the folder.
    """
    found = find_dicom(folder)
    objects = {
        path: path.parent / strip_ending(path.name)
        for path, _ in found.left_out
        if isinstance(path, Path) and is_mask_object(path)
    }
    stems = {file: file.parent / strip_suffix(file.name) for file in files}
    beside = {file: stem for file, stem in stems.items() if stem in objects.values()}
    same = {stem for file, stem in beside.items() if is_known_mask(file, folder)}
    listed = [describe_object(path, folder) for path, stem in objects.items() if stem not in same]
    series = _list_series(found)
    named = [one for one in series if parse_name(one.relative).role == "mask"]
    scans = tuple(one for one in series if one not in named)
    pictures = _list_png_masks(folder, scans, alone=not (files or listed))
    masks = named or ([] if files or listed or pictures else series)
    of_series = [DicomMask(path=one.path, relative=one.relative, references=NO_REFERENCES) for one in masks]
    return DicomListing(
        masks=(*listed, *of_series, *pictures),
        scans=scans,
        scan_files=frozenset(file for file, stem in beside.items() if stem not in same),
    )


def _list_png_masks(folder: Path, scans: Sequence[ScanSeries], *, alone: bool) -> list[DicomMask]:
    """Return the folders of PNG slices beside a series whose names say mask.

    If there are none, and `alone` says that there is no other mask, return all folders of PNG slices whose path says
    mask; without scans, all. PNG slices that could belong to several series refer to none; opening them says why.
    """
    series = {one.path: one for one in scans}
    beside = find_png_masks(series, folder)
    if beside or not alone:
        around = {path: [one for location, one in series.items() if location in some] for path, some in beside.items()}
        return [_describe_png_mask(path, folder, some) for path, some in around.items()]
    all_folders = find_png_folders(folder)
    named = [path for path in all_folders if any(map(_says_mask, path.relative_to(folder).parts))]
    return [_describe_png_mask(path, folder, ()) for path in named or ([] if scans else all_folders)]


def _says_mask(folder_name: str) -> bool:
    return folder_role(folder_name) == "mask"


def _describe_png_mask(path: Path, root: Path, around: Sequence[ScanSeries]) -> DicomMask:
    """Return PNG slices as the mask of the series around them.

    Without one, they are paired by the name of their folder, or of the one above it if theirs only says mask.
    """
    if len(around) == 1:
        uid, frame = around[0].series_uid, around[0].frame_of_reference_uid
        references = References(frame_of_reference_uid=frame, series_uids=(uid,) if uid else ())
        return DicomMask(path=path, relative=around[0].relative, references=references, beside=around[0])
    named = path.parent if _says_mask(path.name) and path.parent != root else path
    return DicomMask(path=path, relative=f"{named.relative_to(root).as_posix()}{SUFFIX}", references=NO_REFERENCES)


def spell_out(path: Path) -> Path:
    """Return a path that ends with a name, which results are called by: ``.`` and ``..`` are none.

    >>> spell_out(Path("masks/Ground")), spell_out(Path(".")).name == Path.cwd().name
    (PosixPath('masks/Ground'), True)
    """
    return path.resolve() if path.name in ("", "..") else path


def list_one(path: Path) -> DicomListing:
    """Return a SEG, an RTSTRUCT or a folder of PNG slices, and for the latter the series beside it.

    The path ends with a name (`spell_out`).
    """
    if not is_png_folder(path):
        return DicomListing(masks=(describe_object(path, path.parent),), scans=())
    found = list_dicom(path.parent, ())
    masks = [one for one in found.masks if one.path == path] or [_describe_png_mask(path, path.parent, ())]
    return DicomListing(masks=tuple(masks), scans=found.scans)


def is_known_mask(file: Path, folder: Path) -> bool:
    """Return whether a file below a folder is a mask by its path, or by the report or the model of `infer`."""
    if parse_name(file.relative_to(folder).as_posix()).role == "mask" or read_report(file) is not None:
        return True
    with contextlib.suppress(InputError):
        return bool(read_signature(file))
    return False


def list_scans(folder: Path) -> tuple[ScanSeries, ...]:
    """Return the series below a folder that are not named like masks."""
    return tuple(one for one in _list_series(find_dicom(folder)) if parse_name(one.relative).role != "mask")


def _list_series(found: FoundDicom) -> list[ScanSeries]:
    return [
        ScanSeries(
            path=one.location,
            relative=f"{one.relative}{SUFFIX}",
            series_uid=one.series.series_uid,
            frame_of_reference_uid=one.series.frame_of_reference_uid if isinstance(one.series, Series) else "",
        )
        for one in found.series
        if isinstance(one.location, Path)
    ]


def describe_object(path: Path, folder: Path) -> DicomMask:
    """Return a SEG or RTSTRUCT with what it refers to; a damaged one refers to nothing, and opening it says why."""
    try:
        references = read_references(path)
    except ScanError:
        references = NO_REFERENCES
    relative = path.with_name(f"{strip_ending(path.name)}{SUFFIX}").relative_to(folder).as_posix()
    return DicomMask(path=path, relative=relative, references=references)


def strip_ending(name: str) -> str:
    """Return the name of a SEG or RTSTRUCT without its ending.

    >>> strip_ending("p1.seg.dcm"), strip_ending("p2.dcm"), strip_ending("1.2.840.3")
    ('p1', 'p2', '1.2.840.3')
    """
    ending = next((one for one in ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)] if ending else strip_dicom(name)


def strip_name(path: Path) -> str:
    """Return the name of a mask of any format without suffix."""
    return strip_ending(path.name) if is_mask_object(path) else strip_suffix(path.name)
