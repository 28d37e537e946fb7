"""`slicemill serve NAME.nodules`: the candidates in words, as a table, and as files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from slicemill.infer.candidates.records import CandidateRow, ScanCandidates
from slicemill.store.nodules_file import write_bundle
from slicemill.web.serve.nodules import answer_candidates
from slicemill.web.serve.records import CANDIDATES_CSV, CANDIDATES_JSON, CANDIDATES_PAGE
from tests.infer.networks import CROP_CARD, write_classifier, write_lung_model
from tests.web.jobs import dropping, serving_jobs, write_nifti
from tests.web.test_page import AXE
from tests.web.test_serve_page import RULES, showing

BALLS = ((8, 20, 20, 6.0, 60), (20, 40, 25, 4.0, 0), (24, 30, 50, 3.0, -150))
"""z, y, x, radius in mm, HU."""
THRESHOLDS = {"1": 0.9, "4": 0.0005}


def make_row(number, probability, diameter_mm, z):
    return CandidateRow(
        number=number, x_mm=0, y_mm=0, z_mm=0, probability=probability, diameter_mm=diameter_mm, volume_ml=0.1, slice=z,
        peak=0.5,
    )  # fmt: skip


def make_found(thresholds, *rows, warnings=()):
    return ScanCandidates(
        scan="m.nii.gz", model_sha256="a", classifier="c", classifier_sha256="b", thresholds=thresholds, found=0,
        outside_organ=0, merged=0, cut=0, warnings=warnings, candidates=rows,
    )  # fmt: skip


def test_the_answer_counts_what_reaches_the_lowest_threshold():
    rows = (make_row(1, 0.93, 5.0, 3), make_row(2, 0.5, 8.26, 9), make_row(3, 0.1, 30.0, 5))
    answer = answer_candidates(make_found({"4": 0.5, "1": 0.9}, *rows, warnings=("left out: 2 candidates",)))
    assert answer.kind == "found"
    assert answer.headline == (
        "2 candidates of nodules above the threshold, largest 8.3 mm (slice 10), highest probability 0.93"
    )
    assert "Below the threshold of 0.500, the list has 1 more." in answer.details
    assert "Warning: left out: 2 candidates." in answer.details
    answer = answer_candidates(make_found({}, *rows))
    assert answer.headline.startswith("3 candidates of nodules, largest 30.0 mm (slice 6)")
    assert "every candidate counts" in " ".join(answer.details)
    answer = answer_candidates(make_found({"1": 0.99}, *rows))
    assert (answer.kind, answer.headline) == ("none", "No candidate of a nodule above the threshold")
    assert "does not mean that there is no nodule" in answer.details[0]
    assert "the list has 3 more" in answer.details[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    judge = write_classifier(folder / "cls.onnx", malignancy=True, card=CROP_CARD | {"thresholds": THRESHOLDS})
    write_bundle(folder / "lung.nodules", write_lung_model(folder / "lung.onnx"), judge)
    (folder / "private").mkdir()
    with serving_jobs([folder / "lung.nodules", folder / "lung.onnx"], folder / "private") as one:
        yield one


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Lung with three balls; voxels as tests/web/jobs.py has them."""
    hu = np.full((30, 64, 64), -850, dtype=np.int16)
    z, y, x = np.indices(hu.shape)
    for cz, cy, cx, radius, value in BALLS:
        hu[((z - cz) * 2.5) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = value
    return write_nifti(tmp_path_factory.mktemp("scan") / "ct.nii.gz", hu)


@pytest.mark.slow
def test_the_files_have_the_candidates_and_a_single_slice_says_why_it_has_none(served, scan, tmp_path):
    with dropping(served) as client:
        state = client.finish(scan)
        names = [file["name"] for file in state["files"]]
        assert {CANDIDATES_PAGE, CANDIDATES_CSV, CANDIDATES_JSON} <= set(names)
        found = json.loads(client.result(state, CANDIDATES_JSON))
        assert len(found["candidates"]) == 3
        rows = list(csv.DictReader(client.result(state, CANDIDATES_CSV).decode().splitlines()))
        assert {row["seriesuid"] for row in rows} == {"scan"}
        assert [float(row["probability"]) for row in rows] == [one["probability"] for one in found["candidates"]]
        places = {(one["slice"], round(one["y_mm"]), round(one["x_mm"])) for one in found["candidates"]}
        assert {place[0] for place in places} == {z for z, *_ in BALLS}
        above = sum(one["probability"] >= 0.0005 for one in found["candidates"])
        assert state["answer"]["headline"].startswith(f"{above} candidate")
        state = client.finish(scan, model=1)
        assert CANDIDATES_JSON not in [file["name"] for file in state["files"]]
        assert "candidate" not in state["answer"]["headline"]
        Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, axis=1)).save(tmp_path / "p.png")
        picture = {"low": -1000, "high": 400, "left": 0, "top": 0, "right": 64, "bottom": 64}
        state = client.finish(tmp_path / "p.png", picture=picture)
        assert any("a single slice has none" in text for text in state["missing"])
        for job in client.client.get("/api/server").json()["jobs"]:
            client.end(job["id"])


@pytest.mark.slow
def test_the_table_the_slider_and_the_answer_agree_and_a_click_jumps(browser, served, scan):
    with showing(browser, served, bypass_csp=True) as shown:
        assert "judged by a classifier" in shown.text("#model-card")
        shown.choose(scan)
        headline = shown.wait_until_done()
        shown.wait("!document.querySelector('#candidates-box').hidden")
        probabilities = shown.page.eval_on_selector_all(
            "#candidates-box tbody tr", "rows => rows.map((row) => Number(row.cells[1].textContent))"
        )
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)

        assert (shown.page.input_value("#low"), shown.page.input_value("#high")) == ("-1350", "150")

        def count():
            rows = shown.page.locator("#candidate-table tbody tr").count()
            below = shown.page.locator("#candidate-table-below tbody tr").count()
            assert rows + below == 3
            text = shown.text("#candidate-text")
            assert text.startswith(f"{rows} of 3 candidates at ")
            return rows, text

        rows, text = count()
        assert headline.startswith(f"{rows} candidate{'s' * (rows != 1)} of nodules above the threshold, largest 12.")
        assert "about 4 false marks a scan or fewer" in text
        shown.page.get_by_role("button", name="About 1 false mark a scan").click()
        assert count()[1].startswith(f"{sum(value >= 0.9 for value in probabilities)} of 3 candidates at 0.900")
        shown.page.fill("#candidate-threshold", "0")
        assert count()[0] == 3
        shown.page.fill("#candidate-threshold", "1")
        rows, text = count()
        assert rows == sum(value >= 1 for value in probabilities)
        shown.page.click("#candidates-below-text")
        last = shown.page.locator("#candidate-table-below tbody tr").last
        expected = last.locator("td").nth(3).inner_text()
        last.click()
        shown.settle()
        assert shown.caption().startswith(f"axial {expected} of 30")
        assert last.get_attribute("class") == "chosen"
        if AXE.exists():
            shown.page.evaluate(AXE.read_text())
            found = shown.page.evaluate(RULES)["violations"]
            assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found] == []
        shown.leave()
        assert shown.page.is_hidden("#candidates-box")


@pytest.mark.slow
def test_each_scan_opens_in_the_window_of_its_model(browser, served, scan):
    with showing(browser, served) as shown:
        for model, low in (("0", "-1350"), ("1", "-100")):
            shown.page.select_option("#model", model)
            shown.choose(scan)
            shown.wait_until_done()
            assert shown.page.input_value("#low") == low
            shown.page.click("#another")
            shown.wait("document.querySelector('#kept').checkVisibility()")
        are_known = []

        def answer(route):
            state = route.fetch().json()
            route.fulfill(json=state if are_known else state | {"models": None})

        shown.page.route("**/api/server", answer)  # a scan that is there before the page knows the models
        shown.page.add_init_script("const later = setTimeout; window.setTimeout = (f, ms) => later(f, ms * 1e4)")
        shown.page.reload()
        shown.wait("document.querySelector('#kept').checkVisibility()")
        are_known.append(True)
        shown.page.locator("#kept-list button:has-text('Open')").first.click()
        shown.wait("!document.querySelector('#main').hidden")
        assert shown.page.input_value("#low") == "-1350"
