"""The indexes of folders, kept in memory.

A folder may hold hundreds of series, and each of them is looked up several times in a run. An index is used again

1. if a new listing of the folder has the same files, sizes and times: no header is read again;
2. for one series of a local folder even without a new listing: if the folder's times are the same, no file
   was added, renamed or removed; and the files of the series, and those that were no DICOM, have their sizes and times;
3. for one series in a bucket as long as the listing counts as current (`REUSE`). Objects are read by their entity tag,
   so that one that was replaced since is an error, and one that was added is seen by the next run.

So the time for all series of a folder grows with the number of its files, not with its square.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from slicemill.common.errors import ReadError
from slicemill.common.files import Location
from slicemill.common.names import is_text, natural_key
from slicemill.common.progress import Advance, progress
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.dicom.archive import is_archive_name
from slicemill.ct.formats.dicom.files import DicomFile, list_folder, stat_file
from slicemill.ct.formats.dicom.index import may_be_dicom, sort_files
from slicemill.ct.formats.dicom.series import FolderSeries, Refused, Series

KEPT_FILES = 20_000
"""Number of files whose indexes stay in memory, about 1 KB a file; the last index stays, whatever its size."""
SETTLED_NS = 2_000_000_000
"""Time in ns after which a change of a folder gets another modification time on any file system (FAT counts in 2 s)."""
REUSE = 20
"""A listing of a bucket counts as current for this many times the time it took, so that listing takes at most a
twentieth of a run, however many series a folder has: 300,000 objects need 300 requests, about half a minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The files directly in a folder, at one moment."""

    folder: Location
    files: tuple[DicomFile, ...]
    """In natural order."""
    times_ns: tuple[int, int] | None
    """Times of the folder before it was listed, of the last modification and change (see `DicomFile`); None if a later
    modification might keep them."""
    current_until: float = 0.0
    """Time of `time.monotonic` up to which it is used again if it is of a bucket; see `REUSE`."""

    def candidates(self) -> tuple[DicomFile, ...]:
        """Return the files that are opened to look for DICOM."""
        return tuple(file for file in self.files if may_be_dicom(file.name) and is_text(file.path))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    files: tuple[DicomFile, ...]
    times_ns: tuple[int, int] | None
    current_until: float
    index: FolderSeries
    by_path: Mapping[Location, Series | Refused]


_kept: OrderedDict[Location, _Kept] = OrderedDict()
"""Folder -> its index, the one that was used last at the end."""
_lock = threading.Lock()
"""Held for each use of `_kept`, by any thread, but not while headers are read."""


def read_listing(folder: Location) -> Listing:
    """List the files directly in a folder.

    Raises
    ------
    ReadError
        The folder cannot be listed.
    """
    times_ns = _settled_times(folder)
    start = time.monotonic()
    files = sorted(list_folder(folder), key=lambda file: natural_key(file.name))
    end = time.monotonic()
    current_until = end + REUSE * (end - start) if isinstance(folder, RemotePath) else 0.0
    return Listing(folder=folder, files=tuple(files), times_ns=times_ns, current_until=current_until)


def _settled_times(folder: Location) -> tuple[int, int] | None:
    """Return the times of a local folder, unless the last modification is so recent that a later one might keep it."""
    if not isinstance(folder, Path):
        return None
    now = time.time_ns()
    try:
        state = folder.stat()
    except OSError:  # listing it gives the reason
        return None
    return (state.st_mtime_ns, state.st_ctime_ns) if state.st_mtime_ns + SETTLED_NS < now else None


def read_folder(folder: Location) -> FolderSeries:
    """Return what the files directly in a folder are.

    Raises
    ------
    ReadError
        The folder or a file cannot be read.
    """
    return _read(read_listing(folder)).index


def _read(listing: Listing) -> _Kept:
    with progress("read DICOM headers", len(listing.candidates()), "files") as advance:
        return _index(listing, advance)


def index_listing(listing: Listing, advance: Advance) -> FolderSeries:
    """Return what the files of a listing are."""
    return _index(listing, advance).index


def _index(listing: Listing, advance: Advance) -> _Kept:
    """Return the kept index if it is that of the same files, sizes and times; else a new one, which is kept."""
    files = listing.candidates()
    old = _find_kept(listing.folder)
    if old is not None and old.files == files:
        index, by_path = old.index, old.by_path
    else:
        index = sort_files(listing.folder, files, advance)
        by_path = dict(_iter_paths(index))
    kept = _Kept(
        files=files, times_ns=listing.times_ns, current_until=listing.current_until, index=index, by_path=by_path
    )
    with _lock:
        _kept[listing.folder] = kept
        _kept.move_to_end(listing.folder)
        while len(_kept) > 1 and sum(len(one.files) for one in _kept.values()) > KEPT_FILES:
            _kept.popitem(last=False)
    return kept


def _find_kept(folder: Location) -> _Kept | None:
    """Return the index of a folder, which becomes the one that was used last; None if there is none."""
    with _lock:
        if folder in _kept:
            _kept.move_to_end(folder)
        return _kept.get(folder)


def forget_folders() -> None:
    """Forget the indexes of all folders, so that the next reader reads the headers again."""
    with _lock:
        _kept.clear()


def _iter_paths(index: FolderSeries) -> Iterable[tuple[Location, Series | Refused]]:
    """Yield the files of a folder with the series that each belongs to; the last of several for a file counts."""
    for one in index.series:
        if isinstance(one, Refused):
            yield from ((file.path, one) for file in index.files_of.get(one.series_uid, ()))
    for one in index.series:
        if isinstance(one, Series):
            yield from ((plane.header.file.path, one) for plane in one.planes)
    yield from ((one.location, one) for one in index.series)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileIndex:
    """What a file is in its folder."""

    index: FolderSeries
    series: Series | Refused | None
    """The series of the file; None if it is no slice of one."""
    files: tuple[DicomFile, ...]
    """All files with the SeriesInstanceUID of that series, with their current sizes and times, and the damaged files
    beside them, which may be slices of it; without a series, the file itself."""


def look_up_file(path: Location) -> FileIndex:
    """Return what a file is, by the current index of its folder.

    Raises
    ------
    ReadError
        The folder or the file cannot be read.
    """
    known = _find_kept(path.parent)
    found = None if known is None else _look_up(known, path)
    if known is not None and found is not None and _is_current(known, found):
        return found
    kept = _read(read_listing(path.parent))
    found = _look_up(kept, path)
    return found or FileIndex(index=kept.index, series=None, files=(stat_file(path),))


def _look_up(kept: _Kept, path: Location) -> FileIndex | None:
    one = kept.by_path.get(path)
    if one is None:
        return None
    files = (*kept.index.files_of.get(one.series_uid, ()), *kept.index.damaged)
    return FileIndex(index=kept.index, series=one, files=files)


def _is_current(kept: _Kept, found: FileIndex) -> bool:
    """Return whether a folder has the files that its index is of, as far as they matter for one series."""
    if isinstance(kept.index.folder, RemotePath):
        return time.monotonic() < kept.current_until
    if kept.times_ns is None or kept.times_ns != _settled_times(kept.index.folder):
        return False
    return _have_not_changed((*found.files, *kept.index.unknown))


def _have_not_changed(files: Iterable[DicomFile]) -> bool:
    try:
        return all(stat_file(file.path) == file for file in files)
    except ReadError:
        return False


def mark_series(location: Location) -> tuple[int, int]:
    """Return the size of the files of a series in bytes, and a hash of their sizes and times.

    If a folder or an archive is named, all its files count; if a file, those of `FileIndex`.

    Raises
    ------
    ReadError
        The folder cannot be listed, or the file does not exist.
    """
    if location.is_dir():
        files: Iterable[DicomFile] = list_folder(location)
    elif is_archive_name(location.name):
        files = [stat_file(location)]
    else:
        files = look_up_file(location).files
    marks = sorted((file.size, file.mtime_ns) for file in files)
    text = " ".join(f"{size}:{mtime_ns}" for size, mtime_ns in marks)
    return sum(size for size, _ in marks), int(sha256(text.encode()).hexdigest()[:15], 16)
