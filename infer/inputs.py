"""What there is to segment: files, folders, patterns and stores become jobs with the name of their output."""

import base64
import functools
import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from store.errors import ScanError
from store.geometry import Grid
from store.naming import badly_named, find_files, is_text, name_of, not_entered, other_scans, why_no_scan
from store.nifti import blank_text, files_of, grid_of_header, is_header_name, is_nifti_name, stem_of
from store.reader import Store, is_store, open_store
from store.scan import ScanReader


@functools.lru_cache(maxsize=8)
def _store(path: Path) -> Store:
    return open_store(path)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan to segment."""

    name: str
    """Relative path of the mask to write; the input's own name (.nii.gz for a pair), in the input's own tree."""
    path: Path
    """The NIfTI file, or the store."""
    case_id: str | None = None
    """The case, when `path` is a store."""

    @property
    def stem(self) -> str:
        """Return the output's relative path without its suffix, for report and picture."""
        name = PurePosixPath(self.name)
        return str(name.with_name(stem_of(name.name)))

    @property
    def source_id(self) -> str:
        """Return what tells two scans of one name apart: a hash of where the scan lies."""
        return hashlib.sha256(f"{self.path.absolute()}\0{self.case_id or ''}".encode()).hexdigest()[:16]

    def stamp(self) -> list[Any]:
        """Return what tells whether the scan has changed: size and time, or the source's hash in a store."""
        if self.case_id is not None:
            return [_store(self.path)[self.case_id].info.image.sha256]
        try:
            found = [file.stat() for file in files_of(self.path)]
        except OSError:
            return [-1, -1]
        return [number for status in found for number in (status.st_size, status.st_mtime_ns)]


@dataclass(frozen=True, kw_only=True)
class LoadedScan:
    """A scan in memory."""

    volume: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    grid: Grid
    header: bytes
    """The NIfTI header that the mask will carry."""
    warnings: tuple[str, ...]


def gather(inputs: Sequence[str | Path]) -> tuple[list[Job], list[tuple[Path, str]]]:
    """Return the jobs, in order, and the files left out with reasons (masks found in folders).

    Raises
    ------
    ScanError
        An input does not exist, or two scans would write one output.
    """
    _store.cache_clear()
    jobs: list[Job] = []
    left_out: list[tuple[Path, str]] = []
    files: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir() and is_store(path):
            jobs += [Job(name=f"{case_id}.nii.gz", path=path, case_id=case_id) for case_id in _store(path).case_ids]
        elif path.is_dir():
            found = find_files(path)
            masks = {file for file in found if name_of(file.relative_to(path).as_posix()).role == "mask"}
            left_out += [
                (file, "named like a segmentation; name the file itself to segment it")
                for file in found
                if file in masks
            ]
            left_out += [(file, why_no_scan(file)) for file in other_scans(path)]
            left_out += not_entered(path)
            jobs += [Job(name=_name(file, path), path=file) for file in found if file not in masks]
            left_out += [(file, "its name is no valid UTF-8; rename it") for file in badly_named(path)]
            if not found:
                raise ScanError(f"{path}: holds no NIfTI file and is no slice store.")
        else:
            if not is_text(path):
                raise ScanError(f"{os.fsencode(path).decode(errors='replace')}: its name is no valid UTF-8; rename it.")
            files += [path] if path.exists() or not glob.has_magic(str(given)) else _matching(str(given))
    jobs += _jobs_of_files(files)
    _check_names(jobs)
    return jobs, left_out


def _matching(pattern: str) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if is_nifti_name(Path(name).name)]  # noqa: PTH207
    if not found:
        raise ScanError(f"{pattern}: matches no .nii, .nii.gz or .hdr file.")
    return found


def _jobs_of_files(files: Sequence[Path]) -> list[Job]:
    """Name single files by their place below the folder that they share."""
    if not files:
        return []
    root = os.path.commonpath([file.absolute().parent for file in files])
    return [Job(name=_name(file.absolute(), Path(root)), path=file) for file in files]


def _name(file: Path, root: Path) -> str:
    """Return a scan's place below a folder; with the folder's own name where the scan's says nothing, like ``P1/CT_image.nii.gz``.

    The mask of a pair is a single file.
    """
    relative = Path(os.path.relpath(file, root)).as_posix()
    if is_header_name(file.name):
        relative = relative[: len(relative) - len(file.name)] + stem_of(file.name) + ".nii.gz"
    return f"{root.absolute().name}/{relative}" if "/" not in relative and not name_of(relative).key else relative


def _check_names(jobs: Iterable[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.stem in seen:
            raise ScanError(
                f"{seen[job.stem].path} and {job.path} would both be written as {job.stem}.*; segment them into two folders."
            )
        seen[job.stem] = job


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A scan of which only the header was read."""

    grid: Grid
    header: bytes
    """The NIfTI header that the mask will carry."""
    warnings: tuple[str, ...]
    read: Callable[[], tuple[npt.NDArray[np.int16], float]]
    """Return the voxels int16[z, y, x], HU, and how many seconds went into reading bytes."""


@contextmanager
def opened(job: Job) -> Iterator[Opened]:
    """Open a job's scan, and check its header, while the block runs.

    Raises
    ------
    InputError
        It cannot be read as a CT scan.
    """
    if job.case_id is not None:
        case = _store(job.path)[job.case_id]
        header = blank_text(base64.b64decode(case.info.image.header_b64))
        grid = grid_of_header(header)
        yield Opened(grid=grid, header=header, warnings=case.info.warnings, read=lambda: (case.image[:], 0.0))
        return
    if not job.path.exists():
        raise ScanError(f"{job.path}: there is no such file.")
    if not is_nifti_name(job.path.name):
        raise ScanError(
            f"{job.path}: its name must end in .nii, .nii.gz or .hdr (with the .img beside it); convert other formats first."
        )
    with ScanReader(job.path, "image", hashed=False) as reader:

        def read() -> tuple[npt.NDArray[np.int16], float]:
            volume = reader.read()
            reader.finish()
            return volume, reader.read_seconds

        header = blank_text(reader.header.raw)
        yield Opened(grid=reader.grid, header=header, warnings=reader.header.warnings, read=read)


def load(job: Job) -> LoadedScan:
    """Read a job's scan.

    Raises
    ------
    InputError
        It cannot be read as a CT scan.
    """
    with opened(job) as scan:
        return LoadedScan(volume=scan.read()[0], grid=scan.grid, header=scan.header, warnings=scan.warnings)
