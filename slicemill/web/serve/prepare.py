"""Uploaded files to scans: archives are unpacked, headers find their data again, and scans are found."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import InputError, ScanError
from slicemill.common.failures import explain_failure
from slicemill.ct.formats.dicom.discover import FoundSeries, find_dicom
from slicemill.ct.formats.dicom.series import Refused
from slicemill.ct.formats.names import METAIMAGE_SUFFIXES, NRRD_SUFFIXES
from slicemill.ct.formats.open import list_data_files
from slicemill.ct.formats.text_header import shorten
from slicemill.ct.naming import find_files, find_unread_scans
from slicemill.ct.scan import ScanReader
from slicemill.infer.inputs.pictures import is_picture
from slicemill.web.serve.archives import unpack
from slicemill.web.serve.example import NAME, write_example
from slicemill.web.serve.pictures import convert_picture
from slicemill.web.serve.records import INPUT, Choice, PrepareOrder, UploadedFile
from slicemill.web.serve.uploads import Names

MAX_HEADER_BYTES = 1 << 20
DATA_FIELD = re.compile(rb"^(ElementDataFile\s*=\s*|data ?file:\s*)(.+?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
HEADER_SUFFIXES = (*METAIMAGE_SUFFIXES, *NRRD_SUFFIXES)
"""Suffixes of headers that may name another file; local names have small letters."""
PAIR_SUFFIX = ".hdr"
PAIR_SUFFIXES = (PAIR_SUFFIX, ".img", ".img.gz")
TWICE = "there are two files {name} in one folder, so that headers and data cannot be matched. Choose one scan alone."
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
    if order.is_example:
        example = Candidate(path=write_example(folder), choice=Choice(name=NAME, detail="", refused=None))
        return Prepared(candidates=(example,), files=())
    for file in order.files:
        shown.add(file.shown)
    if any(is_picture(file.local) for file in shown.files):
        return Prepared(candidates=(_prepare_picture(folder, order),), files=tuple(shown.files))
    unpack(inputs, shown, order.limits)
    refused = _refuse_loose_headers(inputs, shown.files)
    names = {file.local: file.shown for file in shown.files}
    candidates = [_describe_file(path, names) for path in find_files(inputs) if path.name not in refused]
    for local, reason in refused.items():
        choice = Choice(name=names[local], detail="", refused=reason)
        candidates.append(Candidate(path=inputs / local, choice=choice))
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


def attach_data(header: Path, shown: str, files: Sequence[UploadedFile]) -> str | None:
    """Write the local name of the data into a header, and return why this scan cannot be read, or None.

    A header names its data as they were called before the upload, in its own folder. What it names afterwards must be
    what was attached: local names are numbers, which a header from outside may name, too.
    """
    folder = _folder_of(shown)
    beside = Counter(_base_of(file.shown) for file in files if _folder_of(file.shown) == folder)
    local = {_base_of(file.shown).encode(): file.local for file in files if _folder_of(file.shown) == folder}
    attached: dict[str, str] = {}

    def rename(found: re.Match[bytes]) -> bytes:
        name = found[2].removeprefix(b"./")
        if name not in local:
            return found[0]
        attached[local[name]] = name.decode()
        return found[1] + local[name].encode()

    if header.stat().st_size <= MAX_HEADER_BYTES:
        header.write_bytes(DATA_FIELD.sub(rename, header.read_bytes()))
    try:
        named = [path.name for path in list_data_files(header)]
    except (InputError, OSError):
        return None  # the reader refuses it for the same reason
    for name in named:
        if name in attached:
            continue
        if name in beside:
            return "names its data files in a list or by a pattern, which is not read here. Use `slicemill infer`."
        return f"its data file {shorten(name)} is not among the files of its folder. Choose it, too."
    twice = [name for name in (_base_of(shown), *(attached[one] for one in named)) if beside[name] > 1]
    return TWICE.format(name=twice[0]) if named and twice else None


def check_pair(shown: str, files: Sequence[UploadedFile]) -> str | None:
    """Return why the header of a pair of NIfTI files cannot be told apart from others, or None."""
    names = Counter(_to_posix(file.shown) for file in files)
    stem = _to_posix(shown)[: -len(PAIR_SUFFIX)]
    pair = (name for name in names if name[: len(stem)] == stem and name[len(stem) :].lower() in PAIR_SUFFIXES)
    twice = [name for name in pair if names[name] > 1]
    return TWICE.format(name=_base_of(twice[0])) if twice else None


def _refuse_loose_headers(inputs: Path, files: Sequence[UploadedFile]) -> dict[str, str]:
    """Attach data to all headers; return the local names of those that cannot be read, with reasons."""
    refused = {}
    for file in files:
        reason = None
        if file.local.endswith(HEADER_SUFFIXES):
            reason = attach_data(inputs / file.local, file.shown, files)
        elif file.local.endswith(PAIR_SUFFIX):
            reason = check_pair(file.shown, files)
        if reason is not None:
            refused[file.local] = reason
    return refused


def _to_posix(shown: str) -> str:
    return shown.replace("\\", "/")


def _folder_of(shown: str) -> str:
    return _to_posix(shown).rpartition("/")[0]


def _base_of(shown: str) -> str:
    return _to_posix(shown).rpartition("/")[2]


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
