"""One scan to segment: where it lies, what its output is called, and its voxels. Local, below a URL, or a case of a store."""

import base64
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.nifti.header import blank_text, grid_of_header
from slicemill.ct.formats.nifti.names import files_of, is_nifti_name, stem_of
from slicemill.ct.geometry import Grid
from slicemill.ct.scan import Room, ScanReader
from slicemill.ct.window import Window
from slicemill.infer.inputs.pictures import WARNING, is_picture, open_picture
from slicemill.store.reader import Store, open_store

LeftOut = list[tuple[Location, str]]
"""What of the input is no scan to segment, with reasons."""
UNKNOWN: list[Any] = [-1, -1]
"""The stamp of a scan that is not there or cannot be read."""


@functools.lru_cache(maxsize=8)
def store_at(path: Location) -> Store:
    """Return the store at a place, opened once."""
    return open_store(path)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan to segment."""

    name: str
    """Relative path of the mask to write; the input's own name (.nii.gz for a pair), in the input's own tree."""
    path: Location
    """The NIfTI file, or the store."""
    case_id: str | None = None
    """The case, when `path` is a store."""
    window: Window | None = None
    """HU of black and white, when `path` is a picture."""

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
        """Return what tells whether the scan has changed: size and time, or the source's hash in a store; UNKNOWN if it cannot be read."""
        if self.case_id is not None:
            try:
                return [store_at(self.path)[self.case_id].info.image.sha256]
            except (OSError, InputError):
                return UNKNOWN
        black_and_white = [] if self.window is None else [self.window.low, self.window.high]
        try:
            found = [file.stat() for file in files_of(self.path)]
        except OSError:
            return UNKNOWN
        return [*(number for status in found for number in (status.st_size, status.st_mtime_ns)), *black_and_white]


@dataclass(frozen=True, kw_only=True)
class LoadedScan:
    """A scan in memory."""

    volume: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    grid: Grid
    header: bytes
    """The NIfTI header that the mask will carry."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A scan of which only the header was read."""

    grid: Grid
    header: bytes
    """The NIfTI header that the mask will carry."""
    warnings: tuple[str, ...]
    read: Callable[[Room], tuple[npt.NDArray[np.int16], float]]
    """Return the voxels int16[z, y, x], HU, in an array that `Room` makes where they come from a file, and the seconds of reading bytes."""


@contextmanager
def opened(job: Job) -> Iterator[Opened]:
    """Open a job's scan, and check its header, while the block runs.

    Raises
    ------
    InputError
        It cannot be read as a CT scan.
    """
    if job.case_id is not None:
        case = store_at(job.path)[job.case_id]
        header = blank_text(base64.b64decode(case.info.image.header_b64))
        grid = grid_of_header(header)
        yield Opened(grid=grid, header=header, warnings=case.info.warnings, read=lambda _: (case.image[:], 0.0))
        return
    if not job.path.exists():
        raise ScanError(f"{job.path}: there is no such file.")
    if is_picture(job.path.name) and isinstance(job.path, Path):
        with open_picture(job.path, job.window) as (header, decoded):
            grid = grid_of_header(header)
            yield Opened(grid=grid, header=header, warnings=(WARNING,), read=lambda _: (decoded(), 0.0))
        return
    if not is_nifti_name(job.path.name):
        raise ScanError(
            f"{job.path}: its name must end in .nii, .nii.gz or .hdr (with the .img beside it); convert other formats first."
        )
    with ScanReader(job.path, "image", hashed=False) as reader:

        def read(room: Room) -> tuple[npt.NDArray[np.int16], float]:
            volume = reader.read(room)
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
        return LoadedScan(volume=scan.read(np.empty)[0], grid=scan.grid, header=scan.header, warnings=scan.warnings)
