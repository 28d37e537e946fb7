"""Records of DICOM series: the files of a folder, sorted into boxes of slices.

`slicemill.ct.formats.dicom.lookup` reads them. A `Series` describes its slices in order of position, so that results
(masks, SEG, RTSTRUCT) can refer to them. No voxel is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.files import DicomFile
from slicemill.ct.formats.dicom.header import Kept
from slicemill.ct.formats.dicom.planes import Plane
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
    unknown: tuple[DicomFile, ...]
    """Files that are not DICOM."""
    files_of: Mapping[str, tuple[DicomFile, ...]] = field(default_factory=dict)
    """SeriesInstanceUID -> all its CT files, also copies and those that cannot be used."""
    damaged: tuple[DicomFile, ...] = ()
    """Files that cannot be read as DICOM: their series is unknown."""


def identify(one: Series | Refused) -> SeriesIdentity:
    """Return what links a series to a hospital."""
    return SeriesIdentity(one.patient_id, one.series_uid)
