"""Unpacks an uploaded zip archive: members become numbered files, and nothing of their names is a path."""

import zipfile
from pathlib import Path

from slicemill.common.disk import require_space
from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.archive import MAX_MEMBERS, MAX_RATIO, SMALL_BYTES, is_archive_name, list_members
from slicemill.ct.formats.dicom.files import stat_file
from slicemill.ct.formats.dicom.index import is_silent
from slicemill.web.serve.records import Limits, UploadedFile
from slicemill.web.serve.uploads import Names

BLOCK = 1 << 20


def unpack(folder: Path, names: Names, limits: Limits) -> None:
    """Replace the archives among the files of a folder by their members; an archive in an archive is left out.

    Raises
    ------
    ScanError
        An archive is damaged, encrypted, has links or absolute names, or unpacks to more than the limits allow.
    """
    used = 0
    archives = [file for file in names.files if is_archive_name(file.local)]
    for archive in archives:
        start = f"{archive.shown}/" if len(archives) > 1 else ""  # keeps files of the same name apart
        used = _unpack_one(folder, archive, names, limits, used, start)
        (folder / archive.local).unlink()
        names.files.remove(archive)


def _unpack_one(folder: Path, archive: UploadedFile, names: Names, limits: Limits, used: int, start: str) -> int:
    path = folder / archive.local
    list_members(stat_file(path))  # refuses links, encryption, sizes and names that the readers refuse, too
    try:
        with zipfile.ZipFile(path) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
            _check(infos, path, limits, used, len(names.files))
            require_space(folder, sum(info.file_size for info in infos), "the files of the archive")
            for info in infos:
                if is_silent(info.filename.rpartition("/")[2]) or is_archive_name(info.filename):
                    continue
                file = names.add(start + info.filename)
                used += _copy(opened, info, folder / file.local, limits.unpacked_bytes - used)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ScanError(f"is no readable zip archive ({error}).", where=path) from error
    return used


def _check(infos: list[zipfile.ZipInfo], path: Path, limits: Limits, used: int, files: int) -> None:
    total = used + sum(info.file_size for info in infos)
    if total > limits.unpacked_bytes:
        raise ScanError(f"unpacks to {total:,} bytes; at most {limits.unpacked_bytes:,} are read.", where=path)
    if len(infos) > min(MAX_MEMBERS, limits.files):
        raise ScanError(f"has {len(infos):,} members; at most {limits.files:,} are read.", where=path)
    if files + len(infos) > limits.files + 1:  # the archive itself does not stay
        raise ScanError(
            f"with its {len(infos):,} members there are {files - 1 + len(infos):,} files; at most {limits.files:,} "
            "are read.",
            where=path,
        )
    for number, info in enumerate(infos, 1):
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            raise ScanError(f"the name of its member {number} leads out of the archive; pack it again.", where=path)
        if info.file_size > SMALL_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise ScanError(
                f"its member {number} is compressed to less than 1/{MAX_RATIO}, as in a zip bomb.", where=path
            )


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Copy a member and return its bytes; what an archive says of its sizes is not trusted."""
    total = 0
    with archive.open(info) as source, target.open("xb") as out:
        while block := source.read(BLOCK):
            total += len(block)
            if total > left:
                raise ScanError("unpacks to more bytes than it says.", where=target)
            out.write(block)
    return total
