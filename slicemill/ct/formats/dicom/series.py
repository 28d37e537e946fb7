"""DICOM series: the files of a folder, sorted into boxes of slices.

`read_series` gives the series of a folder or of one of its files. A `Series` describes its slices in order of position,
so that results (masks, SEG, RTSTRUCT) can refer to them. No voxel is read.
"""

from dataclasses import dataclass, field

from slicemill.common.errors import GeometryError, ReadError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.header import Kept
from slicemill.ct.formats.dicom.planes import Plane
from slicemill.ct.formats.dicom.stack import Uneven
from slicemill.ct.geometry import Grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A series that is one box: one scan."""

    location: Location
    """What names the series: its folder if that holds one series, else its first file in natural order."""
    number: str
    """SeriesNumber; empty if it is not a number. Stacks of one series have ``3_1``, ``3_2``."""
    planes: tuple[Plane, ...]
    """The slices in order of position: plane k of the grid."""
    grid: Grid
    """i along a row, j along a column, k across the slices."""
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    """Empty if the files do not say."""
    sop_class: str
    patient_id: str = field(repr=False)
    """PatientID as in the files: hashed before anything is written."""
    kept: Kept
    """The fields that a store keeps."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeriesIdentity:
    """What links a series to a hospital. It stays in memory, unless a user asks to keep UIDs."""

    patient_id: str = field(repr=False)
    series_uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A CT series that is not one box, or whose pixels are no CT."""

    location: Location
    number: str
    series_uid: str
    patient_id: str = field(repr=False)
    error: ScanError
    longest: Series | None = None
    """Its longest part with equal steps; None if that is not the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSeries:
    """What the DICOM files directly in a folder are."""

    folder: Location
    series: tuple[Series | Refused, ...]
    """In natural order of their first files."""
    left_out: tuple[tuple[Location, str], ...]
    """Files that are no scan, and why."""
    unknown: tuple[Location, ...]
    """Files that are not DICOM."""


def read_series(location: Location, *, uneven: Uneven = "refuse") -> list[Series]:
    """Return the series of a folder, or the one that a file names or belongs to.

    Raises
    ------
    ScanError
        There is no CT series, or one is not a box of equal steps. The message has the numbers and the way out.
    """
    from slicemill.ct.formats.dicom.index import read_folder

    if location.is_dir():
        found = read_folder(location).series
        if not found:
            raise ScanError("holds no CT series in DICOM.", where=location)
        return [choose(one, uneven) for one in found]
    return [open_series(location, uneven=uneven)]


def open_series(location: Location, *, uneven: Uneven = "refuse") -> Series:
    """Return the series that a location names: a folder with one series, or a file of a series.

    Raises
    ------
    ScanError
        There is no such series, the folder has several, or the series is not a box of equal steps.
    """
    from slicemill.ct.formats.dicom.lookup import find_series

    return choose(find_series(location), uneven)


def identify(one: Series | Refused) -> SeriesIdentity:
    """Return what links a series to a hospital."""
    return SeriesIdentity(one.patient_id, one.series_uid)


def choose(one: Series | Refused, uneven: Uneven) -> Series:
    """Return a series, or the longest part of an uneven one if that is requested.

    Raises
    ------
    ScanError
        The series was refused.
    """
    if isinstance(one, Series):
        return one
    if uneven == "longest" and one.longest is not None:
        return one.longest
    kind = next(kind for kind in (ReadError, GeometryError, ScanError) if isinstance(one.error, kind))
    raise kind(one.error.reason, where=one.error.where or one.location)
