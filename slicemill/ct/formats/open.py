"""Opens a scan or segmentation of any format, and lists its files: the only place that chooses the format.

To add a format: add a branch to `open_source` and `list_files`, and its names to `slicemill.ct.formats.names`.
"""

from slicemill.common.errors import InputError
from slicemill.common.files import Location
from slicemill.ct.formats.metaimage.header import list_data_files as list_metaimage_files
from slicemill.ct.formats.metaimage.header import read_metaimage
from slicemill.ct.formats.names import is_metaimage_name, is_nrrd_name
from slicemill.ct.formats.nifti import names as nifti
from slicemill.ct.formats.nifti.source import NiftiSource
from slicemill.ct.formats.nrrd.header import list_data_files as list_nrrd_files
from slicemill.ct.formats.nrrd.header import read_nrrd
from slicemill.ct.formats.source import ScanSource
from slicemill.ct.formats.volume import VolumeSource


def open_source(path: Location, *, hashed: bool = True) -> ScanSource:
    """Open a scan or segmentation and check its header; no voxel is read.

    Raises
    ------
    ScanError
        The file is damaged, cannot be a CT, or has no format that is read.
    """
    if is_metaimage_name(path.name):
        return VolumeSource(path, read_metaimage(path), hashed=hashed)
    if is_nrrd_name(path.name):
        return VolumeSource(path, read_nrrd(path), hashed=hashed)
    return NiftiSource(path, hashed=hashed)


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
