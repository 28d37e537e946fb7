"""Gather: turn files, folders, patterns, lists and stores, local or below URLs, into jobs.

1. An input is a store, a folder, a file, or a pattern. A list is a file with one input per line.
2. A scan below a folder keeps its relative path. Single files keep their paths below the folder that they share. Cases
   of a store are named by their ids.
3. Other formats, segmentations (by name) and results of earlier runs are left out, with a reason.
"""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from slicemill.common.errors import ConfigError, ScanError
from slicemill.common.files import Location, parse_location, relative_path
from slicemill.common.left_out import LeftOut
from slicemill.common.names import is_text
from slicemill.common.remote import RemotePath
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.files import is_dicom_file, strip_dicom
from slicemill.ct.formats.dicom.lookup import find_series, holds_series
from slicemill.ct.formats.names import SHOWN_SUFFIXES, is_scan_name, strip_suffix
from slicemill.ct.formats.open import is_dicom
from slicemill.ct.naming import (
    NOT_UTF8,
    find_files,
    find_result_folders,
    find_undecodable_names,
    find_unread_scans,
    find_unsearched_folders,
    is_below,
    parse_name,
)
from slicemill.ct.roles import parse_names
from slicemill.ct.window import Window
from slicemill.infer.inputs.jobs import Job, open_store_once
from slicemill.infer.inputs.pictures import is_picture
from slicemill.store.reader import is_store

STANDARD_INPUT = "-"
MASK_SUFFIXES = (".nii", ".nii.gz")
"""Suffixes of masks: a scan's own, else .nii.gz."""


def gather(inputs: Sequence[str | Location], window: Window | None = None) -> tuple[list[Job], list[LeftOut]]:
    """Return the jobs, in order, and the files that are left out, with reasons.

    Parameters
    ----------
    inputs
        Files, folders, patterns and stores.
    window
        HU of black and white in pictures.

    Raises
    ------
    ScanError
        A folder or pattern has no scans, or two scans would be written to the same file.
    """
    open_store_once.cache_clear()
    jobs: list[Job] = []
    left_out: list[LeftOut] = []
    files: list[Location] = []
    for entry in inputs:
        if not is_text(Path(str(entry))):
            name = os.fsencode(str(entry)).decode(errors="replace")
            raise ScanError(f"{NOT_UTF8}.", where=name)
        location = parse_location(entry)
        if location.is_file():
            files.append(_name_series(location))
        elif location.is_dir() and is_store(location):
            case_ids = open_store_once(location).case_ids
            jobs += [Job(name=f"{case_id}.nii.gz", path=location, case_id=case_id) for case_id in case_ids]
        elif location.is_dir():
            scans, others = _gather_folder(location)
            jobs += scans
            left_out += others
        else:
            files += _match_pattern(str(entry)) if glob.has_magic(str(entry)) else [location]
    jobs, repeated = _remove_repeated([*jobs, *_name_files(files, window)])
    _check_names(jobs)
    names = name_scans([job.stem for job in jobs])
    return [replace(job, short_name=name) for job, name in zip(jobs, names, strict=True)], [*left_out, *repeated]


def name_scans(stems: Sequence[str]) -> list[str]:
    """Return what scans are called in tables: of LUNA16's files the series, with folders where names are not unique.

    >>> name_scans(["subset0/1.3.6", "a/ct", "b/ct"])
    ['1.3.6', 'a/ct', 'b/ct']
    """
    paths = [PurePosixPath(stem) for stem in stems]
    times = Counter(path.name for path in paths)
    return [path.name if times[path.name] == 1 else str(path) for path in paths]


def read_list(path: str) -> list[str]:
    """Read a list with one input per line, without blank lines. `path` may be ``-``, standard input.

    Raises
    ------
    ConfigError
        The list cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"--list {path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--list {path}: must be UTF-8 text with one scan per line; byte {error.start} is not."
        ) from error
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _gather_folder(folder: Location) -> tuple[list[Job], list[LeftOut]]:
    files = find_files(folder)
    dicom = find_dicom(folder)
    if not files and not dicom.series:
        first = f"; {dicom.left_out[0][0].name}: {dicom.left_out[0][1]}" if dicom.left_out else ""
        raise ScanError(f"contains no scans and is not a slice store{first}.", where=folder)
    results = find_result_folders(folder)
    files = [file for file in files if not is_below(file, results)]
    series = {one.location: one.relative for one in dicom.series if not is_below(one.location, results)}
    relative = {file: relative_path(file, folder) for file in files if file not in series} | series
    names = parse_names(list(relative.values()))
    masks = {file for file in relative if names[relative[file]].role == "mask"}
    reasons: list[tuple[Location, str]] = [
        *(
            (file, "named like a segmentation; to segment it, pass the file itself")
            for file in relative
            if file in masks
        ),
        *find_unread_scans(folder).items(),
        *((result, "results of an earlier run; to segment them, pass this folder itself") for result in results),
        *dicom.left_out,
        *find_unsearched_folders(folder),
        *((file, NOT_UTF8) for file in find_undecodable_names(folder)),
    ]
    jobs = [
        Job(name=f"{series[file]}.nii.gz" if file in series else name_below(folder, file), path=file)
        for file in relative
        if file not in masks
    ]
    return jobs, [LeftOut(path, reason) for path, reason in reasons]


def _name_series(file: Location) -> Location:
    """Return the location of a DICOM file's series, so that each series is segmented once; any other file itself."""
    if is_picture(file.name) or not is_dicom(file):
        return file
    try:
        return find_series(file).location
    except ScanError:  # the job fails with this reason
        return file


def _match_pattern(pattern: str) -> list[Location]:
    names: list[str] = []
    if "://" in pattern:
        fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        root = parse_location(fixed)
        try:
            fits = re.compile(pattern_below(pattern[len(fixed) + 1 :]))
        except re.error as error:
            raise ScanError(
                f"is not a valid pattern ({error}); put characters or ranges like a-z in brackets.", where=pattern
            ) from error
        matches: list[Location] = [file for file in find_files(root) if fits.fullmatch(relative_path(file, root))]
    else:
        names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (pathlib's takes no absolute patterns)
        matches = [
            Path(name) for name in names if is_scan_name(Path(name).name) or is_picture(name) or _is_series(Path(name))
        ]
    if not matches:
        others = f"{count_noun(len(names), 'path')}, like {Path(names[0]).name}, but no" if names else "no"
        raise ScanError(f"matches {others} {SHOWN_SUFFIXES} file and no DICOM series.", where=pattern)
    return [_name_series(file) for file in matches]


def _is_series(path: Path) -> bool:
    """Return whether a path is a DICOM series: its folder, an archive, or a file of it."""
    return holds_series(path) or is_dicom_file(path)


def pattern_below(pattern: str) -> str:
    """Return the regular expression of a shell pattern: ``*`` and ``?`` match within a folder, ``**`` across folders.

    >>> bool(re.fullmatch(pattern_below("**/ct-?.nii*"), "a/b/ct-1.nii.gz"))
    True
    >>> bool(re.fullmatch(pattern_below("*.nii"), "a/b.nii"))
    False
    """
    wildcards = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = ""
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^]/]+\]|.", pattern, re.DOTALL):
        if len(piece) > 2 and piece[0] == "[":
            inside = piece[1:-1].replace("\\", "\\\\")
            out += f"[{'^' + inside[1:] if inside[0] == '!' else inside}]"
        else:
            out += wildcards.get(piece, re.escape(piece))
    return out


def _name_files(files: Sequence[Location], window: Window | None) -> list[Job]:
    """Name single files by their paths below the folder that the files of one disk or bucket share."""
    groups: dict[str, list[Location]] = {}
    for file in files:
        groups.setdefault(_bucket_of(file), []).append(file.absolute())
    roots = {bucket: _common_folder(group) for bucket, group in groups.items()}
    return [
        Job(
            name=name_below(roots[_bucket_of(file)], file.absolute()),
            path=file,
            window=window if is_picture(file.name) else None,
        )
        for file in files
    ]


def _bucket_of(file: Location) -> str:
    """Return the bucket of a URL, or an empty string for a local file."""
    return file.bucket if isinstance(file, RemotePath) else ""


def _common_folder(files: Sequence[Location]) -> Location:
    if isinstance(first := files[0], RemotePath):
        keys = [f"/{file.parent.key}" for file in files if isinstance(file, RemotePath)]
        return RemotePath(first.bucket, os.path.commonpath(keys).strip("/"))
    return Path(os.path.commonpath([str(file.parent) for file in files]))


def name_below(root: Location, file: Location) -> str:
    """Return the name of a scan's mask: its path below a folder.

    The folder's name is added if the scan's name does not identify it, as in ``P1/CT_image.nii.gz``. The mask of
    anything but a single NIfTI file is a .nii.gz file.
    """
    name = relative_path(file, root)
    if is_picture(file.name):
        name = f"{name}.nii.gz"
    elif not is_scan_name(file.name):
        name = f"{strip_dicom(name)}.nii.gz"
    if not name.lower().endswith(MASK_SUFFIXES):
        name = name[: len(name) - len(file.name)] + strip_suffix(file.name) + ".nii.gz"
    folder = root.absolute().name
    return f"{folder}/{name}" if folder and "/" not in name and not parse_name(name).key else name


def _remove_repeated(jobs: Iterable[Job]) -> tuple[list[Job], list[LeftOut]]:
    """Return each scan once, and the repeated ones with reasons."""
    seen: dict[tuple[Location, str | None], Job] = {}
    repeated = [
        LeftOut(job.path, f"listed more than once; segmented once, as {known.name}")
        for job in jobs
        if (known := seen.setdefault((job.path.absolute(), job.case_id), job)) is not job
    ]
    return list(seen.values()), repeated


def _check_names(jobs: Iterable[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.stem in seen:
            raise ScanError(
                f"{seen[job.stem].path} and {job.path} would both be written as {job.stem}.*; "
                "segment them into two folders."
            )
        seen[job.stem] = job
