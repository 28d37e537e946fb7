"""Opens a scan or segmentation of any format, and lists its files: the only place that chooses the format.

To add a format: add a branch to `open_source` and `list_files`, and its names to `slicemill.ct.formats.names`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slicemill.common.errors import InputError, ReadError
from slicemill.common.files import Location, sha256_of_file
from slicemill.ct.formats.dicom.archive import is_archive_name
from slicemill.ct.formats.dicom.files import is_dicom_file
from slicemill.ct.formats.dicom.folders import mark_series
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.formats.dicom.source import DicomSource, hash_series
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object
from slicemill.ct.formats.metaimage.header import list_data_files as list_metaimage_files
from slicemill.ct.formats.metaimage.header import read_metaimage
from slicemill.ct.formats.names import is_metaimage_name, is_nrrd_name, is_scan_name
from slicemill.ct.formats.nifti import names as nifti
from slicemill.ct.formats.nifti.source import NiftiSource
from slicemill.ct.formats.nrrd.header import list_data_files as list_nrrd_files
from slicemill.ct.formats.nrrd.header import read_nrrd
from slicemill.ct.formats.png_slices import hash_slices, is_png_folder, mark_slices
from slicemill.ct.formats.source import ScanSource
from slicemill.ct.formats.volume import VolumeSource
from slicemill.ct.geometry_option import Uneven


def open_source(path: Location, *, hashed: bool = True, uneven: Uneven = "refuse") -> ScanSource:
    """Open a scan or segmentation and check its header; no voxel is read.

    `uneven` tells what happens to a DICOM series whose steps differ.

    Raises
    ------
    ScanError
        The file is damaged, cannot be a CT, or has no format that is read.
    """
    if is_metaimage_name(path.name):
        return VolumeSource(path, read_metaimage(path), hashed=hashed)
    if is_nrrd_name(path.name):
        return VolumeSource(path, read_nrrd(path), hashed=hashed)
    if is_dicom(path):
        return DicomSource(open_series(path, uneven=uneven), hashed=hashed)
    return NiftiSource(path, hashed=hashed)


def is_dicom(path: Location) -> bool:
    """Return whether a location is read as DICOM: a folder, an archive, or a file whose content is DICOM's.

    A name with the suffix of another format is not.
    """
    return not is_scan_name(path.name) and (path.is_dir() or is_archive_name(path.name) or is_dicom_file(path))


def mark_files(path: Location) -> tuple[int, ...]:
    """Return sizes in bytes and modification times in ns of a scan's files, to see later whether they changed.

    Of a DICOM series, the size of all its files and a hash of their sizes and times (`mark_series`).

    Raises
    ------
    OSError
        A file does not exist or cannot be read.
    """
    if isinstance(path, Path) and is_png_folder(path):
        return mark_slices(path)
    if is_dicom(path):
        return mark_series(path)
    states = [file.stat() for file in scan_files(path)]
    return tuple(number for state in states for number in (state.st_size, state.st_mtime_ns))


@contextmanager
def require_unchanged(*paths: Location) -> Iterator[None]:
    """Check at the end of the block that files were not replaced or changed while it read them.

    Raises
    ------
    ReadError
        One was, so that what was read may be of two versions.
    """
    before = [_try_mark(path) for path in paths]
    yield
    for path, mark in zip(paths, before, strict=True):
        if _try_mark(path) != mark:
            raise ReadError("changed while it was read. Run the same command again.", where=path)


def _try_mark(path: Location) -> tuple[int, ...] | None:
    """Return `mark_files`; None for files that do not exist or cannot be read, which their reader reports."""
    try:
        return mark_files(path)
    except (OSError, InputError):
        return None


def hash_scan(path: Location, uneven: Uneven = "refuse") -> str:
    """Return the SHA-256 that `ScanSource.finish` returns, without decoding a voxel.

    Raises
    ------
    ScanError
        There is no such DICOM series.
    OSError
        A file cannot be read.
    """
    if isinstance(path, Path) and is_png_folder(path):
        return hash_slices(path)
    if is_dicom(path) and not is_mask_object(path):
        return hash_series(open_series(path, uneven=uneven))
    return sha256_of_file(*scan_files(path))


def list_data_files(path: Location) -> tuple[Location, ...]:
    """Return the files that the header of a MetaImage or NRRD scan names; they need not exist.

    Raises
    ------
    ScanError
        The header cannot be read, or names a file that is not beside it.
    """
    if is_metaimage_name(path.name):
        return list_metaimage_files(path)
    return list_nrrd_files(path) if is_nrrd_name(path.name) else ()


def scan_files(path: Location) -> tuple[Location, ...]:
    """Return the files of a scan in the order in which they are hashed: its header's file, then those of its voxels.

    A header that cannot be read is the only file; opening it gives the reason.
    """
    if not (is_metaimage_name(path.name) or is_nrrd_name(path.name)):
        return nifti.scan_files(path)
    try:
        return (path, *list_data_files(path))
    except InputError:
        return (path,)
