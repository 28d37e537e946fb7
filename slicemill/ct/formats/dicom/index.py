"""The index of a folder: which series its DICOM files are. `slicemill.ct.formats.dicom.folders` keeps it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from slicemill.common.errors import GeometryError, ScanError
from slicemill.common.files import Location
from slicemill.common.names import natural_key
from slicemill.common.progress import Advance
from slicemill.ct.formats.dicom.files import DicomFile
from slicemill.ct.formats.dicom.frames import iter_planes
from slicemill.ct.formats.dicom.grouping import (
    Group,
    LeftOutFiles,
    describe_other,
    group_planes,
    remove_copies,
    remove_scouts,
    split_phases,
)
from slicemill.ct.formats.dicom.header import FileHeader, read_file_header
from slicemill.ct.formats.dicom.planes import Plane
from slicemill.ct.formats.dicom.series import FolderSeries, Refused, Series
from slicemill.ct.formats.dicom.stack import UNEVEN_NOTE, UnevenError, make_grid, order_planes
from slicemill.ct.formats.dicom.uids import ALWAYS_LOSSY
from slicemill.ct.grid_checks import grid_warnings

SILENT = ("dicomdir", "thumbs.db", "desktop.ini", "version", "lockfile", "autorun.inf", "license", "readme.txt")
"""Names of files that belong to exports and are no scan; the index DICOMDIR is not followed."""
OTHER_SUFFIXES = (
    ".nii", ".gz", ".hdr", ".img", ".mha", ".mhd", ".nrrd", ".nhdr", ".raw", ".zraw", ".json", ".jsonl", ".csv", ".tsv",
    ".txt", ".md", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff",
    ".bmp", ".pdf", ".py", ".ipynb", ".npy", ".npz", ".pt", ".onnx", ".zarr", ".exe", ".dll", ".xlsx", ".log",
    ".parquet",
    ".zip",
)  # fmt: skip
"""Suffixes of files that are not opened to look for DICOM."""
STEP = 500
"""Number of files between two updates of the progress bar."""


def is_silent(name: str) -> bool:
    """Return whether a file of an export is passed over without a word."""
    return name.startswith(".") or name.lower() in SILENT


def may_be_dicom(name: str) -> bool:
    """Return whether a file is opened to look for DICOM; its name does not say another format.

    >>> may_be_dicom("IM-0001"), may_be_dicom("CT.1.3.12"), may_be_dicom("a.nii.gz"), may_be_dicom("DICOMDIR")
    (True, True, False, False)
    """
    return not name.lower().endswith(OTHER_SUFFIXES) and not is_silent(name)


def sort_files(folder: Location, files: Sequence[DicomFile], advance: Advance) -> FolderSeries:
    """Sort files in natural order into series."""
    left_out: LeftOutFiles = []
    unknown: list[DicomFile] = []
    damaged: list[tuple[DicomFile, ScanError]] = []
    files_of: dict[str, list[DicomFile]] = defaultdict(list)
    parts: dict[str, list[Plane]] = defaultdict(list)
    broken: dict[str, tuple[FileHeader, ScanError]] = {}
    for number, file in enumerate(files, 1):
        if number % STEP == 0:
            advance(STEP, "")
        try:
            header = read_file_header(file)
        except ScanError as error:
            left_out.append((file.path, f"cannot be read as DICOM: {error.reason}"))
            damaged.append((file, error))
            continue
        if header is None:
            unknown.append(file)
        elif why := describe_other(header):
            left_out.append((file.path, why))
        else:
            uid = header.identity.series_uid
            files_of[uid].append(file)
            try:
                parts[uid] += iter_planes(header)
            except ScanError as error:
                broken.setdefault(uid, (header, error))
    found: list[Series | Refused] = []
    for uid in dict.fromkeys([*parts, *broken]):
        if uid in broken:  # a series with a slice that cannot be read lacks that slice
            found.append(_refuse(broken[uid][0], broken[uid][1]))
            continue
        made, others = _make_series(parts[uid])
        found += made
        left_out += others
    if damaged:
        found = [_refuse_beside(one, damaged[0][1]) for one in found]
    return FolderSeries(
        folder=folder,
        series=tuple(_name_series(folder, found)),
        left_out=tuple(left_out),
        unknown=tuple(unknown),
        files_of={uid: tuple(some) for uid, some in files_of.items()},
        damaged=tuple(file for file, _ in damaged),
    )


def _refuse(header: FileHeader, error: ScanError, longest: Series | None = None) -> Refused:
    identity = header.identity
    return Refused(
        location=header.file.path,
        number=_number(header),
        series_uid=identity.series_uid,
        patient_id=identity.patient_id,
        error=error,
        longest=longest,
    )


def _refuse_beside(one: Series | Refused, damage: ScanError) -> Series | Refused:
    """Return a series as refused because of a damaged file beside it, which may be one of its slices."""
    if isinstance(one, Refused):
        return one
    reason = (
        f"{damage.where} in the same folder cannot be read and may be one of its slices: {damage.reason} "
        "Or remove that file."
    )
    return Refused(
        location=one.location,
        number=one.number,
        series_uid=one.series_uid,
        patient_id=one.patient_id,
        error=ScanError(reason),
    )


def _number(header: FileHeader) -> str:
    """Return the SeriesNumber if it is a number; other text may name a person."""
    text = header.identity.series_number
    return str(int(text)) if text.isascii() and text.lstrip("+-").isdecimal() and len(text) <= 12 else ""


def _make_series(planes: Sequence[Plane]) -> tuple[list[Series | Refused], LeftOutFiles]:
    """Return the scans among the planes of one series UID, and the files that are none."""
    groups, left_out = remove_scouts(group_planes(planes))
    found: list[Series | Refused] = []
    for group in groups:
        header = group[0].header
        try:
            kept, copies = remove_copies(group)
            left_out += copies
            stacks = split_phases(kept)
        except ScanError as error:
            found.append(_refuse(header, error))
            continue
        found += [_make_stack(stack) for stack in stacks]
    return found, left_out


def _make_stack(stack: Group) -> Series | Refused:
    planes, _ = order_planes(stack.planes)
    header = stack.planes[0].header
    try:
        return describe_series(planes, stack.notes)
    except UnevenError as error:
        run = error.run
        note = f"only {len(run)} of {len(planes)} slices, {UNEVEN_NOTE}"
        try:
            longest = describe_series(run, (*stack.notes, note)) if len(run) > 1 else None
        except GeometryError:
            longest = None
        return _refuse(header, error, longest)
    except ScanError as error:
        return _refuse(header, error)


def describe_series(planes: Sequence[Plane], notes: Iterable[str] = ()) -> Series:
    """Return the series of planes in order of position.

    Raises
    ------
    GeometryError
        They are no box.
    """
    grid = make_grid(planes)
    header = min((plane.header for plane in planes), key=lambda one: natural_key(one.file.name))
    identity = header.identity
    return Series(
        location=header.file.path,
        number=_number(header),
        planes=tuple(planes),
        grid=grid,
        series_uid=identity.series_uid,
        study_uid=identity.study_uid,
        frame_of_reference_uid=identity.frame_of_reference_uid,
        sop_class=identity.sop_class,
        patient_id=identity.patient_id,
        kept=header.kept,
        warnings=(*notes, *_warn(planes), *grid_warnings(grid)),
    )


def _warn(planes: Sequence[Plane]) -> list[str]:
    """Return warnings about unusual fields of a series."""
    warnings = []
    headers = [plane.header for plane in planes]
    if any(one.is_lossy or one.format.syntax in ALWAYS_LOSSY for one in headers):
        warnings.append("lossy compression changed its voxels before they came here (0028,2110)")
    if any(one.rescale == (None, None) and one.frames == 1 for one in headers):
        warnings.append(
            "RescaleSlope and RescaleIntercept (0028,1053 and 1052) are missing; stored numbers are taken for HU"
        )
    if any(one.rescale_type.upper() == "US" for one in headers):
        warnings.append("RescaleType (0028,1054) is US, unspecified; its values are taken for HU")
    if any(one.has_burned_in_text for one in headers):
        warnings.append("BurnedInAnnotation (0028,0301) is YES: the pictures may show text, also names")
    if not headers[0].identity.sop_class:
        warnings.append("SOPClassUID (0008,0016) is missing; taken for a CT by its Modality")
    if not headers[0].identity.series_uid:
        warnings.append("SeriesInstanceUID (0020,000E) is missing; the files of its folder without one are one series")
    if len({one.kept.kernel for one in headers}) > 1:
        warnings.append("its slices were made with different kernels (0018,1210)")
    return warnings


def _name_series(folder: Location, found: Sequence[Series | Refused]) -> list[Series | Refused]:
    """Return series in natural order of their first files. The only one of a folder is named by the folder."""
    ordered = sorted(found, key=lambda one: natural_key(one.location.name))
    if len(ordered) == 1:
        return [_rename(ordered[0], folder, ordered[0].number)]
    counts: dict[str, int] = defaultdict(int)
    for one in ordered:
        counts[one.number] += 1
    seen: dict[str, int] = defaultdict(int)
    named = []
    for one in ordered:
        seen[one.number] += 1
        number = "_".join(
            part for part in (one.number, str(seen[one.number]) if counts[one.number] > 1 else "") if part
        )
        named.append(_rename(one, one.location, number))
    return named


def _rename(one: Series | Refused, location: Location, number: str) -> Series | Refused:
    if isinstance(one, Series):
        return replace(one, location=location, number=number)
    longest = one.longest and replace(one.longest, location=location, number=number)
    return replace(one, location=location, number=number, longest=longest)
