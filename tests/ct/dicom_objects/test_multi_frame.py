"""Results of a multi-frame series, whose frames are in any order."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.formats.dicom_objects.open_mask import open_mask
from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries, describe_source
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.scan import ScanReader
from tests.ct.dicom import made
from tests.ct.dicom_objects.series import make_label
from tests.ct.dicom_objects.test_segmentation import MAKER, points_of, points_of_segment

ORDER = [3, 0, 4, 1, 2]


@pytest.fixture
def series(tmp_path: Path) -> SourceSeries:
    volume = made.make_volume((5, 9, 11))
    dataset = made.make_enhanced(volume, ORDER, FrameOfReferenceUID="1.2.3.5", StudyInstanceUID="1.2.3")
    made.save(dataset, tmp_path / "ct" / "enhanced.dcm")
    return describe_source(open_series(tmp_path / "ct"))


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_segments_lie_where_the_mask_has_them(series: SourceSeries, kind: str, tmp_path: Path) -> None:
    label = make_label(series.grid.stored_shape)
    options = DicomOptions(seg=True, sr=True, rtstruct=True, seg_type=kind)
    write_results(tmp_path / "m", series, SegmentedScan(label=label, labels=LITS_LABELS), MAKER, options)
    seg = pydicom.dcmread(tmp_path / "m.seg.dcm")
    assert points_of_segment(seg, 1) == points_of(label, series.grid.affine_lps, 1)
    assert points_of_segment(seg, 2) | points_of_segment(seg, 3) == points_of(label, series.grid.affine_lps, 2)
    for name in ("m.seg.dcm", "m.rtstruct.dcm"):
        with ScanReader(
            tmp_path / name, "mask", source=open_mask(tmp_path / name, series.grid, None, LITS_LABELS)
        ) as one:
            assert np.array_equal(one.read(), label)


def test_references_name_the_frame(series: SourceSeries, tmp_path: Path) -> None:
    label = make_label(series.grid.stored_shape)
    options = DicomOptions(sr=True, rtstruct=True)
    write_results(tmp_path / "m", series, SegmentedScan(label=label, labels=LITS_LABELS), MAKER, options)
    positions = {ORDER[frame]: frame + 1 for frame in range(len(ORDER))}
    structures = pydicom.dcmread(tmp_path / "m.rtstruct.dcm")
    for roi in structures.ROIContourSequence:
        for contour in roi.ContourSequence:
            k = round((float(contour.ContourData[2]) + 30) / 2.5)
            assert contour.ContourImageSequence[0].ReferencedFrameNumber == positions[k]
    content = highdicom.sr.srread(tmp_path / "m.sr.dcm").content
    drawn = [one for one in content.get_image_measurement_groups() if one.tracking_identifier == "tumor 2"]
    (coordinates,) = drawn[0].get_measurements()[0].referenced_coordinates
    image = coordinates.ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedFrameNumber == positions[3]  # the small tumor is on the fourth slice
