"""What there is to segment: files, folders, patterns, lists and stores, here or below URLs, become jobs.

1. An input is a store, a folder, a file, or a pattern; a list is a file of inputs, one a line.
2. A scan below a folder keeps its place there; single files keep theirs below the folder that they share; cases of a store
   their ids.
3. What looks like a scan and is none, is a segmentation by its name, or was made by an earlier run is left out with a reason.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from slicemill.common.errors import ConfigError, ScanError
from slicemill.common.files import Location, parse_location, relative_path
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.nifti.names import is_header_name, is_nifti_name, stem_of
from slicemill.ct.naming import (
    find_files,
    is_below,
    is_text,
    name_of,
    not_entered,
    other_scans,
    result_folders,
    undecodable_names,
    why_no_scan,
)
from slicemill.ct.window import Window
from slicemill.infer.inputs.jobs import Job, LeftOut, store_at
from slicemill.infer.inputs.pictures import is_picture
from slicemill.store.reader import is_store

STANDARD_INPUT = "-"


def gather(inputs: Sequence[str | Location], window: Window | None = None) -> tuple[list[Job], LeftOut]:
    """Return the jobs, in order, and the files left out with reasons (masks found in folders); `window` is that of pictures, HU.

    Raises
    ------
    ScanError
        A folder or pattern holds no scan, or two scans would write one output.
    """
    store_at.cache_clear()
    jobs: list[Job] = []
    left_out: LeftOut = []
    files: list[Location] = []
    for given in inputs:
        if not is_text(Path(str(given))):
            name = os.fsencode(str(given)).decode(errors="replace")
            raise ScanError(f"{name}: its name is no valid UTF-8; rename it.")
        place = parse_location(given)
        if place.is_file():
            files.append(place)
        elif place.is_dir() and is_store(place):
            jobs += [Job(name=f"{case_id}.nii.gz", path=place, case_id=case_id) for case_id in store_at(place).case_ids]
        elif place.is_dir():
            found, others = _in_folder(place)
            jobs += found
            left_out += others
        else:
            files += _matching(str(given)) if glob.has_magic(str(given)) else [place]
    jobs, again = _once([*jobs, *_jobs_of_files(files, window)])
    _check_names(jobs)
    return jobs, [*left_out, *again]


def read_list(path: str) -> list[str]:
    """Return the inputs that a list names, one a line; blank lines are none. `path` may be ``-``, standard input.

    Raises
    ------
    ConfigError
        It cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"--list {path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--list {path}: must be UTF-8 text with one scan a line; byte {error.start} is not."
        ) from error
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _in_folder(folder: Location) -> tuple[list[Job], LeftOut]:
    found = find_files(folder)
    if not found:
        raise ScanError(f"{folder}: holds no NIfTI file and is no slice store.")
    results = result_folders(folder)
    found = [file for file in found if not is_below(file, results)]
    masks = {file for file in found if name_of(relative_path(file, folder)).role == "mask"}
    left_out: LeftOut = [
        (file, "named like a segmentation; name the file itself to segment it") for file in found if file in masks
    ]
    left_out += [(file, why_no_scan(file)) for file in other_scans(folder)]
    left_out += [(result, "holds what an earlier run made; name it by itself to segment that") for result in results]
    left_out += not_entered(folder)
    left_out += [(file, "its name is no valid UTF-8; rename it") for file in undecodable_names(folder)]
    return [Job(name=name_below(folder, file), path=file) for file in found if file not in masks], left_out


def _matching(pattern: str) -> list[Location]:
    if "://" in pattern:
        fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        root = parse_location(fixed)
        try:
            fits = re.compile(pattern_below(pattern[len(fixed) + 1 :]))
        except re.error as error:
            raise ScanError(
                f"{pattern}: is no pattern ({error}); in brackets stand characters or ranges like a-z."
            ) from error
        found: list[Location] = [file for file in find_files(root) if fits.fullmatch(relative_path(file, root))]
    else:
        every = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (pathlib's takes no absolute patterns)
        found = [Path(name) for name in every if is_nifti_name(Path(name).name) or is_picture(name)]
    if not found:
        raise ScanError(f"{pattern}: matches no .nii, .nii.gz or .hdr file.")
    return found


def pattern_below(pattern: str) -> str:
    """Return the regular expression of a shell pattern: ``*`` and ``?`` stay in one folder, ``**`` goes through all.

    >>> bool(re.fullmatch(pattern_below("**/ct-?.nii*"), "a/b/ct-1.nii.gz")), bool(re.fullmatch(pattern_below("*.nii"), "a/b.nii"))
    (True, False)
    """
    parts = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = ""
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^]/]+\]|.", pattern, re.DOTALL):
        is_class = len(piece) > 2 and piece[0] == "["
        inside = piece[1:-1].replace("\\", "\\\\")
        out += (
            f"[{'^' + inside[1:] if inside[0] == '!' else inside}]" if is_class else parts.get(piece, re.escape(piece))
        )
    return out


def _jobs_of_files(files: Sequence[Location], window: Window | None) -> list[Job]:
    """Name single files by their place below the folder that those of one disk or bucket share."""
    shared: dict[str, list[Location]] = {}
    for file in files:
        shared.setdefault(file.bucket if isinstance(file, RemotePath) else "", []).append(file.absolute())
    roots = {where: _root_of(there) for where, there in shared.items()}
    return [
        Job(
            name=name_below(roots[file.bucket if isinstance(file, RemotePath) else ""], file.absolute()),
            path=file,
            window=window if is_picture(file.name) else None,
        )
        for file in files
    ]


def _root_of(files: Sequence[Location]) -> Location:
    if isinstance(first := files[0], RemotePath):
        keys = [f"/{file.parent.key}" for file in files if isinstance(file, RemotePath)]
        return RemotePath(first.bucket, os.path.commonpath(keys).strip("/"))
    return Path(os.path.commonpath([str(file.parent) for file in files]))


def name_below(root: Location, file: Location) -> str:
    """Return a scan's place below a folder; with the folder's own name where the scan's says nothing, like ``P1/CT_image.nii.gz``.

    The mask of a pair is a single file.
    """
    name = relative_path(file, root)
    if is_picture(file.name):
        name = f"{name}.nii.gz"
    if is_header_name(file.name):
        name = name[: len(name) - len(file.name)] + stem_of(file.name) + ".nii.gz"
    folder = root.absolute().name
    return f"{folder}/{name}" if folder and "/" not in name and not name_of(name).key else name


def _once(jobs: Iterable[Job]) -> tuple[list[Job], LeftOut]:
    """Return each scan once, and those that were given again."""
    seen: dict[tuple[Location, str | None], Job] = {}
    again: LeftOut = []
    for job in jobs:
        if (known := seen.setdefault((job.path.absolute(), job.case_id), job)) is not job:
            again.append((job.path, f"given more than once; it is segmented once, as {known.name}"))
    return list(seen.values()), again


def _check_names(jobs: Iterable[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.stem in seen:
            raise ScanError(
                f"{seen[job.stem].path} and {job.path} would both be written as {job.stem}.*; segment them into two folders."
            )
        seen[job.stem] = job
