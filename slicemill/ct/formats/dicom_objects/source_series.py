"""The series that a DICOM object refers to: the headers of its files, in the order of the scan's slices."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.ct.geometry import RAS_TO_LPS, SAME_GRID_MM, Grid

if TYPE_CHECKING:
    from pydicom import Dataset

MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
)
"""Elements of patient and study (type 2) that a result must have, though without a value where the source has none."""
UID_ROOT = "2.25."
"""Root of UIDs that are UUIDs (DICOM PS3.5 annex B.2)."""


@dataclass(frozen=True, kw_only=True)
class SourceSeries:
    """A series of single-frame images whose slices are a grid."""

    headers: "tuple[Dataset, ...]"
    """Header of the file of each plane k of the grid, without pixels."""
    grid: Grid
    """The grid in the files' order: i along rows, j along columns, k from file to file."""

    def __post_init__(self) -> None:
        """Check that each file lies where the grid has its plane, so that no result is written to another slice.

        Raises
        ------
        ScanError
            The numbers of files and planes differ, a file has other pixels, or the files are in another order.
        """
        ni, nj, nk = self.grid.shape
        for header in self.headers:
            for keyword in MAY_BE_EMPTY:
                if keyword not in header:
                    setattr(header, keyword, "")
        if len(self.headers) != nk:
            raise ScanError(f"a DICOM result needs one file per slice; there are {len(self.headers)} for {nk} slices.")
        for k, header in enumerate(self.headers):
            if (int(header.Rows), int(header.Columns)) != (nj, ni):
                raise ScanError(f"slice {k} has {header.Rows} x {header.Columns} pixels, the scan has {nj} x {ni}.")
        lps = RAS_TO_LPS @ self.grid.affine
        apart = np.abs(self.planes[:, :2] - lps[:3, :2].T) * np.array([[ni], [nj]])
        steps = np.diff(self.planes[:, 2], axis=0) @ lps[:3, 2]
        if apart.max() > SAME_GRID_MM or (steps <= 0).any():
            raise ScanError(
                f"the files' planes must be the scan's, in its order; their axes differ by {apart.max():.3g} mm, and "
                f"{int((steps <= 0).sum())} of {nk - 1} steps run the other way."
            )

    @property
    def first(self) -> "Dataset":
        """Return the header of the first file, which has the patient and study of all."""
        return self.headers[0]

    @cached_property
    def planes(self) -> "npt.NDArray[np.float64]":
        """Return float64[k, 3, 3]: for each plane the step along i, the step along j, and the position, LPS mm."""
        return np.stack([read_plane(header) for header in self.headers])

    def to_frames(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View any[z, y, x] in LPS+ order as any[k, j, i], the planes of the files."""
        return self.grid.to_file(stored)

    def file_voxels(self, points_zyx: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return float64[n, 3], i, j, k in the files, of positions z, y, x of the stored array."""
        points = np.asarray(points_zyx, dtype=np.float64).reshape(-1, 3)[:, ::-1]
        homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        to_file = np.linalg.inv(RAS_TO_LPS @ self.grid.affine) @ self.grid.affine_lps
        return np.asarray((homogeneous @ to_file.T)[:, :3])


def read_plane(header: "Dataset") -> npt.NDArray[np.float64]:
    """Return float64[3, 3] of a file's plane: steps along i (columns) and j (rows), and the first pixel, LPS mm.

    DICOM PS3.3 C.7.6.2.1.1: PixelSpacing is the distance of rows, then of columns; ImageOrientationPatient has the
    direction along a row, then along a column.
    """
    direction = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    of_rows, of_columns = (float(number) for number in header.PixelSpacing)
    position = np.array(header.ImagePositionPatient, dtype=np.float64)
    return np.stack([direction[0] * of_columns, direction[1] * of_rows, position])


def read_headers(paths: Sequence[Path]) -> "tuple[Dataset, ...]":
    """Read the headers of files without pixels, in the order given.

    Raises
    ------
    ScanError
        A file is no DICOM file.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    headers = []
    for path in paths:
        try:
            headers.append(dcmread(path, stop_before_pixels=True))
        except (InvalidDicomError, RecursionError, ValueError, EOFError, AttributeError) as error:
            raise ScanError(
                f"cannot be read as DICOM ({type(error).__name__}). Copy the file again.", where=path
            ) from None
    return tuple(headers)


def make_uid(*parts: object) -> str:
    """Return a UID that depends on the parts only, so that the same result sent twice is one object in an archive.

    >>> make_uid("a") == make_uid("a"), make_uid("a") == make_uid("b"), len(make_uid("a")) <= 64
    (True, False, True)
    """
    digest = bytearray(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8 and variant of RFC 9562: a UUID from a hash of one's own
    digest[8] = digest[8] & 0x3F | 0x80
    return UID_ROOT + str(int.from_bytes(digest))
