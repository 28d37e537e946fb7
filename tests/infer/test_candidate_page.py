"""Pages of candidates: what their pictures show, what fits, and which files a run writes."""

import base64
import gzip
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.locks import try_claim
from slicemill.ct.page_slices import MEBIBYTE, to_grays
from slicemill.ct.phantom import write_nifti
from slicemill.infer.candidates.page import write_candidate_page
from slicemill.infer.candidates.records import CandidateRow, ScanCandidates, is_candidate_table
from slicemill.infer.candidates.views import STRIP, STRIP_PX, VIEW_PX, draw_views
from tests.infer.networks import CROP_CARD, write_classifier, write_lung_model, write_model

TUNED = {"thresholds": {"1": 0.9, "4": 0.5}, "sensitivity": {"1": 0.7}}


def make_row(number=1, xyz=(0.0, 0.0, 0.0), **values):
    fields = {"probability": 0.5, "diameter_mm": 6.0, "volume_ml": 0.1, "slice": 20, "peak": 0.9} | values
    return CandidateRow(number=number, x_mm=xyz[0], y_mm=xyz[1], z_mm=xyz[2], **fields)


def make_found(rows, **values):
    fields = {"classifier": "cls.onnx", "classifier_sha256": "b" * 64, "thresholds": {}, "warnings": ()} | values
    return ScanCandidates(
        scan="ct.nii.gz", model_sha256="a" * 64, found=len(rows), outside_organ=0, merged=0, cut=0,
        candidates=tuple(rows), **fields,
    )  # fmt: skip


def unpack(views):
    data = np.frombuffer(gzip.decompress(base64.b64decode(views.data)), np.uint8)
    pictures = data[: 3 * VIEW_PX**2].reshape(3, VIEW_PX, VIEW_PX)
    return pictures, data[3 * VIEW_PX**2 :].reshape(STRIP, STRIP_PX, STRIP_PX)


def test_views_show_the_patients_sides_whatever_the_axes_of_the_scan_are():
    """A mark of another HU to the left, to posterior and to superior of the center, in a scan of turned axes."""
    image = np.full((41, 61, 61), -800, dtype=np.int16)
    image[18:23, 28:33, 50:53] = 100  # along +x of the voxels: to the right, as x runs to the right here
    image[18:23, 8:11, 28:33] = 200  # along -y: to posterior, as y runs to anterior
    image[30:33, 28:33, 28:33] = 300  # along +z: to superior
    affine = np.array([[-1.0, 0, 0, 30], [0, -1.0, 0, 30], [0, 0, 1.0, -20], [0, 0, 0, 1]])
    views = draw_views(image, affine, make_row())
    (axial, coronal, sagittal), strip = unpack(views)
    assert views.field_mm == 48
    middle = VIEW_PX // 2
    for picture, gray, inside, outside in (
        (axial, 100, np.s_[middle, 4:8], np.s_[middle, -8:-4]),  # the patient's right is on the left
        (axial, 200, np.s_[-8:-4, middle], np.s_[4:8, middle]),  # posterior is below
        (coronal, 300, np.s_[24:27, middle], np.s_[-27:-24, middle]),  # superior is on top
        (coronal, 100, np.s_[middle, 4:8], np.s_[middle, -8:-4]),
        (sagittal, 300, np.s_[24:27, middle], np.s_[-27:-24, middle]),
        (sagittal, 200, np.s_[middle, -8:-4], np.s_[middle, 4:8]),  # posterior is on the right
    ):
        assert (picture[inside] == to_grays(np.array(gray))).all()
        assert (picture[outside] == to_grays(np.array(-800))).all()
    assert views.step_mm == 2  # 1.5 diameters of 6 mm are longer than eight slices of 1 mm
    assert (strip[4] != strip[0]).any()


def test_the_axial_view_is_the_slice_itself_and_the_strip_its_neighbors():
    rng = np.random.default_rng(3)
    image = rng.integers(-1000, 400, (41, 96, 96)).astype(np.int16)
    affine = np.diag([0.5, 0.5, 2.5, 1.0])
    row = make_row(xyz=(0.5 * 47.5, 0.5 * 47.5, 2.5 * 20 + 1.0), slice=20)  # 1 mm above the slice's middle
    views = draw_views(image, affine, row)
    (axial, _, _), _ = unpack(views)
    np.testing.assert_array_equal(axial, to_grays(image[20]))
    assert views.step_mm == 2.5
    flat = np.repeat(np.arange(41, dtype=np.int16)[:, None, None] * 24, 96, axis=1).repeat(96, axis=2)
    _, strip = unpack(draw_views(flat, affine, row))
    assert strip[:, 30, 30].tolist() == to_grays(np.arange(16, 25) * 24).tolist()


@pytest.mark.parametrize("degrees", [0, 17])
def test_each_pixel_of_an_oblique_scan_has_the_hu_of_its_place(degrees):
    """HU grow along each axis of the patient: linear interpolation is exact, up to its rounding and the gray step."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 1.5, 2.0])
    affine[:3, 3] = -affine[:3, :3] @ (40, 40, 30)
    slopes = np.array([3.0, -4.0, 5.0])
    z, y, x = np.indices((61, 81, 81))
    voxels = np.stack([x, y, z, np.ones_like(x)], axis=-1) @ affine.T
    image = np.rint(-400 + voxels[..., :3] @ slopes).astype(np.int16)
    center = affine @ (40, 40, 30, 1)
    views = draw_views(image, affine, make_row(xyz=center[:3], slice=30))
    (axial, coronal, sagittal), strip = unpack(views)
    steps = (np.arange(VIEW_PX) - (VIEW_PX - 1) / 2) * 48 / VIEW_PX
    across, down = np.meshgrid(steps, steps)
    zero = np.zeros_like(across)
    for picture, place in (
        (axial, (across, down, zero)), (coronal, (across, zero, -down)), (sagittal, (zero, across, -down)),
    ):  # fmt: skip
        expected = to_grays(-400 + np.stack(place, axis=-1) @ slopes)
        assert np.abs(picture.astype(int) - expected).max() <= 1
    levels = -400 + 5.0 * views.step_mm * (np.arange(STRIP) - STRIP // 2)
    assert np.abs(strip[:, 31:33, 31:33].mean(axis=(1, 2)) - to_grays(levels)).max() <= 1


def test_a_large_candidate_fits_into_its_views():
    image = np.zeros((40, 20, 20), dtype=np.int16)
    views = draw_views(image, np.diag([1.0, 1.0, 1.0, 1.0]), make_row(xyz=(10, 10, 20), diameter_mm=60.0))
    assert views.field_mm == 120
    assert 8 * views.step_mm >= 1.5 * 60


def read_page(text):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


def test_what_does_not_fit_is_listed_and_said(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 400, (41, 96, 96)).astype(np.int16)
    affine = np.diag([0.5, 0.5, 2.5, 1.0])
    rows = [make_row(n, (20.0, 20.0, 50.0), probability=1 / n) for n in range(1, 31)]
    for most_mb, pictured in ((8, 30), (0.5, None), (0.001, 0)):
        write_candidate_page(tmp_path / "p.html", "ct", make_found(rows), image, affine, most_mb)
        text = (tmp_path / "p.html").read_text()
        shown = read_page(text)["candidates"]
        assert [one["row"]["number"] for one in shown] == list(range(1, 31))
        sizes = [len(one["views"]["data"]) for one in shown if one["views"]]
        assert sum(sizes) <= most_mb * MEBIBYTE
        assert [one["views"] is not None for one in shown] == [n < len(sizes) for n in range(30)]
        assert text.count("<tr>") > 30
        if pictured is None:
            assert 3 < len(sizes) < 30
            assert f"Only the {len(sizes)} most probable candidates have pictures" in text
            assert f"The other {30 - len(sizes)} are listed without" in text
        else:
            assert len(sizes) == pictured
            assert ("No candidate has pictures" in text) == (pictured == 0)


def test_texts_are_no_markup_and_a_scan_without_candidates_says_what_that_means(tmp_path):
    evil = "</script><script>alert(1)</script>"
    found = make_found([make_row()], warnings=(f"left out: {evil}",), classifier=evil)
    image, affine = np.zeros((41, 20, 20), np.int16), np.eye(4)
    write_candidate_page(tmp_path / "p.html", evil, found, image, affine, 8)
    text = (tmp_path / "p.html").read_text()
    assert "<script>alert(1)" not in text
    assert len(re.findall("<script>", text)) == 2
    write_candidate_page(tmp_path / "p.html", "ct", make_found([]), image, affine, 8)
    assert "This does not mean that there is no nodule" in (tmp_path / "p.html").read_text()


def infer_command(*arguments):
    result = CliRunner().invoke(commands(), ["infer", *map(str, arguments), "--provider", "cpu"])
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


@pytest.fixture
def run(tmp_path):
    """Segments two scans, one with a ball; returns the files of pages."""
    z, y, x = np.indices((20, 64, 64))
    for name, has_ball in (("p 1/a#1", True), ("p 1/b", False)):
        voxels = np.full((20, 64, 64), -850.0)
        if has_ball:
            voxels[((z - 10) * 1.25) ** 2 + ((y - 30) * 0.8) ** 2 + ((x - 20) * 0.8) ** 2 <= 16] = 0
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", voxels.astype(np.int16), (1.25, 0.8, 0.8))
    model = write_lung_model(tmp_path / "lung.onnx")
    judge = write_classifier(tmp_path / "cls.onnx", card=CROP_CARD | TUNED)
    out = tmp_path / "out"

    def run(*options):
        code, text = infer_command(model, tmp_path / "scans", "--out", out, *options)
        assert code == 0, text
        return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.html"))

    run.out, run.judge, run.model, run.scans = out, judge, model, tmp_path / "scans"
    return run


def test_a_run_writes_a_page_for_each_scan_and_one_of_all(run):
    pages = run("--classifier", run.judge)
    assert pages == ["candidates.html", "p 1/a#1.candidates.html", "p 1/b.candidates.html"]
    text = (run.out / "candidates.html").read_text()
    assert 'href="./p%201/a%231.candidates.html"' in text
    assert "at or above 0.900, about 1 false mark a scan" in text
    answers = [one["answer"] for one in json.loads((run.out / "summary.json").read_text())["outcomes"]]
    assert answers[0].startswith("candidates of nodules: ")
    assert " at 0.900 or above (about 1 false mark a scan); " in answers[0]
    assert answers[1] == "candidates of nodules: none"
    page = read_page((run.out / "p 1" / "a#1.candidates.html").read_text())
    assert (page["scan"], len(page["candidates"])) == ("a#1", 1)
    assert page["thresholds"] == [
        {"rate": 1.0, "threshold": 0.9, "sensitivity": 0.7},
        {"rate": 4.0, "threshold": 0.5, "sensitivity": None},
    ]
    assert page["candidates"][0]["views"]
    assert run("--classifier", run.judge, "--viewer-mb", "0") == ["candidates.html"]
    text = (run.out / "candidates.html").read_text()
    assert "2 of the scans have no page" in text
    assert "href=" not in text
    assert run("--candidates") == pages
    assert run() == [], "pages go with the candidates, and so does that of all scans, whose links would be dead"
    assert not list(run.out.glob("*candidates*"))


def test_a_scan_whose_candidates_are_gone_is_segmented_again(run):
    """Skipped, it would be missing from the table, and `froc` would take that for a scan in which nothing was found."""
    run("--candidates")
    table = (run.out / "candidates.csv").read_text()
    assert "a#1" in table
    (run.out / "p 1" / "a#1.candidates.json").unlink()
    run("--candidates")
    assert (run.out / "candidates.csv").read_text() == table
    outcomes = json.loads((run.out / "summary.json").read_text())["outcomes"]
    assert {one["name"]: one["status"] for one in outcomes} == {"p 1/a#1.nii.gz": "done", "p 1/b.nii.gz": "skipped"}


def test_a_run_removes_what_a_killed_one_left_of_its_tables(run):
    run("--candidates")
    ours = [run.out / f".{name}.0123abcd.part" for name in ("candidates.html", "candidates-0-of-2.csv", "summary.json")]
    others = [run.out / ".notes.json.0123abcd.part", run.out / "p 1" / ".candidates.html.0123abcd.part"]
    for path in (*ours, *others):
        path.touch()
    with try_claim(run.out, "run.of-another-one"):  # which may be about to write them
        code, text = infer_command(run.model, run.scans, "--out", run.out, "--candidates")
        assert code, text
    assert all(path.exists() for path in (*ours, *others))
    run("--candidates")
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_the_page_says_what_the_probability_is(run):
    run("--candidates")
    text = " ".join((run.out / "p 1" / "a#1.candidates.html").read_text().split())
    assert "No classifier judged them: the probability is the mean of the segmentation's own" in text


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (None, "cls.onnx."),
        ({"temperature": 2.0, "shift": -1.0}, "cls.onnx, calibrated by <code>tune</code>."),
        (
            {"temperature": 2.0, "shift": -1.0, "segmentation_weight": 0.7},
            "<code>tune</code> together with the mean of the segmentation's own in the candidate.",
        ),
    ],
)
def test_the_page_says_whose_the_probability_is(calibration, said, tmp_path):
    found = make_found([make_row()], calibration=calibration)
    write_candidate_page(tmp_path / "p.html", "ct", found, np.zeros((4, 8, 8), np.int16), np.eye(4), 1.0)
    assert said in " ".join((tmp_path / "p.html").read_text().split()).replace("&#39;", "'")


def test_a_size_without_candidates_is_refused(tmp_path):
    model = write_model(tmp_path / "m.onnx", {"lung": 1})
    code, text = infer_command(model, tmp_path, "--viewer-mb", "3")
    assert code
    assert "--viewer-mb: pages of candidates need --classifier, --candidates" in text
    code, text = infer_command(model, tmp_path, "--candidates", "--viewer-mb", "201")
    assert code
    assert "--viewer-mb 201: must be from 0 to 200" in text


def test_no_scan_may_take_the_name_of_the_page():
    assert is_candidate_table("candidates.html")
    assert is_candidate_table("candidates-0-of-2.html")
