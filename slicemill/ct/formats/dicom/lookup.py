"""Opens the series that a location names: a folder, a file of a series, or a zip archive."""

from slicemill.common.errors import GeometryError, ReadError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.archive import is_archive_name, read_archive
from slicemill.ct.formats.dicom.files import stat_file
from slicemill.ct.formats.dicom.folders import look_up_file, read_folder
from slicemill.ct.formats.dicom.series import Refused, Series
from slicemill.ct.geometry_option import Uneven

SHOWN = 3


def read_series(location: Location, *, uneven: Uneven = "refuse") -> list[Series]:
    """Return the series of a folder, or the one that a file names or belongs to.

    Raises
    ------
    ScanError
        There is no CT series, or one is not a box of equal steps. The message has the numbers and the way out.
    """
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
    return choose(find_series(location), uneven)


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


def holds_series(path: Location) -> bool:
    """Return whether a path is a folder with a CT series directly in it, or a zip archive."""
    return bool(read_folder(path).series) if path.is_dir() else is_archive_name(path.name)


def find_series(location: Location) -> Series | Refused:
    """Return the series that a location names: a folder or an archive with one series, or a file of a series.

    Raises
    ------
    ScanError
        There is no such series, or the folder has several.
    """
    if location.is_dir():
        found = read_folder(location).series
        if len(found) != 1:
            names = ", ".join(one.location.name for one in found[:SHOWN])
            raise ScanError(
                f"holds {len(found)} CT series{f' ({names})' if names else ' in DICOM'}; name the first file of one.",
                where=location,
            )
        return found[0]
    file = stat_file(location)
    if is_archive_name(location.name):
        index = read_archive(file, lambda _amount, _note: None)
        if not index.series:
            raise ScanError(f"{(index.left_out or ((location, 'holds no DICOM'),))[0][1]}.", where=location)
        return index.series[0]
    looked_up = look_up_file(location)
    if looked_up.series is None:
        left_out = looked_up.index.left_out
        reason = next((why for path, why in left_out if path == location), "is not a file of a CT series in DICOM")
        raise ScanError(f"{reason}.", where=location)
    return looked_up.series
