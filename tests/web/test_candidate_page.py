"""The list of candidates, opened as a file: pixels, threshold, decisions, and that it needs no server."""

import csv

import numpy as np
import pytest

from slicemill.ct.page_slices import LOW_HU, STEP_HU, to_grays
from slicemill.ct.window import Window
from slicemill.infer.candidates.page import write_candidate_page
from slicemill.measure.evaluation.findings import read_points
from tests.infer.test_candidate_page import make_found, make_row
from tests.web.browser import read_canvas
from tests.web.test_page import AXE
from tests.web.test_report_page import Opened

pytestmark = pytest.mark.slow
NAME = "p1/ct <b>"
SIDE, SLICES = 96, 41
PROBABILITIES = (0.9, 0.7, 0.7, 0.2)
THRESHOLDS = {"4": 0.7, "1": 0.9}


def make_image():
    return np.random.default_rng(3).integers(-1000, 400, (SLICES, SIDE, SIDE)).astype(np.int16)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Four candidates, the third one with malignancy; the pictures of the last do not fit."""
    rows = [
        make_row(n, (0.5 * 47.5, 0.5 * 47.5, 2.5 * 20 + n / 8), probability=value, malignancy=0.25 if n == 3 else None)
        for n, value in enumerate(PROBABILITIES, start=1)
    ]
    path = tmp_path_factory.mktemp("page") / "ct.candidates.html"
    found = make_found(rows, thresholds=THRESHOLDS, sensitivity={"1": 0.5, "4": 0.9})
    write_candidate_page(path, NAME, found, make_image(), np.diag([0.5, 0.5, 2.5, 1.0]), 0.28)
    return path


@pytest.fixture
def opened(browser, page):
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    one = Opened(context.new_page()).open(page)
    one.page.wait_for_selector(".candidate canvas")
    one.settle()
    yield one
    assert one.faults == []
    context.close()


def move(opened, threshold):
    opened.page.fill(".candidate-threshold input", str(threshold))
    opened.settle()
    return opened.page.inner_text(".candidate-count")


def folded(opened):
    return opened.page.eval_on_selector_all(".candidate", "all => all.map((one) => !one.open)")


def state(opened):
    return opened.page.inner_text(".candidate-state")


def test_the_pictures_are_the_slice_in_the_chosen_window(opened):
    hu = (LOW_HU + STEP_HU * to_grays(make_image()[20]).astype(np.int16)).astype(np.int16)
    for number, (low, high, name) in enumerate(((-1350, 150, "Lung"), (-20, 180, "Liver")), start=1):
        opened.page.select_option(".candidates select", label=name)
        shown = read_canvas(opened.page, f"details:nth-of-type({number}) canvas")  # all have the same center
        np.testing.assert_array_equal(shown[..., 0], Window(low, high).to_gray(hu))
    assert opened.page.inner_text("h1") == NAME, "names are text"
    assert opened.page.locator(".candidate >> nth=0 >> canvas").count() == 3 + 9
    opened.page.locator(".candidate summary").nth(3).click()
    assert "do not fit" in opened.page.inner_text(".candidate >> nth=3")
    assert "Only the 3 most probable candidates have pictures" in opened.page.inner_text("body")


def test_the_threshold_folds_and_counts(opened):
    end = " of nodules found on the tuning cases"
    text = opened.page.inner_text(".candidate-count")
    assert text == f"3 of 4 candidates at 0.700 or above; about 4 false marks a scan or fewer, 0.90{end}"
    assert folded(opened) == [False, False, False, True]
    at_least = f"1 of 4 candidates at 0.800 or above; about 1 to 4 false marks a scan, at least 0.50{end}"
    assert move(opened, 0.8) == at_least
    assert folded(opened) == [False, True, True, True]
    at_most = f"0 of 4 candidates at 0.950 or above; about 1 false mark a scan or fewer, at most 0.50{end}"
    assert move(opened, 0.95) == at_most
    assert opened.page.locator(".candidate summary:visible").count() == 4, "folded, not gone"
    all_of_them = f"4 of 4 candidates at 0.100 or above; more than about 4 false marks a scan, at least 0.90{end}"
    assert move(opened, 0.1) == all_of_them
    opened.page.get_by_role("button", name="About 1 false mark a scan").click()
    assert folded(opened) == [False, True, True, True]
    for threshold in (0.1, 0.2, 0.7, 0.700001, 0.9, 1.0):
        count = sum(value >= threshold for value in PROBABILITIES)
        assert move(opened, threshold).startswith(f"{count} of 4")
        assert folded(opened).count(False) == count


def test_decisions_are_saved_scored_and_loaded(opened, page, tmp_path):
    assert state(opened) == "0 kept, 0 rejected, 4 not decided."
    opened.page.focus(".candidate summary")
    opened.press("k", "n", "r", "n", "r", "r")
    comment = '=1+1, "thin" vessel'
    opened.page.locator(".candidate input").nth(1).fill(comment)
    opened.press("k", "n")  # typed, no keys of the list
    comment += "kn"
    assert state(opened) == "1 kept, 1 rejected, 2 not decided. Not saved yet."
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Save decisions").click()
    assert download.value.suggested_filename == "p1_ct_b_.decisions.csv"
    download.value.save_as(tmp_path / "d.csv")
    assert state(opened) == "1 kept, 1 rejected, 2 not decided."
    rows = list(csv.DictReader((tmp_path / "d.csv").read_text().splitlines()))
    assert [row["decision"] for row in rows] == ["keep", "reject", "", ""]
    assert [row["comment"] for row in rows] == ["", f"'{comment}", "", ""], "no spreadsheet computes it"
    assert [row["malignancy"] for row in rows] == ["", "", "0.25", ""]
    points = read_points(tmp_path / "d.csv", "probability")
    assert list(points) == [NAME]
    np.testing.assert_allclose(points[NAME][:, 3], PROBABILITIES)
    opened.open(page)
    opened.page.set_input_files(".candidates input[type=file]", tmp_path / "d.csv")
    opened.page.wait_for_function("() => /loaded/.test(document.querySelector('.candidate-state').textContent)")
    assert state(opened) == "1 kept, 1 rejected, 2 not decided. 4 loaded from d.csv."
    assert opened.page.locator(".candidate input").nth(1).input_value() == comment
    for row, away in zip(rows, (0.004, -0.004, 0, 0.02), strict=True):  # a spreadsheet that rounds; the last is too far
        row.update({column: str(float(row[column]) + away) for column in ("coordX", "coordY", "coordZ")})
    rows[0]["decision"], rows[3]["decision"] = "reject", "keep"
    with (tmp_path / "r.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    opened.page.set_input_files(".candidates input[type=file]", tmp_path / "r.csv")
    opened.page.wait_for_function("() => /r.csv/.test(document.querySelector('.candidate-state').textContent)")
    loaded = "3 loaded from r.csv; 1 rows are of no candidate of this page."
    assert state(opened) == f"0 kept, 2 rejected, 2 not decided. {loaded}"
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    opened.page.set_input_files(".candidates input[type=file]", tmp_path / "x.csv")
    opened.page.wait_for_function("() => /no table/.test(document.querySelector('.candidate-state').textContent)")


def test_a_page_with_decisions_asks_before_it_is_left(opened, page):
    asked = []
    opened.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    opened.page.get_by_role("button", name="Keep", exact=True).first.click()
    opened.page.goto("about:blank")
    assert asked == ["beforeunload"]
    opened.open(page)


@pytest.mark.parametrize("width", [320, 1000])
def test_it_fits_and_axe_finds_no_fault(browser, page, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, bypass_csp=True)
    one = Opened(context.new_page()).open(page)
    one.page.wait_for_selector(".candidate canvas")
    for control in one.page.locator(".candidates button:visible, .candidates select, .candidates canvas").all():
        box = control.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width + 0.5
    if AXE.exists():
        one.page.evaluate(AXE.read_text())
        found = one.page.evaluate("axe.run('.candidates', {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa']})")
        assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found["violations"]] == []
    context.close()


def test_a_browser_that_cannot_unpack_shows_the_table(browser, page):
    context = browser.new_context()
    one = Opened(context.new_page())
    one.page.add_init_script("delete window.DecompressionStream")
    one.open(page)
    assert one.page.is_hidden(".candidates")
    assert one.page.is_visible(".candidates-failed")
    assert one.page.locator("table.sortable tbody tr").count() == 4
    context.close()
