"""Opens DICOM SEG and RTSTRUCT as masks of a scan."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slicemill.common.errors import GeometryError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.files import OpenFile, is_dicom_file, stat_file
from slicemill.ct.formats.dicom.header import FileHeader, read_file_header
from slicemill.ct.formats.dicom.pydicom_files import read_dataset, report_damage
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom_objects.drawn_source import Drawing, DrawnSource, Overlap
from slicemill.ct.formats.dicom_objects.maker import prepare_dicom
from slicemill.ct.formats.dicom_objects.mask_names import NamedPart
from slicemill.ct.formats.dicom_objects.rtstruct_mask import RTSTRUCT_CLASS, StructureDrawing
from slicemill.ct.formats.dicom_objects.seg_mask import LABELMAP_CLASS, SEG_CLASS, SegDrawing
from slicemill.ct.formats.names import is_scan_name
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import Labels

MASK_CLASSES = frozenset((SEG_CLASS, LABELMAP_CLASS, RTSTRUCT_CLASS))


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """What a SEG or RTSTRUCT refers to. A text is empty if the file does not say."""

    frame_of_reference_uid: str
    series_uids: tuple[str, ...]


def is_mask_object(location: Location) -> bool:
    """Return whether a location is a file with a DICOM SEG or RTSTRUCT."""
    if is_scan_name(location.name) or not location.is_file() or not is_dicom_file(location):
        return False
    file = stat_file(location)
    try:
        with report_damage(file):
            header = read_file_header(file)
    except ScanError:
        return False
    return header is not None and header.identity.sop_class in MASK_CLASSES


def read_references(location: Location) -> References:
    """Read the frame of reference and the series that a SEG or RTSTRUCT refers to.

    Raises
    ------
    ScanError
        The file is damaged.
    """
    with _read_text(location) as dataset:
        return _list_references(dataset)


@contextmanager
def _read_text(location: Location) -> Iterator[Any]:
    """Yield the dataset of a file without its pixels; damage that the block finds is an error of the file."""
    prepare_dicom()
    file = stat_file(location)
    with OpenFile(file) as opened:
        dataset = read_dataset(opened, file, pixels=False)
    with report_damage(file):
        yield dataset


def _list_references(dataset: Any) -> References:
    frames, series = {str(dataset.get("FrameOfReferenceUID") or "")}, set()
    for one in dataset.get("ReferencedSeriesSequence") or []:
        series.add(str(one.get("SeriesInstanceUID") or ""))
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        frames.add(str(frame.get("FrameOfReferenceUID") or ""))
        for study in frame.get("RTReferencedStudySequence") or []:
            for one in study.get("RTReferencedSeriesSequence") or []:
                series.add(str(one.get("SeriesInstanceUID") or ""))
    frames -= {""}
    return References(
        frame_of_reference_uid=frames.pop() if len(frames) == 1 else "",
        series_uids=tuple(sorted(series - {""})),
    )


def read_part_names(location: Location) -> tuple[NamedPart, ...]:
    """Return the numbers and names of the segments of a SEG, without its background 0, or of an RTSTRUCT's structures.

    Raises
    ------
    ScanError
        The file is damaged.
    """
    with _read_text(location) as dataset:
        listed = dataset.get("SegmentSequence") or []
        segments = [(one.SegmentNumber, one.get("SegmentLabel")) for one in listed if int(one.SegmentNumber) != 0]
        structures = [(one.ROINumber, one.get("ROIName")) for one in dataset.get("StructureSetROISequence") or []]
        return tuple(NamedPart(int(number), str(name or "")) for number, name in (*segments, *structures))


def open_mask(
    location: Location,
    grid: Grid,
    series: Series | None,
    labels: Labels | None,
    overlap: Overlap = "error",
    *,
    hashed: bool = True,
) -> DrawnSource:
    """Open a SEG or RTSTRUCT on the grid of its scan.

    Parameters
    ----------
    series
        The scan's DICOM series, whose frame of reference the mask must have; None for a scan in another format.
    labels
        Names of the label values; segments are matched by name (`slicemill.ct.formats.dicom_objects.mask_names`).

    Raises
    ------
    InputError
        The file is damaged, of another frame of reference, does not lie on the scan's slices, or its segments do not
        fit the labels.
    """
    prepare_dicom()
    file = stat_file(location)
    with report_damage(file):
        header = read_file_header(file)
        if header is None or header.identity.sop_class not in MASK_CLASSES:
            raise ScanError("is no DICOM SEG or RTSTRUCT.", where=location)
        if series is not None and series.frame_of_reference_uid:
            frame = read_references(location).frame_of_reference_uid
            if frame and frame != series.frame_of_reference_uid:
                raise GeometryError(
                    "has another frame of reference (FrameOfReferenceUID) than its scan, so positions do not compare.",
                    where=location,
                )
        return DrawnSource(_draw(header, grid, labels, overlap), grid, hashed=hashed)


def _draw(header: FileHeader, grid: Grid, labels: Labels | None, overlap: Overlap) -> Drawing:
    if header.identity.sop_class == RTSTRUCT_CLASS:
        return StructureDrawing(header.file, grid, labels, overlap)
    return SegDrawing(header, grid, labels, overlap)
