"""The viewer in a report, opened as a file: pixels, keys, and that it needs no server."""

import re

import nibabel as nib
import numpy as np
import pytest

from slicemill.ct.geometry import RAS_TO_LPS
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.page_slices import LOW_HU, STEP_HU
from slicemill.ct.pictures import TUMOR_COLOR
from slicemill.measure.requests import EvaluateRequest, MeasureRequest
from tests.web.browser import read_canvas
from tests.web.made import SHAPE, SPACING, make_affine, make_image, make_mask, write_scan
from tests.web.rendering import render, whole_picture
from tests.web.test_page import AXE, REGIONS


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of `measure`; its name has markup."""
    folder = tmp_path_factory.mktemp("report")
    scan = write_scan(folder / "ct.nii", make_image())
    mask = write_scan(folder / "mask.nii", make_mask())
    out = folder / "out"
    result = MeasureRequest(masks=mask, out=out, image=scan, labels=LITS_LABELS).run()
    assert [one.status for one in result.outcomes] == ["done"]
    return out / "mask.html"


class Opened:
    """A report in a browser."""

    def __init__(self, page):
        self.page = page
        self.faults = []
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda one: one.url.startswith(("file:", "data:")) or self.faults.append(one.url))

    def open(self, path):
        self.page.goto(path.as_uri())
        return self

    def wait(self):
        self.page.wait_for_selector(".slices .pane")
        self.settle()
        return self

    def settle(self):
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    @property
    def caption(self):
        return self.page.text_content(".slices .caption")

    def pixels(self):
        return read_canvas(self.page, ".slices .picture")


@pytest.fixture
def opened(browser, report):
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    one = Opened(context.new_page())
    yield one.open(report).wait()
    assert one.faults == []
    context.close()


def expected(opened, **style):
    """Return what the canvas must show of the slice that its caption names: HU in steps of STEP_HU."""
    z = int(re.match(r"Slice (\d+) of 9", opened.caption)[1]) - 1
    hu = LOW_HU + STEP_HU * np.clip(np.rint((make_image()[z] - np.float32(LOW_HU)) / STEP_HU), 0, 255).astype(np.int16)
    settings = {"regions": REGIONS, "window": (-100, 240), "width": 2} | style
    return render(hu, make_mask()[z], canvas=opened.pixels().shape[:2], pixel_mm=SPACING[1:], **settings)


@pytest.mark.slow
def test_pixels_are_those_of_numpy(opened):
    assert opened.caption == "Slice 4 of 9"  # of the largest lesion
    np.testing.assert_array_equal(opened.pixels(), expected(opened))
    assert (opened.pixels() == TUMOR_COLOR).all(axis=2).any()
    opened.page.focus(".slices .pane")
    opened.press("3", "o")
    np.testing.assert_array_equal(opened.pixels(), expected(opened, outline=False, window=(-1350, 150)))
    opened.press("o", "1", "ArrowUp")
    assert opened.caption == "Slice 5 of 9"
    np.testing.assert_array_equal(opened.pixels(), expected(opened))


def test_keys_wheel_slider_and_list_move(opened):
    opened.page.focus(".slices .pane")
    opened.press("n")
    assert opened.caption == "Slice 8 of 9"
    assert "Lesion 2" in opened.page.text_content(".slices select[aria-label=Lesion] option:checked")
    opened.press("p", "PageDown")
    assert opened.caption == "Slice 1 of 9"
    opened.page.hover(".slices .pane")
    opened.page.mouse.wheel(0, -100)
    opened.settle()
    assert opened.caption == "Slice 3 of 9"
    opened.page.fill(".slices input", "6")
    opened.settle()
    assert opened.caption == "Slice 6 of 9"
    opened.page.select_option(".slices select[aria-label=Lesion]", "1")
    opened.settle()
    assert opened.caption == "Slice 8 of 9"
    before = opened.pixels()
    opened.page.focus(".slices .pane")
    opened.press("+", "+")
    assert (opened.pixels() != before).any()
    opened.press("0")
    np.testing.assert_array_equal(opened.pixels(), before)


def test_it_says_that_it_holds_pictures_of_a_patient_and_their_range(opened):
    note = opened.page.inner_text(".slices-note")
    assert "pictures of a patient: 9 of 9 slices, in 256 gray values from -1024 to 506 HU" in note


def test_windows_stay_inside_of_the_gray_values(opened):
    names = opened.page.locator(".slices select[aria-label=Window] option").all_text_contents()
    assert names == ["Abdomen", "Liver", "Lung", "Brain", "Own"]
    opened.page.focus(".slices .pane")
    opened.press("3")
    before = opened.pixels()
    opened.press("4")  # bone in other viewers
    np.testing.assert_array_equal(opened.pixels(), before)
    opened.press("5")
    np.testing.assert_array_equal(opened.pixels(), expected(opened, window=(0, 80)))
    opened.page.select_option(".slices select[aria-label=Window]", label="Lung")
    opened.settle()
    np.testing.assert_array_equal(opened.pixels(), before)


@pytest.mark.slow
def test_the_pointer_says_no_more_than_the_gray_values_hold(browser, tmp_path):
    """Clamped voxels have a bound, all others a rounded value."""
    image = np.zeros(SHAPE, dtype=np.int16)
    image[:, :, :6], image[:, :, 6:14], image[:, :, 14:] = -2000, 41, 2000
    scan = write_scan(tmp_path / "ct.nii", image)
    mask = write_scan(tmp_path / "mask.nii", make_mask())
    MeasureRequest(masks=mask, out=tmp_path / "out", image=scan, labels=LITS_LABELS).run()
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    one = Opened(context.new_page()).open(tmp_path / "out" / "mask.html").wait()
    box = one.page.locator(".slices .picture").bounding_box()
    rows, columns = whole_picture((round(box["height"]), round(box["width"])), SHAPE[1:], SPACING[1:])
    found = []
    for column in (3, 10, 17):
        x, y = (np.flatnonzero(places == at).mean() for places, at in ((columns, column), (rows, 7)))
        one.page.mouse.move(box["x"] + x + 0.5, box["y"] + y + 0.5)
        one.settle()
        found.append(one.page.text_content(".slices .pointer").partition(", ")[2])
    assert found == ["at most -1021 HU", "about 44 HU", "at least 503 HU"]
    for _ in range(3):  # a wide window
        one.page.mouse.move(box["x"] + x - 400, box["y"] + y)
        one.page.mouse.down(button="right")
        one.page.mouse.move(box["x"] + x, box["y"] + y, steps=3)
        one.page.mouse.up(button="right")
        one.settle()
    assert one.page.input_value(".slices select[aria-label=Window]") == "own"
    assert (one.pixels()[round(y), round(x)] == 255).all(), "what is clamped is white in every window"
    assert one.faults == []
    context.close()


def test_scripts_run_by_their_hash_only(report):
    text = report.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert len(re.findall(r"'sha256-[^']+'", policy)) == 2
    assert "unsafe-eval" not in policy
    assert len(re.findall(r"<script>", text)) == 2


def test_a_browser_that_cannot_unpack_shows_the_pictures(browser, report):
    context = browser.new_context()
    one = Opened(context.new_page())
    one.page.add_init_script("delete window.DecompressionStream")
    one.open(report)
    one.settle()
    assert one.page.is_hidden(".slices")
    assert one.page.is_visible("figure.views img")
    assert one.faults == []
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1000])
def test_it_fits_and_axe_finds_no_fault(browser, report, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, bypass_csp=True)
    one = Opened(context.new_page()).open(report).wait()
    for control in one.page.locator(".slices button, .slices select, .slices input").all():
        box = control.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width + 0.5
    if AXE.exists():
        one.page.evaluate(AXE.read_text())
        found = one.page.evaluate("axe.run('.slices', {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa']})")
        assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found["violations"]] == []
    context.close()


def test_names_of_labels_and_sizes_of_the_page(tmp_path):
    """Labels are text; a page without slices has no viewer; another size is measured again."""
    scan = write_scan(tmp_path / "ct.nii", make_image())
    mask = write_scan(tmp_path / "mask.nii", make_mask())
    labels = {"</script><script>alert(1)": 1, "tumor": 2}

    def measure(**options):
        request = MeasureRequest(masks=mask, out=tmp_path / "out", labels=labels, **options)
        (outcome,) = request.run().outcomes
        return outcome.status, (tmp_path / "out" / "mask.html").read_text()

    status, text = measure(image=scan)
    assert (status, text.count("<script>")) == ("done", 2)
    assert "</script><script>alert(1)" not in text
    assert measure(image=scan)[0] == "skipped"
    status, text = measure(image=scan, viewer_mb=0)
    assert (status, text.count("<script>"), "slices-note" in text) == ("done", 1, False)
    status, text = measure()
    assert (status, text.count("<script>")) == ("done", 1), "without a scan there is nothing to show"


@pytest.mark.parametrize("size", [-1, 201, float("nan")])
def test_a_size_that_cannot_be_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=r"--viewer-mb .*: must be from 0 to 200"):
        MeasureRequest(masks=tmp_path / "mask.nii", out=tmp_path / "out", viewer_mb=size)


def test_a_long_scan_stays_below_its_size(tmp_path):
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(-200, 300, (160, 150, 60)).astype(np.int16), RAS_TO_LPS @ make_affine())
    label = np.zeros(image.shape, dtype=np.uint8)
    label[20:90, 20:90, 2:58] = 2
    nib.save(image, tmp_path / "ct.nii")
    nib.save(nib.Nifti1Image(label, image.affine), tmp_path / "mask.nii")
    request = MeasureRequest(
        masks=tmp_path / "mask.nii", image=tmp_path / "ct.nii", out=tmp_path / "out", labels=LITS_LABELS, viewer_mb=0.5
    )
    (outcome,) = request.run().outcomes
    assert outcome.status == "done", outcome.reason
    text = (tmp_path / "out" / "mask.html").read_text()
    data = re.search(r'"data": ?"([^"]*)"', text)[1]
    assert 0.2 * (1 << 20) < len(data) <= 0.5 * (1 << 20)


@pytest.mark.slow
def test_the_page_of_errors_shows_prediction_and_reference(browser, tmp_path):
    reference = make_mask()
    predicted = np.where(reference == 2, 1, reference)
    predicted[3:5, 4:7, 7:9] = 2
    for folder, name, voxels in (
        ("predicted", "ct", predicted),
        ("truth", "segmentation-ct", reference),
        ("truth", "volume-ct", make_image()),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_scan(tmp_path / folder / f"{name}.nii", voxels)
    (tmp_path / "predicted" / "ct.nii").rename(tmp_path / "predicted" / "volume-ct.nii")

    def evaluate(size, out):
        request = EvaluateRequest(
            predictions=tmp_path / "predicted", references=tmp_path / "truth", out=out, labels=LITS_LABELS,
            viewer_mb=size,
        )  # fmt: skip
        assert request.run().failures == ()
        return sorted(path.name for path in out.glob("*_errors.*"))

    assert evaluate(0, tmp_path / "none") == ["volume-ct_errors.png"]
    assert evaluate(8, tmp_path / "out") == ["volume-ct_errors.html", "volume-ct_errors.png"]
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    one = Opened(context.new_page()).open(tmp_path / "out" / "volume-ct_errors.html").wait()
    assert one.caption == "Slice 4 of 9"
    pixels = one.pixels()
    green = (TUMOR_COLOR[2], TUMOR_COLOR[0], TUMOR_COLOR[1])  # of the second mask
    assert (pixels == TUMOR_COLOR).all(axis=2).any()
    assert (pixels == green).all(axis=2).any()
    legend = one.page.locator(".slices-label > span:not(.sample)").all_text_contents()
    assert legend == ["prediction: liver", "prediction: tumor", "reference: liver", "reference: tumor"]
    dice = 2 * (predicted == 2).sum() / ((predicted == 2).sum() + (reference == 2).sum())
    assert f"{dice:.3f}"[:4] in one.page.inner_text("table tr:has-text('tumor')")
    assert one.faults == []
    context.close()
