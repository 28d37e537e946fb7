"""The page of `slicemill serve` in a browser: what is dropped, what is shown, and that nothing leaves."""

import base64
import contextlib
import json
import time

import nibabel as nib
import numpy as np
import pytest

from slicemill.web.page_files import read_page_files
from slicemill.web.serve.pictures import convert_picture
from slicemill.web.serve.records import LIMITS, PictureRequest
from tests.infer.networks import write_model, write_threshold
from tests.web.browser import Shown, read_canvas
from tests.web.jobs import TUMORS, make_hu, serving_jobs, write_nifti
from tests.web.test_page import AXE
from tests.web.test_serve_inputs import draw_picture, write_dicom, write_itk, zipped
from tests.web.test_serve_pictures import write_turned

RULES = "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})"
pytestmark = pytest.mark.slow


class ShownJobs(Shown):
    """The page of uploads."""

    def open(self):
        self.page.goto(self._served.access.url)
        self.wait("!document.querySelector('#start').hidden && !document.querySelector('#model').disabled")
        return self

    def choose(self, *paths, folder=False):
        self.page.set_input_files("#folder" if folder else "#files", paths[0] if folder else list(paths))

    def drop(self, *paths):
        """Drop files as a person does: with the events of a drag."""
        files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
        self.page.evaluate(
            """(files) => {
              const data = new DataTransfer();
              for (const [name, text] of files) {
                data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
              }
              const drop = document.querySelector("#drop");
              for (const type of ["dragover", "drop"]) {
                drop.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
              }
            }""",
            files,
        )

    def wait_until_done(self):
        self.wait("document.querySelector('#downloads').checkVisibility()")
        self.wait_until_read()
        return self.text("#headline")

    def message(self):
        self.wait("!document.querySelector('#message').hidden")
        return self.text("#message")

    def leave(self):
        """Remove the scan that is shown."""
        self.page.click("#remove")
        self.wait("!document.querySelector('#start').hidden")


@contextlib.contextmanager
def showing(browser, served, *, width=1200, height=800, scheme="dark", **options):
    """Show the page; after the block, nothing may have gone wrong but what a test expects."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    try:
        shown = ShownJobs(context.new_page(), served)
        yield shown.open()
        assert shown.faults == [], shown.faults
    finally:
        context.close()
        with served.client() as client:
            for job in client.get("/api/server").json()["jobs"]:
                client.post(f"/api/jobs/{job['id']}/end", headers={"Origin": served.base})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    models = [write_threshold(folder / "net.onnx"), write_model(folder / "plain.onnx", {"bright": 1})]
    (folder / "private").mkdir()
    with serving_jobs(models, folder / "private") as one:
        yield one


@pytest.fixture
def shown(browser, served):
    with showing(browser, served) as one:
        yield one


@pytest.mark.parametrize("kind", ["nii.gz", "mha", "nrrd", "mhd", "nhdr", "zip"])
def test_what_is_dropped_is_answered(shown, tmp_path, kind):
    assert "3000 slices and 1500 million voxels" in shown.text("#accepts")
    if kind == "nii.gz":
        write_nifti(tmp_path / "ct.nii.gz")
    elif kind == "zip":
        zipped(tmp_path / "ct.zip", [write_nifti(tmp_path / "ct.nii")])
        (tmp_path / "ct.nii").unlink()
    else:
        write_itk(tmp_path / f"ct.{kind}")
    shown.drop(*sorted(tmp_path.iterdir()))
    assert shown.wait_until_done() == "Tumor found: 2, largest 10 mm (slice 4)"
    assert shown.page.locator("#parts tbody tr").count() == len(TUMORS)
    assert shown.caption().startswith("axial 4 of 12")
    links = shown.page.locator("#download-list a").all_text_contents()
    assert "Mask on the grid of the scan (NIfTI)" in links


def test_a_folder_of_dicom_files_is_answered_and_its_results_can_be_downloaded(shown, tmp_path):
    write_dicom(tmp_path / "study" / "series")
    shown.choose(tmp_path / "study", folder=True)
    assert shown.wait_until_done().startswith("Tumor found: 1, ")
    shown.page.click("#downloads summary")
    with shown.page.expect_download() as download:
        shown.page.click("text=DICOM SEG")
    assert download.value.suggested_filename == "measures.seg.dcm"
    assert download.value.path().read_bytes()[128:132] == b"DICM"


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_frame_of_a_turned_photograph_is_drawn_on_what_is_segmented(shown, tmp_path, orientation):
    path = write_turned(tmp_path / "slice.jpg", orientation)
    shown.choose(path)
    shown.wait("!document.querySelector('#picture').hidden")
    gray = np.asarray(
        shown.page.evaluate("""() => {
          const canvas = document.querySelector('#picture-frame');
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          return [...Array(canvas.height).keys()].map((y) =>
            [...Array(canvas.width).keys()].map((x) => data[4 * (y * canvas.width + x)]));
        }"""),
        dtype=np.float32,
    )
    request = PictureRequest(low=0, high=255, left=0, top=0, right=gray.shape[1], bottom=gray.shape[0])
    convert_picture(path, request, LIMITS, tmp_path / "out.nii")
    read = np.asarray(nib.load(tmp_path / "out.nii").dataobj)[..., 0].T
    assert read.shape == gray.shape
    inside = (slice(2, -2), slice(2, -2))  # the border has the line of the frame
    assert np.abs(read[inside] - gray[inside]).max() <= 4


def test_a_picture_needs_its_window_and_is_answered_in_percent(shown, tmp_path):
    shown.choose(draw_picture(tmp_path / "slice.png"))
    shown.wait("!document.querySelector('#picture').hidden")
    assert "less reliable" in shown.text("#picture")
    shown.page.click("text=Segment this picture")
    assert shown.page.is_visible("#picture")  # neither window nor confirmation
    shown.page.select_option("#picture-window", label="Soft tissue, -200 to 300 HU")
    shown.page.click("text=Segment this picture")
    assert shown.page.is_visible("#picture")  # no confirmation
    shown.page.check("#picture-sure")
    box = shown.page.locator("#picture-frame").bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] - 1)
    shown.page.mouse.down()
    shown.page.mouse.move(box["x"] + 1 + 16 * box["width"] / 64, box["y"] + 1)
    shown.page.mouse.up()
    assert 15 <= float(shown.page.input_value("#picture-left")) <= 18
    shown.page.fill("#picture-left", "16")
    shown.page.fill("#picture-top", "0")
    shown.page.fill("#picture-right", "64")
    shown.page.fill("#picture-bottom", "48")
    shown.page.click("text=Segment this picture")
    assert shown.wait_until_done() == "Tumor found: 1 area"
    assert "3.5 % of the frame" in shown.text("#details")
    assert "less reliable" in shown.text("#warnings")
    assert "less reliable" in shown.text("#details")
    for wrong in ("#labels .number", "#parts td:nth-child(3)", "#parts-text", "[data-switch=measuring]"):
        assert not shown.page.locator(wrong).first.is_visible()  # mm and ml of a picture without a pixel size


def test_who_has_no_scan_tries_a_synthetic_one(shown):
    shown.page.click("#example")
    headline = shown.wait_until_done()
    assert headline.startswith("Tumor found: ")
    assert shown.text("#case-name") == "Synthetic scan"
    assert "it shows how this page works, and not how good the model is" in shown.text("#warnings")
    assert shown.caption().endswith("of 40")


def test_of_several_scans_the_person_picks_one(shown, tmp_path):
    write_nifti(tmp_path / "a.nii")
    hu = make_hu()
    hu[9] = -80
    write_nifti(tmp_path / "b.nii", hu)
    shown.drop(tmp_path / "a.nii", tmp_path / "b.nii")
    shown.wait("document.querySelector('#choices').checkVisibility()")
    assert shown.page.locator("#choice-list button").count() == 2
    assert "12 slices of 40 x 32" in shown.text("#choice-list")
    shown.wait("[...document.querySelectorAll('#choice-list canvas')].every((one) => one.width === 96)")
    shown.settle_frames()
    for number in (1, 2):
        picture = read_canvas(shown.page, f"#choice-list li:nth-child({number}) canvas")
        assert picture.shape == (96, 96, 3)
        assert (picture == picture[..., :1]).all()
        assert len(np.unique(picture)) > 1
    shown.page.click("#choice-list button:has-text('b.nii')")
    assert shown.wait_until_done().startswith("Tumor found: 1, ")


def test_the_threshold_table_and_picture_are_those_of_the_probabilities(shown, served, tmp_path):
    hu = make_hu()
    hu[5, 25:28, 4:9] = 25  # a probability of 38 %: below one half
    shown.choose(write_nifti(tmp_path / "a.nii", hu))
    shown.wait_until_done()
    assert shown.page.locator("#parts tbody tr").count() == 2
    before = shown.pixels().copy()
    shown.page.focus("#threshold")
    for _ in range(4):
        shown.page.keyboard.press("ArrowLeft")
    shown.wait("document.querySelector('#threshold-text').textContent.startsWith('30 %')")
    shown.wait("document.querySelectorAll('#parts tbody tr').length === 3")
    shown.press("n", "n")
    with served.client() as client:
        job = client.get("/api/server").json()["jobs"][0]["id"]
        table = client.get(f"/api/cases/{job}/parts/1/77").json()
    assert table["count"] == 3
    shown_sizes = shown.page.locator("#parts tbody tr td:nth-child(4)").all_text_contents()
    assert [float(text) for text in shown_sizes] == pytest.approx(
        [part["volume_ml"] for part in table["parts"]], abs=1e-3
    )
    assert not np.array_equal(before, shown.pixels())
    shown.press("]")
    shown.wait("document.querySelector('#threshold-text').textContent.startsWith('35 %')")
    shown.page.click("#another")
    shown.wait("document.querySelector('#kept').checkVisibility()")
    shown.page.click("#kept-list button:has-text('Open')")
    shown.wait_until_done()
    assert shown.page.input_value("#threshold") == "50"
    assert shown.text("#threshold-text") == "not moved: the answer is shown"
    assert shown.page.locator("#parts tbody tr").count() == 2


def test_a_model_without_probabilities_says_why_there_is_no_threshold(shown, tmp_path):
    shown.page.select_option("#model", label="plain.onnx")
    assert "fixed: the model gives no probabilities" in shown.text("#model-card")
    shown.choose(write_nifti(tmp_path / "a.nii"))
    assert shown.wait_until_done().startswith("This model has no label for tumor")
    assert not shown.page.is_visible("#threshold")
    assert "cannot be changed" in shown.text("#threshold-note")


def test_what_cannot_be_read_is_explained_and_the_next_scan_works(shown, tmp_path):
    (tmp_path / "no.nii").write_bytes(b"no scan")
    shown.choose(tmp_path / "no.nii")
    assert "no.nii" in shown.message()
    assert "/" not in shown.message().replace("and/or", "")
    assert not shown.page.is_visible("#main")
    shown.leave()
    shown.choose(write_nifti(tmp_path / "a.nii"))
    assert shown.wait_until_done().startswith("Tumor found: 2")


def test_a_scan_that_was_left_is_still_there(shown, tmp_path):
    shown.choose(write_nifti(tmp_path / "first.nii"))
    shown.wait_until_done()
    shown.page.click("#another")
    shown.wait("document.querySelector('#kept').checkVisibility()")
    assert "Tumor found: 2" in shown.text("#kept-list")
    shown.page.reload()
    shown.wait("document.querySelector('#kept').checkVisibility()")
    shown.page.click("#kept-list button:has-text('Open')")
    assert shown.wait_until_done().startswith("Tumor found: 2")
    shown.leave()
    assert not shown.page.is_visible("#kept")


def test_too_much_is_refused_before_it_is_sent(shown, served, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(served.jobs, "limits", replace(served.jobs.limits, file_bytes=500))
    shown.page.reload()
    shown.wait("!document.querySelector('#model').disabled")
    shown.choose(write_nifti(tmp_path / "a.nii"))
    assert "at most 1 kB fit" in shown.message() or "at most 0 kB fit" in shown.message()
    with served.client() as client:
        assert client.get("/api/server").json()["jobs"] == []


@pytest.mark.slow
def test_an_upload_goes_on_after_a_lost_connection(shown, served, tmp_path):
    size = 64_000_000
    path = tmp_path / "large.nii"
    with path.open("wb") as stream:
        stream.truncate(size)
    sent = []
    shown.page.on("request", lambda request: sent.append(request.url) if request.method == "PUT" else None)
    shown.page.set_input_files("#files", path)
    deadline = time.monotonic() + 60
    while not any(job.upload_bytes for job in served.jobs.all()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (job,) = served.jobs.all()
    for connection in list(served.server.server_state.connections):
        connection.loop.call_soon_threadsafe(connection.transport.abort)
    assert shown.message() == "The connection was lost; trying again"
    shown.wait("document.querySelector('#message').textContent.includes('large.nii')")
    assert job.upload_bytes == size, "each byte arrived once"
    assert len(sent) >= 2
    assert "offset=0" not in sent[-1]
    # Chromium may repeat the request by itself, from the start, which is refused
    expected = ("409 ", "404 ", "error: Failed to load resource")
    assert all(fault.startswith(expected) for fault in shown.faults), shown.faults
    shown.faults.clear()


@pytest.mark.slow
def test_an_upload_that_gets_on_is_tried_as_often_as_it_takes(shown, tmp_path):
    """Ten retries are for bytes that do not arrive, not for a long upload over a bad connection."""
    path = write_nifti(tmp_path / "long.nii")
    puts = []

    def lose(route):
        if route.request.method == "PUT":
            puts.append(route.request.url)
            route.abort()
        else:
            route.fulfill(json={"bytes": 10 * len(puts), "is_complete": len(puts) == 13})

    shown.page.route("**/files**", lose)
    shown.page.set_input_files("#files", path)
    deadline = time.monotonic() + 60
    while len(puts) < 13:
        assert time.monotonic() < deadline, len(puts)
        shown.page.wait_for_timeout(100)
    shown.faults.clear()


def test_a_file_that_cannot_be_read_is_reported_at_once(shown, tmp_path):
    path = write_nifti(tmp_path / "gone.nii")
    sent = []

    def lose(route):
        sent.append(route.request.url)
        path.unlink(missing_ok=True)
        route.abort()

    shown.page.route("**/files?**", lose)
    shown.choose(path)
    assert "gone.nii cannot be read" in shown.message()
    assert len(sent) == 1
    assert all(fault.startswith("error: Failed to load resource") for fault in shown.faults), shown.faults
    shown.faults.clear()


def test_a_scan_that_was_removed_is_not_sent_again(shown, tmp_path):
    sent = []

    def refuse(route):
        sent.append(route.request.url)
        route.fulfill(status=410, json={"error": "This scan was removed."})

    shown.page.route("**/files?**", refuse)
    shown.choose(write_nifti(tmp_path / "a.nii"))
    assert shown.message() == "This scan was removed."
    assert len(sent) == 1
    assert all(fault.startswith(("410 ", "error: Failed to load resource")) for fault in shown.faults), shown.faults
    shown.faults.clear()


def test_cancel_ends_a_scan_at_work(shown, served, tmp_path):
    import os
    import signal

    shown.wait("!document.querySelector('#model').disabled")
    pid = served.jobs.models.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        shown.choose(write_nifti(tmp_path / "a.nii"))
        shown.wait("document.querySelector('#work-text').textContent.startsWith('Segmenting')")
        shown.wait(
            "document.querySelectorAll('.caption')[0].textContent.startsWith('axial')"
        )  # slices before the answer
        shown.page.click("#cancel")
        shown.wait("!document.querySelector('#start').hidden")
    finally:
        os.kill(pid, signal.SIGCONT)
    served.wait_until_empty()


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("size", [(1200, 800), (320, 640)])
def test_axe_finds_no_fault_on_any_screen(browser, served, tmp_path, scheme, size):
    if not AXE.exists():
        pytest.skip("axe-core is not here (npm install in tests/web)")

    def check(shown):
        found = shown.page.evaluate(RULES)
        faults = [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found["violations"]]
        assert faults == []
        wide = "[...document.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > innerWidth)"
        assert shown.page.evaluate(f"{wide}.map((one) => one.outerHTML.slice(0, 200))") == []
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= size[0]

    with showing(browser, served, scheme=scheme, width=size[0], height=size[1], bypass_csp=True) as shown:
        shown.page.evaluate(AXE.read_text())
        check(shown)
        shown.choose(draw_picture(tmp_path / "slice.png"))
        shown.wait("!document.querySelector('#picture').hidden")
        check(shown)
        shown.page.click("#picture-cancel")
        hu = make_hu()
        write_nifti(tmp_path / "a.nii", hu)
        write_nifti(tmp_path / "b.nii", hu)
        shown.choose(tmp_path / "a.nii", tmp_path / "b.nii")
        shown.wait("document.querySelector('#choices').checkVisibility()")
        check(shown)
        shown.page.click("#choice-list button:has-text('b.nii')")
        shown.wait_until_done()
        shown.page.click("#downloads summary")
        shown.page.click("#steps-title")
        check(shown)
        shown.page.click("#another")
        shown.wait("document.querySelector('#kept').checkVisibility()")
        check(shown)


def test_names_from_outside_are_text(shown, tmp_path):
    name = "<img src=x onerror=alert(1)>.nii"
    write_nifti(tmp_path / name)
    shown.drop(tmp_path / name)
    shown.wait_until_done()
    assert shown.text("#case-name") == name
    assert shown.page.locator("img").count() == 0


def test_the_page_without_a_model_yet_opens_at_once(served):
    start = time.monotonic()
    page = read_page_files(has_start=True)
    assert time.monotonic() - start < 1
    assert b"serve.js" in page.index.content
    assert b"serve.js" not in read_page_files().index.content
    assert json.dumps(sorted(page.files)) == json.dumps(sorted(read_page_files().files))
