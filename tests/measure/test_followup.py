import json
import re

import numpy as np
import pytest

from slicemill.ct.phantom import write_nifti
from tests.measure.conftest import SPACING


def scan(*lesions):
    """A liver with tumors: each (z, y, x, side)."""
    label = np.ones((14, 40, 44), np.uint8)
    for z, y, x, side in lesions:
        label[z : z + 3, y : y + side, x : x + side] = 2
    return label


@pytest.fixture
def page_of(command):
    """Compare two masks, and return the page and what was printed."""

    def compare(folder, first, second, *words):
        names = [folder / "<b>first.nii.gz", folder / "second.nii.gz"]
        for name, lesions in zip(names, (first, second), strict=True):
            write_nifti(name, scan(*lesions), SPACING)
        done = command("compare", *names, "--labels", "liver=1,tumor=2", "--out", folder / "out", *words)
        assert done.exit_code == 0, done.output
        return (folder / "out" / "compare.html").read_text(), done.output

    return compare


def test_the_page_shows_both_times_of_every_target_and_each_new_lesion(page_of, tmp_path):
    page, printed = page_of(tmp_path, [(2, 4, 4, 12), (8, 25, 25, 11)], [(2, 4, 4, 14), (8, 4, 30, 6)])
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert [caption.partition(":")[0] for caption in captions] == [
        "Target 1, baseline",
        "Target 1, follow-up",
        "Target 2, baseline",
        "New at follow-up",
    ]
    assert "Target 2, follow-up: the lesion has vanished." in page
    assert page.count("data:image/jpeg;base64,") == 4
    assert "PD (progressive disease)" in page
    assert "This is a computation and not a diagnosis." in page
    assert f"page: {tmp_path / 'out' / 'compare.html'}" in printed


def test_a_target_that_split_is_shown_with_its_parts_and_one_that_merged_in_what_it_became(page_of, tmp_path):
    two, one = [(2, 4, 4, 12), (2, 4, 18, 11)], [(2, 4, 4, 26)]
    split, _ = page_of(tmp_path / "a", one, two)
    assert split.count("<figcaption>Target 1, follow-up") == 2
    merged, _ = page_of(tmp_path / "b", two, one)
    assert re.findall("<figcaption>Target ., follow-up: lesion (.)", merged) == ["1", "1"]


def test_names_are_escaped_and_the_page_asks_for_nothing(page_of, tmp_path):
    page, _ = page_of(tmp_path, [], [])
    assert "Neither time point has a lesion." in page
    assert "There is no target at baseline, and no new lesion." in page
    assert "<b>first" not in page
    assert "&lt;b&gt;first.nii.gz" in page
    assert re.search(r"(?:src|href)=\"(?!data:)", page) is None
    assert "default-src 'none'" in page


def test_pictures_are_drawn_on_the_scans_where_they_are_given(page_of, tmp_path):
    for name in ("one", "two"):
        write_nifti(tmp_path / f"{name}.nii", np.full((14, 40, 44), 60, np.int16), SPACING)
    images = ["--baseline-image", tmp_path / "one.nii", "--followup-image", tmp_path / "two.nii"]
    bare, _ = page_of(tmp_path, [(2, 4, 4, 12)], [(2, 4, 4, 12)])
    drawn, _ = page_of(tmp_path, [(2, 4, 4, 12)], [(2, 4, 4, 12)], *images)
    pictures = [re.findall('base64,([^"]*)', page) for page in (bare, drawn)]
    assert len(pictures[0]) == len(pictures[1]) == 2
    assert not set(pictures[0]) & set(pictures[1])
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["sources"]["followup"]["source"]["image"]["name"] == "two.nii"
    assert record["recist"]["category"] == "SD"


def test_a_change_from_nothing_is_none(page_of, tmp_path):
    page, _ = page_of(tmp_path, [], [(2, 4, 4, 12)])
    assert "no change can be computed" in page
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["tumor_volume_change_percent"] is None


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_scan_of_another_grid_is_refused(page_of, name, tmp_path):
    write_nifti(tmp_path / "other.nii", np.zeros((14, 40, 45), np.int16), SPACING)
    option = {"first": "--baseline-image", "second": "--followup-image"}[name]
    with pytest.raises(AssertionError, match="must have the same grid as its mask"):
        page_of(tmp_path, [(2, 4, 4, 12)], [(2, 4, 4, 12)], option, tmp_path / "other.nii")


def test_of_many_new_lesions_the_first_are_shown_and_the_others_counted(page_of, tmp_path):
    page, _ = page_of(tmp_path, [], [(2, y, x, 2) for y in range(2, 38, 5) for x in (4, 14)])
    assert page.count("<figcaption>New at follow-up") == 12
    assert "<p>4 more new lesions are in the table only.</p>" in page
