"""The viewer, the page of uploads and a report in Firefox."""

import numpy as np
import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.measure.requests import MeasureRequest
from tests.infer.networks import write_threshold
from tests.web.browser import Shown
from tests.web.firefox import FIREFOX, open_firefox
from tests.web.jobs import serving_jobs, write_nifti
from tests.web.made import make_image, make_mask, write_scan
from tests.web.served import serving
from tests.web.test_page import PLANES, expected
from tests.web.test_report_page import Opened
from tests.web.test_report_page import expected as expected_in_report
from tests.web.test_serve_page import ShownJobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FIREFOX.exists(), reason=f"Firefox ({FIREFOX}) is not here"),
]


@pytest.mark.parametrize("scale", [1, 2])
def test_pixels_are_those_of_numpy(entries, scale):
    with serving(entries) as served, open_firefox(scale=scale) as page:
        shown = Shown(page, served).open()
        for plane in PLANES:
            np.testing.assert_array_equal(shown.pixels(plane), expected(shown, plane, scale))
        before = shown.caption()
        shown.press("a", "ArrowUp", "f")
        assert shown.caption() != before
        np.testing.assert_array_equal(shown.pixels(), expected(shown, "axial", scale, fill=True))


def test_a_dropped_scan_is_answered(tmp_path):
    (tmp_path / "private").mkdir()
    model = write_threshold(tmp_path / "net.onnx")
    with serving_jobs([model], tmp_path / "private") as served, open_firefox() as page:
        shown = ShownJobs(page, served).open()
        shown.choose(write_nifti(tmp_path / "ct.nii.gz"))
        assert shown.wait_until_done() == "Tumor found: 2, largest 10 mm (slice 4)"
        assert shown.pixels().any()


def test_a_report_works_from_a_file(tmp_path):
    scan, mask = write_scan(tmp_path / "ct.nii", make_image()), write_scan(tmp_path / "mask.nii", make_mask())
    MeasureRequest(masks=mask, out=tmp_path / "out", image=scan, labels=LITS_LABELS).run()
    with open_firefox() as page:
        opened = Opened(page).open(tmp_path / "out" / "mask.html")
        opened.wait()
        assert opened.caption == "Slice 4 of 9"
        np.testing.assert_array_equal(opened.pixels(), expected_in_report(opened))
