"""Small CT series in any orientation, as headers and as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset

from slicemill.ct.formats.dicom_objects.source_series import SourceSeries, make_plane_axes
from slicemill.ct.geometry import RAS_TO_LPS, Grid

CT = "1.2.840.10008.5.1.4.1.1.2"
IN_PLANE = [
    ((sx, 0, 0), (0, sy, 0)) if not swapped else ((0, sy, 0), (sx, 0, 0))
    for swapped in (False, True)
    for sx in (1, -1)
    for sy in (1, -1)
]
"""The 8 in-plane orientations of axial slices: directions along a row and along a column."""
SAGITTAL = ((0, 1, 0), (0, 0, -1))
PATIENT = {
    "PatientName": "Marker^Name",
    "PatientID": "MARKER-ID",
    "PatientBirthDate": "19010203",
    "PatientSex": "O",
    "AccessionNumber": "MARKERACC",
    "StudyID": "MARKERSTUDY",
    "StudyDate": "20200102",
    "StudyTime": "030405",
    "ReferringPhysicianName": "Marker^Physician",
}


def make_series(
    directions: tuple[tuple[float, ...], tuple[float, ...]] = IN_PLANE[0],
    shape: tuple[int, int, int] = (5, 9, 11),
    *,
    shear_mm: float = 0.0,
) -> SourceSeries:
    """Return headers of a series with `shape` [k, j, i], 2.5 mm apart along the normal and `shear_mm` along columns."""
    row, column = np.array(directions, dtype=float)
    spacing_j, spacing_i, origin = 0.7, 0.9, np.array([-30.0, 12.5, 100.25])
    step = np.cross(row, column) * 2.5 + column * shear_mm
    headers = [_header(k, origin + k * step, (row, column), (spacing_j, spacing_i), shape) for k in range(shape[0])]
    affine = np.eye(4)
    affine[:3] = np.stack([row * spacing_i, column * spacing_j, step, origin], axis=1)
    grid = Grid(shape=(shape[2], shape[1], shape[0]), affine=RAS_TO_LPS @ affine)
    return SourceSeries(headers=tuple(headers), frames=(), planes=planes_of(headers), grid=grid)


def planes_of(headers: Sequence[Dataset]) -> npt.NDArray[np.float64]:
    """Return the axes and positions of planes, float64[k, 3, 3]."""
    return np.stack(
        [make_plane_axes(one.ImageOrientationPatient, one.PixelSpacing, one.ImagePositionPatient) for one in headers]
    )


def _header(
    k: int,
    position: npt.NDArray[np.float64],
    directions: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    spacing: tuple[float, float],
    shape: tuple[int, int, int],
) -> Dataset:
    header = Dataset()
    for keyword, value in PATIENT.items():
        setattr(header, keyword, value)
    header.SOPClassUID, header.SOPInstanceUID = CT, f"1.2.3.4.{k + 1}"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    header.FrameOfReferenceUID = "1.2.3.5"
    header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", 3, k + 1
    header.Rows, header.Columns = shape[1], shape[2]
    header.PixelSpacing = list(spacing)
    header.SliceThickness = 2.5
    header.ImageOrientationPatient = [float(number) for number in np.concatenate(directions)]
    header.ImagePositionPatient = [float(f"{number:.6g}") for number in position]
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = 0, 1, "HU"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.KVP, header.AcquisitionNumber, header.Manufacturer = 120, 1, "Maker"
    header.PositionReferenceIndicator = ""
    return header


def write_series(series: SourceSeries, folder: Path, hu: npt.NDArray[np.int16]) -> list[Path]:
    """Write the files of a series, int16[z, y, x], HU, and return them in the order of planes."""
    folder.mkdir(parents=True, exist_ok=True)
    planes, paths = np.ascontiguousarray(series.to_frames(hu)), []
    for k, header in enumerate(series.headers):
        file = Dataset()
        file.update(header)
        file.PixelData = planes[k].tobytes()
        file.file_meta = FileMetaDataset()
        file.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        file.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        paths.append(folder / f"{k:03}.dcm")
        file.save_as(paths[-1], enforce_file_format=True)
    return paths


def make_label(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return uint8[z, y, x]: an organ, 1, that touches no border in z, and two tumors, 2, without any symmetry."""
    label = np.zeros(shape, dtype=np.uint8)
    label[1:-1, 1:-2, 2:-1] = 1
    label[1:3, 2:4, 3:6] = 2
    label[2, 2, 3] = 1
    label[-2, -4, -3] = 2
    label[1, -3, 2] = 0
    return label
