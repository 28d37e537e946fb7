"""Results of real series: liver and six tumors, read back by position, also with a tilted gantry."""

from pathlib import Path

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.formats.dicom_objects.open_mask import open_mask
from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import describe_source
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.scan import ScanReader
from tests.conftest import REAL
from tests.ct.dicom_objects.test_segmentation import MAKER

FOLDERS = ["crlm-liver-ct/CRLM-CT-1004", "dcmqi-liver-3slice/ct-3slice", "dicom-edge-cases/gantrytilting"]


def draw_liver(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return uint8[z, y, x]: an ellipsoid of liver with six of tumor."""
    z, y, x = np.indices(shape) / np.array(shape).reshape(3, 1, 1, 1)
    label = ((((z - 0.5) / 0.45) ** 2 + ((y - 0.5) / 0.25) ** 2 + ((x - 0.4) / 0.3) ** 2) < 1).astype(np.uint8)
    for number in range(6):
        center_y, center_x = 0.38 + 0.04 * number, 0.25 + 0.05 * number
        label[((z - 0.5) / 0.1) ** 2 + ((y - center_y) / 0.015) ** 2 + ((x - center_x) / 0.02) ** 2 < 1] = 2
    return label


@pytest.mark.real
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_results_of_real_series_are_read_back(folder: str, kind: str, tmp_path: Path) -> None:
    if not (REAL / folder).exists():
        pytest.skip("the real scans (../shared/data) are not here")
    (tmp_path / "ct").mkdir()
    for path in sorted((REAL / folder).iterdir()):
        dataset = pydicom.dcmread(path)
        if "FrameOfReferenceUID" not in dataset:  # the tilted one has none
            dataset.FrameOfReferenceUID = "1.2.3.5"
        dataset.save_as(tmp_path / "ct" / path.name)
    found = open_series(tmp_path / "ct")
    series = describe_source(found)
    label = draw_liver(found.grid.stored_shape)
    options = DicomOptions(seg=True, rtstruct=True, per_lesion=True, seg_type=kind)
    write_results(tmp_path / "m", series, SegmentedScan(label=label, labels=LITS_LABELS), MAKER, options)
    for name in ("m.seg.dcm", "m.rtstruct.dcm"):
        source = open_mask(tmp_path / name, found.grid, found, LITS_LABELS)
        with ScanReader(tmp_path / name, "mask", source=source) as reader:
            assert np.array_equal(reader.read(), label), name
    seg = highdicom.seg.segread(tmp_path / "m.seg.dcm")
    pixels = seg.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in series.headers],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(np.minimum(pixels, 2), series.to_frames(label))


@pytest.mark.real
def test_a_series_without_frame_of_reference_is_refused_by_name() -> None:
    if not (REAL / FOLDERS[2]).exists():
        pytest.skip("the real scans (../shared/data) are not here")
    with pytest.raises(ScanError, match=r"has no FrameOfReferenceUID \(0020,0052\)"):
        describe_source(open_series(REAL / FOLDERS[2]))
