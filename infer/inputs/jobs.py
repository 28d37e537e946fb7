"""One scan to segment: its location, the name of its output, and its voxels. A file, a URL, or a case of a store."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.names import SHOWN_SUFFIXES, is_scan_name, strip_suffix
from slicemill.ct.formats.nifti.header import blank_text, parse_grid, stored_warnings
from slicemill.ct.formats.open import is_dicom, mark_files
from slicemill.ct.geometry import Grid
from slicemill.ct.hu_checks import hu_range, rounding_warnings
from slicemill.ct.scan import Allocate, ScanReader
from slicemill.ct.window import Window
from slicemill.infer.inputs.pictures import WARNING, is_picture, open_picture
from slicemill.store.headers import read_grid, read_header
from slicemill.store.reader import Store, open_store
from slicemill.store.training_scans import TrainingScans, describe_scan, find_differences

Stamp = tuple[int | float | str, ...]
"""Version tag of a scan's content: sizes, times and window of its files, or the hash of a stored case's source."""
UNKNOWN: Stamp = (-1, -1)
"""Stamp of a scan that does not exist or cannot be read."""


@functools.lru_cache(maxsize=8)
def open_store_once(path: Location) -> Store:
    """Open a store, or return the one that is open already."""
    return open_store(path)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan to segment."""

    name: str
    """Relative path of the mask to write: the input's name (.nii.gz unless it is .nii) in the input's folder tree."""
    path: Location
    """The scan's file (its header, if it has several), or the store."""
    case_id: str | None = None
    """The case, when `path` is a store."""
    window: Window | None = None
    """HU of black and white, when `path` is a picture."""
    short_name: str = ""
    """Name of the scan's file without suffix; with its folders if another scan of the input has this name. Empty
    if the input is not known as a whole."""

    @property
    def stem(self) -> str:
        """Return the output's relative path without its suffix, for report and picture."""
        name = PurePosixPath(self.name)
        return str(name.with_name(strip_suffix(name.name)))

    @property
    def source_id(self) -> str:
        """Return a hash of the scan's location, which distinguishes scans with the same name."""
        return hashlib.sha256(f"{self.path.absolute()}\0{self.case_id or ''}".encode()).hexdigest()[:16]

    def stamp(self) -> Stamp:
        """Return the version tag of the scan's content, or UNKNOWN if it cannot be read."""
        if self.case_id is not None:
            try:
                return (open_store_once(self.path)[self.case_id].info.image.sha256,)
            except (OSError, InputError):
                return UNKNOWN
        window = () if self.window is None else (self.window.low, self.window.high)
        try:
            return (*mark_files(self.path), *window)
        except (OSError, ScanError):
            return UNKNOWN


@dataclass(frozen=True, kw_only=True)
class LoadedScan:
    """A scan in memory."""

    volume: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    grid: Grid
    header: bytes
    """NIfTI header for the mask."""
    warnings: tuple[str, ...]
    """Warnings about header and HU, the same as ingest's."""
    series: Series | None = None
    """The DICOM series that the scan is; None for other formats."""


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """The voxels of a scan."""

    volume: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    read_seconds: float = 0.0
    """Time spent reading bytes."""
    max_rounding_error_hu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OpenScan:
    """A scan whose header has been read."""

    path: Location
    grid: Grid
    header: bytes
    """NIfTI header for the mask."""
    warnings: tuple[str, ...]
    """Warnings about the header."""
    read: Callable[[Allocate], Voxels]
    """Read the voxels. The argument allocates the array; stores and pictures do not use it."""
    series: Series | None = None
    """The DICOM series that the scan is; None for other formats."""
    has_size: bool = True
    """False for a picture, whose pixels have no known size."""

    def load(self, voxels: Voxels, trained: TrainingScans | None = None, *, strict: bool = False) -> LoadedScan:
        """Return the scan with its voxels and all its warnings; with `trained`, how it differs from training scans.

        Raises
        ------
        ScanError
            `strict`, and the scan has a warning.
        """
        of_voxels = (*hu_range(voxels.volume).warnings(), *rounding_warnings(voxels.max_rounding_error_hu))
        differences = find_training_differences(trained if self.has_size else None, voxels.volume, self.grid)
        warnings = (*self.warnings, *of_voxels, *differences)
        if strict and warnings:
            raise ScanError(f"--strict refuses a scan with warnings: {'; '.join(warnings)}.", where=self.path)
        return LoadedScan(
            volume=voxels.volume, grid=self.grid, header=self.header, warnings=warnings, series=self.series
        )


def find_training_differences(trained: TrainingScans | None, volume: npt.NDArray[np.int16], grid: Grid) -> list[str]:
    """Return a warning about what of a scan, int16[z, y, x], HU, is outside of what a model was trained on."""
    if trained is None:
        return []
    traits = describe_scan(volume.__getitem__, len(volume), grid.spacing_mm)
    return find_differences(trained, traits)


@contextmanager
def open_scan(job: Job) -> Iterator[OpenScan]:
    """Open a job's scan and check its header; close it when the block ends.

    Raises
    ------
    InputError
        The file cannot be read as a CT scan.
    """
    if job.case_id is not None:
        yield _open_case(job.path, job.case_id)
        return
    if not job.path.exists():
        raise ScanError("there is no such file.", where=job.path)
    if is_picture(job.path.name) and isinstance(job.path, Path):
        with open_picture(job.path, job.window) as picture:
            grid = parse_grid(picture.header)
            yield OpenScan(
                path=job.path,
                grid=grid,
                header=picture.header,
                warnings=(WARNING,),
                read=lambda _: Voxels(volume=picture.decode()),
                has_size=False,
            )
        return
    if not is_scan_name(job.path.name) and not is_dicom(job.path):
        raise ScanError(
            f"is not DICOM, and its name must end in {SHOWN_SUFFIXES}; convert other formats first.", where=job.path
        )
    with ScanReader(job.path, "image", hashed=False) as reader:
        yield _describe(reader)


def _describe(reader: ScanReader) -> OpenScan:
    """Return the scan of an open file."""

    def read(allocate: Allocate) -> Voxels:
        volume = reader.read(allocate)
        reader.finish()
        return Voxels(volume=volume, read_seconds=reader.read_seconds, max_rounding_error_hu=reader.max_rounding_error)

    return OpenScan(
        path=reader.path,
        grid=reader.grid,
        header=reader.stored_header(keep_text=False),
        warnings=reader.warnings,
        read=read,
        series=reader.series,
    )


def _open_case(store: Location, case_id: str) -> OpenScan:
    """Open a case of a store."""
    case = open_store_once(store)[case_id]
    grid = read_grid(case)  # checks the stored header
    header = blank_text(read_header(case, case.info.image))
    error = case.info.max_rounding_error_hu
    return OpenScan(
        path=store,
        grid=grid,
        header=header,
        warnings=stored_warnings(header),
        read=lambda _: Voxels(volume=case.image[:], max_rounding_error_hu=error),
    )


def load_scan(job: Job, trained: TrainingScans | None = None, *, strict: bool = False) -> LoadedScan:
    """Read a job's scan into memory; with `trained`, it has a warning if it differs from the training scans.

    Raises
    ------
    InputError
        The file cannot be read as a CT scan, or it has a warning and `strict` is set.
    """
    with open_scan(job) as scan:
        return scan.load(scan.read(np.empty), trained, strict=strict)
