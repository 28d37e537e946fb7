"""Writes segmentations as DICOM RTSTRUCT (PS3.3 A.19): outlines of each segment along pixel edges, in patient mm.

The outlines fill back to the very same pixels. Only patient, study and frame of reference come from the source.
"""

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slicemill.ct.formats.dicom_objects.maker import DESCRIPTION, SERIES_NUMBERS, Maker
from slicemill.ct.formats.dicom_objects.options import Holes
from slicemill.ct.formats.dicom_objects.outlines import Polygon, trace_outlines
from slicemill.ct.formats.dicom_objects.segmentation import to_code
from slicemill.ct.formats.dicom_objects.segments import Segment, Segments, fit_text
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries, make_uid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, the class that RTReferencedStudySequence names (retired, but required there)."""
CONTOUR_DATA = 0x30060050
DECIMALS = 3
MOST_NAME = 64
"""Characters of ROIName (LO)."""


def make_structure_set(series: SourceSeries, segments: Segments, maker: Maker, holes: Holes = "keyhole") -> "Dataset":
    """Return the RTSTRUCT of a scan.

    Parameters
    ----------
    holes
        ``keyhole``: an outline with holes is one polygon, joined by lines that enclose nothing. ``xor``: each hole is a
        contour of its own (CLOSEDPLANAR_XOR), which some readers fill.
    """
    from highdicom import SOPClass
    from pydicom.dataset import Dataset
    from pydicom.uid import ImplicitVRLittleEndian

    frames = np.ascontiguousarray(series.to_frames(segments.voxels))
    digest = sha256(frames.tobytes()).hexdigest()
    names = [f"{one.number} {one.name}" for one in segments.segments]
    name = make_uid("RTSTRUCT", holes, series.first.SeriesInstanceUID, maker.sha256, *names, digest)
    structures = SOPClass(
        study_instance_uid=series.first.StudyInstanceUID,
        series_instance_uid=make_uid("series", name),
        series_number=SERIES_NUMBERS["RTSTRUCT"],
        sop_instance_uid=name,
        sop_class_uid=STORAGE,
        instance_number=1,
        modality="RTSTRUCT",
        transfer_syntax_uid=ImplicitVRLittleEndian,  # in it alone an outline may have more than 64 KiB
        series_description=DESCRIPTION,
        **maker.as_equipment(),
        **patient_of(series),
    )
    structures.copy_patient_and_study_information(series.first)
    structures.StructureSetLabel = "RESEARCH"
    structures.StructureSetName = DESCRIPTION
    structures.StructureSetDate = structures.InstanceCreationDate
    structures.StructureSetTime = structures.InstanceCreationTime
    structures.OperatorsName = ""
    structures.FrameOfReferenceUID = series.first.FrameOfReferenceUID
    structures.PositionReferenceIndicator = ""
    structures.ApprovalStatus = "UNAPPROVED"
    structures.ReferencedFrameOfReferenceSequence = [_refer_to(series)]
    structures.StructureSetROISequence = [_name(one, maker, series) for one in segments.segments]
    structures.ROIContourSequence = [
        _outline(one, list(_trace(frames == one.number, series, holes))) for one in segments.segments
    ]
    structures.RTROIObservationsSequence = [_observe(one) for one in segments.segments]
    assert isinstance(structures, Dataset)  # noqa: S101 (for the type checker)
    return structures


def patient_of(series: SourceSeries) -> dict[str, Any]:
    """Return the arguments of highdicom's classes that name patient and study; what the source lacks is empty."""
    first = series.first
    keywords = {
        "patient_id": "PatientID",
        "patient_name": "PatientName",
        "patient_birth_date": "PatientBirthDate",
        "patient_sex": "PatientSex",
        "accession_number": "AccessionNumber",
        "study_id": "StudyID",
        "study_date": "StudyDate",
        "study_time": "StudyTime",
        "referring_physician_name": "ReferringPhysicianName",
    }
    return {name: str(first.get(keyword) or "") for name, keyword in keywords.items()}


def _refer_to(series: SourceSeries) -> "Dataset":
    """Return the item of ReferencedFrameOfReferenceSequence with the files of the series."""
    from pydicom.dataset import Dataset

    of_series = Dataset()
    of_series.SeriesInstanceUID = series.first.SeriesInstanceUID
    of_series.ContourImageSequence = [_refer_to_plane(series, k) for k in range(len(series.planes))]
    of_study = Dataset()
    of_study.ReferencedSOPClassUID = STUDY_COMPONENT
    of_study.ReferencedSOPInstanceUID = series.first.StudyInstanceUID
    of_study.RTReferencedSeriesSequence = [of_series]
    frame = Dataset()
    frame.FrameOfReferenceUID = series.first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [of_study]
    return frame


def _refer_to_plane(series: SourceSeries, k: int) -> "Dataset":
    from pydicom.dataset import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID = series.header_of(k).SOPClassUID
    image.ReferencedSOPInstanceUID = series.header_of(k).SOPInstanceUID
    if numbers := series.frame_numbers(k):
        image.ReferencedFrameNumber = numbers
    return image


def _name(segment: Segment, maker: Maker, series: SourceSeries) -> "Dataset":
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ROINumber = segment.number
    roi.ReferencedFrameOfReferenceUID = series.first.FrameOfReferenceUID
    roi.ROIName = fit_text(segment.name, MOST_NAME)
    roi.ROIGenerationAlgorithm = maker.algorithm_type
    roi.ROIGenerationDescription = fit_text(f"{maker.name} {maker.sha256[:16]}".strip(), MOST_NAME)
    return roi


def _trace(mask: npt.NDArray[np.bool_], series: SourceSeries, holes: Holes) -> "Iterator[Dataset]":
    """Yield the contours of bool[k, j, i]."""
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    for k in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        plane = series.planes[k]
        for polygon in trace_outlines(mask[k], holes):
            contour = Dataset()
            contour.ContourImageSequence = [_refer_to_plane(series, k)]
            contour.ContourGeometricType = "CLOSED_PLANAR" if holes == "keyhole" else "CLOSEDPLANAR_XOR"
            contour.NumberOfContourPoints = len(polygon)
            text = format_points(polygon, plane).encode()
            text += b" " * (len(text) % 2)
            tag = Tag(CONTOUR_DATA)
            # as bytes: pydicom would make a decimal object of each number, which takes most of the time
            contour[tag] = RawDataElement(tag, "DS", len(text), text, 0, is_implicit_VR=True, is_little_endian=True)
            yield contour


def format_points(polygon: Polygon, plane: npt.NDArray[np.float64]) -> str:
    r"""Return x, y, z in LPS mm of the corners i, j of a polygon, as ContourData has them.

    >>> format_points(np.array([[0.5, 0.0]]), np.array([[2.0, 0, 0], [0, 2.0, 0], [10.0, 20.0, -0.0001]]))
    '11.000\\20.000\\0.000'
    """
    points = np.concatenate([polygon, np.ones((len(polygon), 1))], axis=1) @ plane
    return "\\".join(f"{number:.{DECIMALS}f}" for number in (points.round(DECIMALS) + 0.0).ravel().tolist())


def _outline(segment: Segment, contours: "list[Dataset]") -> "Dataset":
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ROIDisplayColor = list(segment.color)
    roi.ReferencedROINumber = segment.number
    if contours:
        roi.ContourSequence = contours
    return roi


def _observe(segment: Segment) -> "Dataset":
    from pydicom.dataset import Dataset

    observation = Dataset()
    observation.ObservationNumber = segment.number
    observation.ReferencedROINumber = segment.number
    observation.RTROIIdentificationCodeSequence = [to_code(segment.codes.type)]
    observation.RTROIInterpretedType = ""  # a research result is no target of a treatment
    observation.ROIInterpreter = ""
    return observation
