"""Writes the lesions of a scan as a DICOM structured report (TID 1500).

Each lesion has a volumetric group (TID 1411) that refers to its segment in the SEG of the same scan: volume, HU,
probability. A group of the same tracking UID (TID 1501) has the long and the short axis with their ends as coordinates
on the source slice, so that viewers draw them: TID 1411 has no place for coordinates. A first group has the number of
lesions, so that a report without lesions says so.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from slicemill.ct.diameter_lines import Diameter
from slicemill.ct.formats.dicom_objects.codes import Concept
from slicemill.ct.formats.dicom_objects.maker import DESCRIPTION, SERIES_NUMBERS, Maker
from slicemill.ct.formats.dicom_objects.measured_lesions import MeasuredLesion
from slicemill.ct.formats.dicom_objects.segmentation import to_code, tracking_uid
from slicemill.ct.formats.dicom_objects.segments import Segment, Segments
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries, make_uid
from slicemill.ct.geometry import voxel_to_mm

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from highdicom.sr import (
        Comprehensive3DSR,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations

VOLUME = Concept("SCT", "118565006", "Volume")
LONG_AXIS, SHORT_AXIS = Concept("SCT", "103339001", "Long Axis"), Concept("SCT", "103340004", "Short Axis")
ATTENUATION = Concept("DCM", "112031", "Attenuation Coefficient")
MEAN, DEVIATION = Concept("SCT", "373098007", "Mean"), Concept("SCT", "386136009", "Standard Deviation")
PROBABILITY = Concept("99SLICEMILL", "PROB", "Mean probability of tumor by the network")
COUNT = Concept("99SLICEMILL", "COUNT", "Number of lesions")
MM3, MM = Concept("UCUM", "mm3", "cubic millimeter"), Concept("UCUM", "mm", "millimeter")
HU, ONE = Concept("UCUM", "[hnsf'U]", "Hounsfield unit"), Concept("UCUM", "1", "no units")
DECIMALS = 4
ON_PLANE = 1e-3
"""Largest distance of an end from a source slice, in slices, that is taken as rounding."""
FIRST_PIXEL = 0.5
"""Position of the center of the first pixel in image coordinates (PS3.3 C.18.6: 0 is the image's corner)."""


def make_report(
    series: SourceSeries, segments: Segments, segmentation: "Segmentation", maker: Maker
) -> "Comprehensive3DSR":
    """Return the report of the lesions among `segments`; `segmentation` is the SEG that was made of them."""
    from highdicom.sr import (
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=make_uid("device", maker.name, maker.sha256),
            name=maker.text,
            manufacturer_name="slicemill",
            model_name=maker.text,
        ),
    )
    groups: list[Group] = [_count(segments, series, maker)]
    groups += [
        group
        for one in segments.segments
        if one.lesion is not None
        for group in (_measure(one, one.lesion, series, segmentation, maker), _draw(one, one.lesion, series, maker))
    ]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    name = make_uid("SR", segmentation.SOPInstanceUID, *_figures(segments))
    return Comprehensive3DSR(
        evidence=[*series.headers, segmentation],
        content=content,
        series_instance_uid=make_uid("series", name),
        series_number=SERIES_NUMBERS["SR"],
        sop_instance_uid=name,
        instance_number=1,
        manufacturer=maker.as_equipment()["manufacturer"],
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=DESCRIPTION,
    )


def _figures(segments: Segments) -> list[object]:
    lesions = [one.lesion for one in segments.segments if one.lesion is not None]
    return [(one.id, one.volume_mm3, one.mean_hu, one.sd_hu, one.probability) for one in lesions]


def _count(segments: Segments, series: SourceSeries, maker: Maker) -> "MeasurementsAndQualitativeEvaluations":
    """Return the group of all lesions together."""
    from highdicom.sr import AlgorithmIdentification, MeasurementsAndQualitativeEvaluations, TrackingIdentifier

    lesions = [one.lesion for one in segments.segments if one.lesion is not None]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=make_uid("all lesions", series.first.SeriesInstanceUID), identifier="all lesions"
        ),
        algorithm_id=AlgorithmIdentification(name=maker.text, version=maker.version, parameters=maker.parameters),
        measurements=[
            _value(COUNT, len(lesions), ONE),
            _value(VOLUME, sum(lesion.volume_mm3 for lesion in lesions), MM3),
        ],
    )


def _measure(
    segment: Segment, lesion: MeasuredLesion, series: SourceSeries, segmentation: "Segmentation", maker: Maker
) -> "VolumetricROIMeasurementsAndQualitativeEvaluations":
    """Return the volumetric group of a lesion."""
    from highdicom.sr import (
        ReferencedSegment,
        SourceImageForSegmentation,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    corners = [[side.start for side in lesion.box], [side.stop - 1 for side in lesion.box]]
    first, last = sorted(np.rint(series.file_voxels(corners)[:, 2]).astype(int).tolist())
    inside = range(first, last + 1)
    if series.frames:
        numbers = sorted(series.frames[k] + 1 for k in inside)
        sources = [SourceImageForSegmentation(series.first.SOPClassUID, series.first.SOPInstanceUID, numbers)]
    else:
        of_planes = [series.header_of(k) for k in inside]
        sources = [SourceImageForSegmentation(header.SOPClassUID, header.SOPInstanceUID) for header in of_planes]
    measurements = [_value(VOLUME, lesion.volume_mm3, MM3)]
    if lesion.mean_hu is not None and lesion.sd_hu is not None:
        measurements += [
            _value(ATTENUATION, lesion.mean_hu, HU, MEAN),
            _value(ATTENUATION, lesion.sd_hu, HU, DEVIATION),
        ]
    if lesion.probability is not None:
        measurements.append(_value(PROBABILITY, lesion.probability, ONE, MEAN))
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=ReferencedSegment(
            segmentation.SOPClassUID, segmentation.SOPInstanceUID, segment.number, source_images=sources
        ),
        measurements=measurements,
        **_identify(segment, series, maker),
    )


def _draw(
    segment: Segment, lesion: MeasuredLesion, series: SourceSeries, maker: Maker
) -> "MeasurementsAndQualitativeEvaluations":
    """Return the group of a lesion's axes."""
    from highdicom.sr import MeasurementsAndQualitativeEvaluations

    lines = ((LONG_AXIS, lesion.longest), (SHORT_AXIS, lesion.perpendicular))
    return MeasurementsAndQualitativeEvaluations(
        measurements=[_axis(name, line, series) for name, line in lines], **_identify(segment, series, maker)
    )


def _identify(segment: Segment, series: SourceSeries, maker: Maker) -> dict[str, Any]:
    """Return the arguments of both groups of a lesion: by what it is followed, what it is, where, and who found it."""
    from highdicom.sr import AlgorithmIdentification, FindingSite, TrackingIdentifier

    codes = segment.codes
    return {
        "tracking_identifier": TrackingIdentifier(uid=tracking_uid(series, segment), identifier=segment.name),
        "finding_category": to_code(codes.category),
        "finding_type": to_code(codes.type),
        "finding_sites": [FindingSite(to_code(codes.region), laterality=to_code(codes.side) if codes.side else None)]
        if codes.region
        else None,
        "algorithm_id": AlgorithmIdentification(name=maker.text, version=maker.version, parameters=maker.parameters),
    }


def _value(name: Concept, value: float, unit: Concept, derivation: Concept | None = None) -> "Measurement":
    from highdicom.sr import Measurement

    return Measurement(
        name=to_code(name),
        value=round(value, DECIMALS),
        unit=to_code(unit),
        derivation=to_code(derivation) if derivation else None,
    )


def _axis(name: Concept, line: Diameter, series: SourceSeries) -> "Measurement":
    """Return the length of an axis with its ends: on the source slice, or in space if it runs through several."""
    from highdicom.sr import (
        CoordinatesForMeasurement,
        CoordinatesForMeasurement3D,
        GraphicTypeValues,
        GraphicTypeValues3D,
        Measurement,
        SourceImageForRegion,
    )

    ends = series.file_voxels(line.ends)
    k = round(float(ends[0, 2]))
    coordinates: CoordinatesForMeasurement | CoordinatesForMeasurement3D
    if np.abs(ends[:, 2] - k).max() < ON_PLANE:
        header = series.header_of(k)
        coordinates = CoordinatesForMeasurement(
            graphic_type=GraphicTypeValues.POLYLINE,
            graphic_data=ends[:, :2] + FIRST_PIXEL,
            source_image=SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID, series.frame_numbers(k)),
        )
    else:
        coordinates = CoordinatesForMeasurement3D(
            graphic_type=GraphicTypeValues3D.POLYLINE,
            graphic_data=np.array([voxel_to_mm(series.grid.affine_lps, end) for end in line.ends]),
            frame_of_reference_uid=series.first.FrameOfReferenceUID,
        )
    return Measurement(
        name=to_code(name),
        value=round(line.length_mm, DECIMALS),
        unit=to_code(MM),
        referenced_coordinates=[coordinates],
    )
