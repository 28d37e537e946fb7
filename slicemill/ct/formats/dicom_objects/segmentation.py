"""Writes segmentations as DICOM SEG (PS3.3 A.51) with highdicom.

Frames are the planes of the source files, in the files' own axes: nothing is turned or resampled, and each frame refers
to the file that it lies on. Planes without a segment are left out.
"""

from hashlib import sha256
from typing import TYPE_CHECKING

from slicemill.ct.formats.dicom_objects.codes import Concept
from slicemill.ct.formats.dicom_objects.maker import CONTENT_LABEL, DESCRIPTION, SERIES_NUMBERS, Maker
from slicemill.ct.formats.dicom_objects.options import SegmentationType
from slicemill.ct.formats.dicom_objects.segments import Segment, Segments
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries, make_uid

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from highdicom.sr import CodedConcept

JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def make_segmentation(
    series: SourceSeries, segments: Segments, maker: Maker, kind: SegmentationType = "binary"
) -> "Segmentation":
    """Return the SEG of a scan.

    Parameters
    ----------
    kind
        ``binary``: one bit per voxel and segment, which all archives and viewers know. ``labelmap``: one byte per
        voxel, compressed; a few percent of the size, standard since 2024.
    """
    from highdicom.seg import Segmentation

    frames = series.to_file_order(segments.voxels)
    described = [f"{one.number} {one.name} {one.codes}" for one in segments.segments]
    digest = sha256(frames.tobytes()).hexdigest()
    name = make_uid("SEG", kind, series.first.SeriesInstanceUID, maker.sha256, *described, digest)
    return Segmentation(
        source_images=list(series.headers),
        pixel_array=frames,
        segmentation_type=kind.upper(),
        segment_descriptions=[_describe_segment(one, maker, series) for one in segments.segments],
        series_instance_uid=make_uid("series", name),
        series_number=SERIES_NUMBERS["SEG"],
        sop_instance_uid=name,
        instance_number=1,
        **maker.as_equipment(),
        transfer_syntax_uid=EXPLICIT_LITTLE_ENDIAN if kind == "binary" else JPEG_LS_LOSSLESS,
        omit_empty_frames=True,
        content_label=CONTENT_LABEL,
        content_description=DESCRIPTION,
        content_creator_name=None,
        series_description=DESCRIPTION,
    )


def _describe_segment(segment: Segment, maker: Maker, series: SourceSeries) -> "SegmentDescription":
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=maker.text,
        family=codes.cid7162.ArtificialIntelligence,
        version=maker.version,
        source="slicemill",
        parameters={"model sha256": maker.sha256} if maker.is_known else None,
    )
    described = SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.name,
        segmented_property_category=to_code(segment.codes.category),
        segmented_property_type=to_code(segment.codes.type),
        algorithm_type=maker.algorithm_type,
        algorithm_identification=algorithm,
        tracking_uid=tracking_uid(series, segment),
        tracking_id=segment.name if segment.lesion else None,
        anatomic_regions=[to_code(segment.codes.region)] if segment.codes.region else None,
        display_color=CIELabColor.from_rgb(*segment.color),
    )
    if segment.codes.side is not None:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            to_code(segment.codes.side)
        ]
    return described


def tracking_uid(series: SourceSeries, segment: Segment) -> str | None:
    """Return the UID by which a lesion is followed in SEG and SR of one scan; None for other segments."""
    if segment.lesion is None:
        return None
    lesion = segment.lesion
    place = [(side.start, side.stop) for side in lesion.box]
    return make_uid("lesion", series.first.SeriesInstanceUID, lesion.id, place, lesion.volume_mm3)


def to_code(concept: Concept) -> "CodedConcept":
    """Return a code as highdicom has it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(concept.value, concept.scheme, concept.meaning)
