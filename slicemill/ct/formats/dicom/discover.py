"""DICOM below a folder: the series of each folder, as scans beside the files of other formats.

A file is recognized by its content, whatever its name. Files with a suffix that says another format are not opened.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from slicemill.common.errors import ReadError
from slicemill.common.files import Location, relative_path
from slicemill.common.names import is_text, natural_key
from slicemill.common.progress import progress
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.dicom.archive import is_archive_name, read_archive
from slicemill.ct.formats.dicom.files import ARCHIVE_SUFFIX, strip_dicom
from slicemill.ct.formats.dicom.folders import Listing, index_listing, read_listing
from slicemill.ct.formats.dicom.series import FolderSeries, Refused, Series

SHOWN_FOLDERS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundSeries:
    """A series below a folder."""

    location: Location
    relative: str
    """A path below the folder that names the series: its folder's path; with the series number if that has several."""
    series: Series | Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundDicom:
    """The DICOM files below a folder."""

    series: tuple[FoundSeries, ...]
    left_out: tuple[tuple[Location, str], ...]
    """Files that are no scan, and why."""


def find_dicom(folder: Location) -> FoundDicom:
    """Find the series below a folder, in natural order; hidden folders and links to folders are left out."""
    listings = _list_candidates(folder)
    found: list[FoundSeries] = []
    left_out: list[tuple[Location, str]] = []
    with progress("read DICOM headers", sum(len(one.candidates()) for one in listings), "files") as advance:
        for listing in listings:
            if is_archive_name(listing.folder.name) and [file.path for file in listing.files] == [listing.folder]:
                index = read_archive(listing.files[0], advance)
            else:
                index = index_listing(listing, advance)
                left_out += _explain_unknown(index)
            left_out += index.left_out
            found += _name_series(folder, index)
    spread = _find_spread(found)
    left_out += [(one.location, spread[one.location]) for one in found if one.location in spread]
    return FoundDicom(
        series=tuple(one for one in found if one.location not in spread),
        left_out=tuple((path, why) for path, why in left_out if is_text(path)),
    )


def _explain_unknown(index: FolderSeries) -> list[tuple[Location, str]]:
    """Return the files that are not DICOM, where one would expect it from their folder or their name."""
    if index.series or index.left_out:
        return [(file.path, "is not DICOM, in a folder of DICOM files") for file in index.unknown]
    named = [file for file in index.unknown if strip_dicom(file.name) != file.name]
    return [(file.path, "is not DICOM, although its name says so") for file in named]


def _list_candidates(folder: Location) -> list[Listing]:
    """Return the listings of folders with files that may be DICOM, in natural order; an archive stands by itself."""
    listings: list[Listing] = []
    for parent in _folders(folder):
        try:
            listing = read_listing(parent)
        except ReadError:  # `find_unsearched_folders` names it
            continue
        if listing.candidates():
            listings.append(listing)
        archives = [file for file in listing.files if is_archive_name(file.name) and is_text(file.path)]
        listings += [Listing(folder=file.path, files=(file,), times_ns=None) for file in archives]
    return listings


def _folders(folder: Location) -> Iterator[Location]:
    if isinstance(folder, RemotePath):
        keys = {path.parent for path, _ in folder.files() if not _is_hidden(path.relative_to(folder))}
        yield from sorted(keys, key=lambda path: natural_key(path.as_posix()))
        return
    for directory, folders, _ in os.walk(folder, followlinks=False):
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".") and not name.endswith(".zarr")), key=natural_key
        )
        yield Path(directory)


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _name_series(root: Location, index: FolderSeries) -> list[FoundSeries]:
    """Return the series of a folder with their names: its path, and the series number if it has several."""
    text = relative_path(index.folder, root)
    if text == ".":
        text = (index.folder.resolve() if isinstance(index.folder, Path) else index.folder).name
    text = text[: -len(ARCHIVE_SUFFIX)] if is_archive_name(text) else text
    if len(index.series) == 1:
        return [FoundSeries(location=index.series[0].location, relative=text, series=index.series[0])]
    return [
        FoundSeries(location=one.location, relative=f"{text}_{one.number or number}", series=one)
        for number, one in enumerate(index.series, 1)
    ]


def _find_spread(found: list[FoundSeries]) -> dict[Location, str]:
    """Return the series whose slices lie in several folders, with the reason: none of the folders has the whole scan.

    Stacks at the same positions are series of their own, and so are copies.
    """
    folders: dict[str, list[FoundSeries]] = defaultdict(list)
    for one in found:
        if isinstance(one.series, Series) and one.series.series_uid:
            folders[one.series.series_uid].append(one)
    spread: dict[Location, str] = {}
    for parts in folders.values():
        ends = sorted((_extent(one.series), one.location) for one in parts if isinstance(one.series, Series))
        apart = len(ends) > 1 and all(one[0][1] < other[0][0] for one, other in pairwise(ends))
        if apart and len({_folder_of(one) for one in parts}) > 1:
            names = ", ".join(str(_folder_of(one)) for one in parts[:SHOWN_FOLDERS])
            why = f"a part of a series that lies in {len(parts)} folders ({names}); put its files into one folder"
            spread |= {one.location: why for one in parts}
    return spread


def _folder_of(one: FoundSeries) -> Location:
    series = one.series
    return series.planes[0].header.file.path.parent if isinstance(series, Series) else one.location


def _extent(series: Series) -> tuple[float, float]:
    """Return the positions of the first and the last slice along the normal, mm."""
    normal = series.planes[0].normal
    first, last = (
        sum(a * b for a, b in zip(plane.position, normal.tolist(), strict=True))
        for plane in (series.planes[0], series.planes[-1])
    )
    return first, last
