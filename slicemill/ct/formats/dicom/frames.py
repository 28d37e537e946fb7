"""The planes of a file. Frames of enhanced multi-frame files have position and scaling in nested groups.

A value stands in the frame's own group (PerFrameFunctionalGroupsSequence), else in the shared one. The order of the
frames in the file says nothing about their positions.
"""

from collections.abc import Iterator
from typing import Any

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.files import OpenFile
from slicemill.ct.formats.dicom.header import FileHeader
from slicemill.ct.formats.dicom.planes import Plane, check_pixels, dataset_numbers, make_plane, refuse
from slicemill.ct.formats.dicom.pydicom_files import read_dataset
from slicemill.ct.formats.dicom.uids import MULTI_FRAME


def iter_planes(header: FileHeader) -> Iterator[Plane]:
    """Yield the planes of a CT file, checked.

    Raises
    ------
    ScanError
        The pixels are of a kind that is no CT, or a field that the geometry needs is missing. It names the tag.
    """
    is_multi_frame = header.identity.sop_class in MULTI_FRAME
    if header.frames != 1 and not is_multi_frame:
        raise refuse(header, f"NumberOfFrames (0028,0008) must be 1 in a CT Image; it is {header.frames}")
    check_pixels(header)
    if is_multi_frame:
        yield from _iter_frames(header)
        return
    slope, inter = header.rescale
    yield make_plane(
        header, 0, (header.position, header.orientation, header.spacing), (slope, inter, header.rescale_type),
        header.phase,
    )  # fmt: skip


def _iter_frames(header: FileHeader) -> Iterator[Plane]:
    """Yield the planes of a multi-frame file, in the file's order.

    Raises
    ------
    ScanError
        A group is missing or damaged.
    """
    with OpenFile(header.file) as opened:
        dataset = read_dataset(opened, header.file, pixels=False)
    try:
        yield from _read_groups(header, dataset)
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(
            "its groups of frames (5200,9229 and 5200,9230) cannot be read; the file is damaged.", where=header.file
        ) from error


def _read_groups(header: FileHeader, dataset: Any) -> Iterator[Plane]:
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    shared = (list(dataset.get("SharedFunctionalGroupsSequence") or ()) or [None])[0]
    if len(groups) != header.frames:
        raise ScanError(
            f"has {header.frames} frames, but {len(groups)} groups of frames (5200,9230); the file is damaged.",
            where=header.file,
        )
    for index, group in enumerate(groups):

        def value(sequence: str, name: str, group: Any = group) -> Any:
            for place in (group, shared):
                items = place.get(sequence) if place is not None else None
                if items and items[0].get(name) is not None:
                    return items[0].get(name)
            return None

        slope = dataset_numbers(value("PixelValueTransformationSequence", "RescaleSlope"))
        inter = dataset_numbers(value("PixelValueTransformationSequence", "RescaleIntercept"))
        content = (group.get("FrameContentSequence") or [{}])[0]
        phase = [content.get(name) for name in ("FrameAcquisitionNumber", "TemporalPositionIndex", "StackID")]
        yield make_plane(
            header,
            index,
            (
                dataset_numbers(value("PlanePositionSequence", "ImagePositionPatient")),
                dataset_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient")),
                dataset_numbers(value("PixelMeasuresSequence", "PixelSpacing")),
            ),
            (
                None if slope is None else slope[0],
                None if inter is None else inter[0],
                str(value("PixelValueTransformationSequence", "RescaleType") or ""),
            ),
            ["" if one is None else str(one) for one in phase],
        )
