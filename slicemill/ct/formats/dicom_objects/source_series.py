"""The series that a DICOM object refers to: the headers of its files, and which frame each slice of the scan is."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.files import OpenFile
from slicemill.ct.formats.dicom.pydicom_files import read_dataset
from slicemill.ct.formats.dicom.series import Series
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
    """A series whose slices are a grid: single-frame files, or frames of one multi-frame file."""

    headers: "tuple[Dataset, ...]"
    """Header of each file without pixels: one per plane in the order of planes, or that of the multi-frame file."""
    frames: tuple[int, ...]
    """For each plane its frame in the multi-frame file, from 0; empty for single-frame files."""
    planes: npt.NDArray[np.float64]
    """float64[k, 3, 3]: for each plane the step along i, the step along j, and the first pixel, LPS mm."""
    grid: Grid
    """The grid in the files' order: i along a row, j along a column, k across the slices."""

    def __post_init__(self) -> None:
        """Check that each plane lies where the grid has it, so that no result is written to another slice.

        Raises
        ------
        ScanError
            The numbers of files and planes differ, or the planes are others or in another order.
        """
        ni, nj, nk = self.grid.shape
        for header in self.headers:
            if not header.get("SpecificCharacterSet", "ISO_IR 6"):
                del header.SpecificCharacterSet  # an empty one means the default, which highdicom does not know
            if not self.frames and not header.get("SliceThickness"):
                header.SliceThickness = round(self.step_mm, 6)  # that of the frames of a result
            for keyword in MAY_BE_EMPTY:
                if keyword not in header:
                    setattr(header, keyword, "")
        files = len(self.frames or self.headers)
        if files != nk or len(self.planes) != nk or (self.frames and len(self.headers) > 1):
            raise ScanError(
                "a DICOM result needs one single-frame file per slice, or one multi-frame file; there are "
                f"{len(self.headers)} files for {nk} slices."
            )
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

    @property
    def step_mm(self) -> float:
        """Return the distance of neighboring planes along their normal, mm; 1 for a single plane."""
        normal = np.cross(self.planes[0, 0], self.planes[0, 1])
        ends = self.planes[-1, 2] - self.planes[0, 2]
        count = len(self.planes) - 1
        return float(abs(ends @ normal) / np.linalg.norm(normal) / count) if count else 1.0

    def header_of(self, k: int) -> "Dataset":
        """Return the header of the file of a plane."""
        return self.headers[0 if self.frames else k]

    def frame_numbers(self, k: int) -> list[int] | None:
        """Return the number of a plane's frame, from 1; None in a single-frame file."""
        return [self.frames[k] + 1] if self.frames else None

    def to_frames(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View any[z, y, x] in LPS+ order as any[k, j, i], the planes of the files."""
        return self.grid.to_file(stored)

    def to_file_order(self, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return uint8[z, y, x] as the frames of the files, uint8[frame, j, i]; frames of no plane are 0."""
        planes = self.to_frames(stored)
        if not self.frames:
            return np.ascontiguousarray(planes, dtype=np.uint8)
        ordered = np.zeros((int(self.first.NumberOfFrames), *planes.shape[1:]), dtype=np.uint8)
        ordered[list(self.frames)] = planes
        return ordered

    def file_voxels(self, points_zyx: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return float64[n, 3], i, j, k in the files, of positions z, y, x of the stored array."""
        points = np.asarray(points_zyx, dtype=np.float64).reshape(-1, 3)[:, ::-1]
        homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        to_file = np.linalg.inv(RAS_TO_LPS @ self.grid.affine) @ self.grid.affine_lps
        return np.asarray((homogeneous @ to_file.T)[:, :3])


def require_frame_of_reference(series: Series) -> None:
    """Check that positions of a series can be referred to.

    Raises
    ------
    ScanError
        Its files have no frame of reference.
    """
    if not series.frame_of_reference_uid:
        raise ScanError(
            "has no FrameOfReferenceUID (0020,0052), which every DICOM result must have. Add it to the files, or "
            "omit the DICOM results.",
            where=series.location,
        )


def describe_source(series: Series) -> SourceSeries:
    """Read the headers of a series.

    Raises
    ------
    ScanError
        A file is damaged, there is no frame of reference, or slices are in several multi-frame files.
    """
    require_frame_of_reference(series)
    files = list(dict.fromkeys(plane.header.file for plane in series.planes))
    headers = []
    for file in files:
        with OpenFile(file) as opened:
            headers.append(read_dataset(opened, file, pixels=False))
    is_multi_frame = series.planes[0].header.frames > 1
    return SourceSeries(
        headers=tuple(headers),
        frames=tuple(plane.frame for plane in series.planes) if is_multi_frame else (),
        planes=np.stack([make_plane_axes(plane.orientation, plane.spacing, plane.position) for plane in series.planes]),
        grid=series.grid,
    )


def make_plane_axes(
    orientation: npt.ArrayLike, spacing: npt.ArrayLike, position: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return float64[3, 3]: the steps along i (columns) and j (rows), and the first pixel, LPS mm.

    DICOM PS3.3 C.7.6.2.1.1: PixelSpacing is the distance of rows, then of columns; ImageOrientationPatient has the
    direction along a row, then along a column.
    """
    row, column = np.array(orientation, dtype=np.float64).reshape(2, 3)
    of_rows, of_columns = np.array(spacing, dtype=np.float64)
    return np.stack([row * of_columns, column * of_rows, np.array(position, dtype=np.float64)])


def make_uid(*parts: object) -> str:
    """Return a UID that depends on the parts only, so that the same result sent twice is one object in an archive.

    >>> make_uid("a") == make_uid("a"), make_uid("a") == make_uid("b"), len(make_uid("a")) <= 64
    (True, False, True)
    """
    digest = bytearray(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8 and variant of RFC 9562: a UUID from a hash of one's own
    digest[8] = digest[8] & 0x3F | 0x80
    return UID_ROOT + str(int.from_bytes(digest))
