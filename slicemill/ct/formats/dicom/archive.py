"""Zip archives of DICOM files. Members are read one at a time, straight from the archive: nothing is unpacked to the
disk, and a member's name is text for messages only.
"""

import stat
import zipfile
from pathlib import Path

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.common.names import natural_key
from slicemill.common.progress import Advance
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.dicom.files import ARCHIVE_SUFFIX, DicomFile, OpenFile, open_archive
from slicemill.ct.formats.dicom.index import is_silent, sort_files
from slicemill.ct.formats.dicom.series import FolderSeries

MAX_MEMBERS = 20_000
MAX_TOTAL_BYTES = 8 << 30
MAX_RATIO = 200
SMALL_BYTES = 1 << 20
"""Members up to this size may be compressed by any ratio: a slice of air shrinks a lot, and one member does no harm."""
ENCRYPTED = 0x1


def is_archive_name(name: str) -> bool:
    """Return whether a file name is that of a zip archive."""
    return name.lower().endswith(ARCHIVE_SUFFIX)


def read_archive(file: DicomFile, advance: Advance) -> FolderSeries:
    """Return the series of a zip archive; one without a series or that is refused is left out, with the reason.

    An archive is one scan: with several series it is left out, and the reason says to unpack it. Of an archive with a
    scan and other members, the reason counts those that are not read.
    """
    path = file.path
    try:
        members = list_members(file)
        index = sort_files(path, members, advance)
    except ScanError as error:
        return _empty(path, error.reason)
    if not index.series:
        if index.left_out:
            return _empty(path, f"an archive without a CT series; its first DICOM file is {index.left_out[0][1]}")
        return _empty(path, "an archive without DICOM; unpack it if it holds scans")
    if len(index.series) > 1:
        return _empty(path, f"an archive of {len(index.series)} CT series; unpack it")
    return FolderSeries(folder=path, series=index.series, left_out=_explain_others(path, index), unknown=())


def _explain_others(path: Location, index: FolderSeries) -> tuple[tuple[Location, str], ...]:
    """Return what the members of an archive are that its scan does not use, in one reason; nothing without any."""
    count = len(index.left_out) + len(index.unknown)
    if not count:
        return ()
    first = index.left_out[0][1] if index.left_out else "not DICOM"
    return ((path, f"{count_noun(count, 'member')} beside its scan ({first}) cannot be used; unpack it to use them"),)


def _empty(path: Location, reason: str) -> FolderSeries:
    return FolderSeries(folder=path, series=(), left_out=((path, reason),), unknown=())


def list_members(file: DicomFile) -> list[DicomFile]:
    """Return the members of an archive in natural order of their names; an archive among them is not opened.

    Raises
    ------
    ScanError
        The archive is no zip, is encrypted, or is larger than the limits.
    """
    path = file.path
    if not isinstance(path, Path):
        raise ScanError("archives in an object store are not read; unpack it.", where=path)
    try:
        with OpenFile(file):  # a regular file that has not changed
            infos = open_archive(path, file.mtime_ns, file.ctime_ns).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"is no readable zip archive ({error}).", where=path) from error
    if len(infos) > MAX_MEMBERS:
        raise ScanError(f"has {len(infos):,} members; at most {MAX_MEMBERS:,} are read. Unpack it.", where=path)
    _check_members(path, infos)
    members = [
        DicomFile(path, info.file_size, file.mtime_ns, file.ctime_ns, info.filename)
        for info in infos
        if not info.is_dir()
    ]
    return sorted((one for one in members if not is_silent(one.name)), key=lambda one: natural_key(one.member or ""))


def _check_members(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in infos)
    if total > MAX_TOTAL_BYTES:
        raise ScanError(f"unpacks to {total:,} bytes; at most {MAX_TOTAL_BYTES:,} are read. Unpack it.", where=path)
    names: set[str] = set()
    for number, info in enumerate(infos, 1):
        if info.flag_bits & ENCRYPTED:
            raise ScanError("is encrypted; unpack it.", where=path)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ScanError(f"its member {number} is a link; unpack it.", where=path)
        if info.file_size > SMALL_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise ScanError(
                f"its member {number} is compressed to less than 1/{MAX_RATIO} of its {info.file_size:,} bytes, as in "
                "a zip bomb; unpack it if you trust it.",
                where=path,
            )
        if info.filename in names:
            raise ScanError(f"two of its members have one name (member {number}); unpack it.", where=path)
        names.add(info.filename)
