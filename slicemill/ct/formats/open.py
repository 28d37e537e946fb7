"""Opens a scan or segmentation of any format: the only place that chooses the format of a file.

To add a format: add a branch to `open_source` and its names to `slicemill.ct.formats.names`.
"""

from slicemill.common.files import Location
from slicemill.ct.formats.nifti.source import NiftiSource
from slicemill.ct.formats.source import ScanSource


def open_source(path: Location, *, hashed: bool = True) -> ScanSource:
    """Open a scan or segmentation and check its header; no voxel is read.

    Raises
    ------
    ScanError
        The file is damaged, cannot be a CT, or has no format that is read.
    """
    return NiftiSource(path, hashed=hashed)
