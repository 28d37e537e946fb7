"""Uploaded files to scans: archives are unpacked, headers find their data again, and scans are found."""

import re
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import InputError, ScanError
from slicemill.common.failures import explain_failure
from slicemill.ct.formats.dicom.discover import FoundSeries, find_dicom
from slicemill.ct.formats.dicom.series import Refused
from slicemill.ct.formats.names import DETACHED_SUFFIXES
from slicemill.ct.naming import find_files, find_unread_scans
from slicemill.ct.scan import ScanReader
from slicemill.infer.inputs.pictures import is_picture
from slicemill.web.serve.archives import unpack
from slicemill.web.serve.pictures import convert_picture
from slicemill.web.serve.records import INPUT, Choice, PrepareOrder, UploadedFile
from slicemill.web.serve.uploads import Names

MAX_HEADER_BYTES = 1 << 20
DATA_FIELD = re.compile(rb"^(ElementDataFile\s*=\s*|data ?file:\s*)(.+?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
PICTURE = "picture.nii"
SHOWN_REASONS = 3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A scan among the uploaded files."""

    path: Path
    choice: Choice
    is_dicom: bool = False
    is_picture: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was uploaded."""

    candidates: tuple[Candidate, ...]
    files: tuple[UploadedFile, ...]
    """All files, those of archives too."""


def prepare(folder: Path, order: PrepareOrder, shown: Names) -> Prepared:
    """Find the scans among the files of a job's folder; `shown` gets the names of all files, for messages.

    Raises
    ------
    ScanError
        There is none, or an archive or a picture is refused.
    """
    inputs = folder / INPUT
    for file in order.files:
        shown.add(file.shown)
    if any(is_picture(file.local) for file in shown.files):
        return Prepared(candidates=(_prepare_picture(folder, order),), files=tuple(shown.files))
    unpack(inputs, shown, order.limits)
    for file in shown.files:
        if file.local.endswith(DETACHED_SUFFIXES):
            attach_data(inputs / file.local, shown.files)
    names = {file.local: file.shown for file in shown.files}
    candidates = [_describe_file(path, names) for path in find_files(inputs)]
    dicom = find_dicom(inputs)
    candidates += [_describe_series(one) for one in dicom.series]
    if not any(candidate.choice.refused is None for candidate in candidates):
        reasons = [f"{one.choice.name}: {one.choice.refused}" for one in candidates]
        reasons += [f"{path}: {reason}" for path, reason in (*find_unread_scans(inputs).items(), *dicom.left_out)]
        why = f" {'; '.join(dict.fromkeys(reasons[:SHOWN_REASONS]))}" if reasons else ""
        raise ScanError(f"among the files is no CT scan that can be read.{why}")
    return Prepared(candidates=tuple(candidates), files=tuple(shown.files))


def _prepare_picture(folder: Path, order: PrepareOrder) -> Candidate:
    if len(order.files) != 1:
        raise ScanError("a picture is segmented alone; choose one picture, or the files of one scan.")
    if order.picture is None:
        raise ScanError("a picture needs the window that it was made with.")
    (file,) = order.files
    convert_picture(folder / INPUT / file.local, order.picture, order.limits, folder / PICTURE)
    choice = Choice(name=file.shown, detail="a picture", refused=None)
    return Candidate(path=folder / PICTURE, choice=choice, is_picture=True)


def attach_data(header: Path, files: list[UploadedFile]) -> None:
    """Write the local name of the data into a header that names them as they were called before the upload.

    A name that was not uploaded is left as it is: the reader then says that this file is missing.
    """
    if header.stat().st_size > MAX_HEADER_BYTES:
        return
    local = {file.shown.replace("\\", "/").rpartition("/")[2].encode(): file.local.encode() for file in files}

    def rename(found: re.Match[bytes]) -> bytes:
        return found[1] + local.get(found[2], found[2])

    header.write_bytes(DATA_FIELD.sub(rename, header.read_bytes()))


def _describe_file(path: Path, names: dict[str, str]) -> Candidate:
    try:
        with ScanReader(path, "image", hashed=False) as reader:
            nz, ny, nx = reader.grid.stored_shape
            detail, refused = f"{nz} slices of {nx} x {ny}, {reader.grid.spacing_mm[0]:.3g} mm apart", None
    except (InputError, OSError) as error:
        detail, refused = "", error.reason if isinstance(error, InputError) else explain_failure(error, "file").reason
    choice = Choice(name=names.get(path.name, path.name), detail=detail, refused=refused)
    return Candidate(path=path, choice=choice)


def _describe_series(found: FoundSeries) -> Candidate:
    series, path = found.series, found.location
    assert isinstance(path, Path)  # noqa: S101 (the folder is a local one)
    name = f"Series {series.number}" if series.number else "DICOM series"
    if isinstance(series, Refused):
        choice = Choice(name=name, detail="", refused=series.error.reason)
    else:
        nz, ny, nx = series.grid.stored_shape
        kept = series.kept
        traits = [f"{nz} slices of {nx} x {ny}", f"{series.grid.spacing_mm[0]:.3g} mm apart"]
        traits += [f"kernel {kept.kernel}"] if kept.kernel else []
        traits += ["contrast agent"] if kept.contrast else []
        choice = Choice(name=name, detail=", ".join(traits), refused=None)
    return Candidate(path=path, choice=choice, is_dicom=True)


def explain_publicly(error: BaseException, folder: Path, files: list[UploadedFile]) -> str:
    """Return the reason of a failure with the user's names of files, and without a path of this machine."""
    if isinstance(error, MemoryError):
        return "the scan needs more memory than a scan may take here."
    reason = explain_failure(error, "this scan").reason
    inputs = str(folder / INPUT)
    for file in sorted(files, key=lambda file: -len(file.local)):
        reason = reason.replace(f"{inputs}/{file.local}", file.shown)
    return reason.replace(inputs, "the files").replace(f"{folder}/", "").replace(str(folder), "the files")
