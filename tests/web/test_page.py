"""The page in a browser: pixels, positions, keys, and that a person can use all of it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slicemill.ct.geometry import voxel_to_mm
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.ct.lesions import find_lesions
from slicemill.ct.pictures import ORGAN_COLOR, TUMOR_COLOR
from slicemill.web.entries import ViewRequest, find_entries
from slicemill.web.marks import Marks
from slicemill.web.sections import PLANES, cut_section
from tests.web.browser import showing
from tests.web.made import SHAPE, SPACING, make_affine, make_image, make_mask, write_scan
from tests.web.rendering import render, whole_picture
from tests.web.served import serving

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]
WINDOW = (-100, 240)
REGIONS = {1: ((1, 2), ORGAN_COLOR, (7, 4)), 2: ((2,), TUMOR_COLOR, None)}
PIXEL_MM = {
    "axial": (SPACING[1], SPACING[2]),
    "coronal": (SPACING[0], SPACING[2]),
    "sagittal": (SPACING[0], SPACING[1]),
}
EXTENT = dict(zip(PLANES, SHAPE, strict=True))


@pytest.fixture(scope="module")
def served(entries):
    with serving(entries) as one:
        yield one


@pytest.fixture
def shown(browser, served):
    with showing(browser, served) as one:
        yield one


def expected(shown, plane, scale=1, **style):
    """Return what the canvas of a plane must show at the slice that its caption names."""
    index = int(re.search(r"(\d+) of", shown.caption(plane))[1]) - 1
    sections = (cut_section(volume, plane, index) for volume in (make_image(), make_mask()))
    canvas = shown.pixels(plane).shape[:2]
    width = max(1, round(1.5 * scale + 1e-9))
    settings = {"regions": REGIONS, "window": WINDOW} | style
    return render(*sections, canvas=canvas, pixel_mm=PIXEL_MM[plane], width=width, **settings)


@pytest.mark.parametrize(("scale", "size"), [(1, (1200, 800)), (2, (777, 613))])
def test_pixels_are_those_of_numpy(browser, served, scale, size):
    with showing(browser, served, scale=scale, width=size[0], height=size[1]) as shown:
        for plane in PLANES:
            np.testing.assert_array_equal(shown.pixels(plane), expected(shown, plane, scale))
            assert (shown.pixels(plane) == TUMOR_COLOR).all(axis=2).any()
        shown.press("f", "3")
        lung = (-1350, 150)
        np.testing.assert_array_equal(shown.pixels(), expected(shown, "axial", scale, fill=True, window=lung))
        shown.press("o")
        np.testing.assert_array_equal(
            shown.pixels(), expected(shown, "axial", scale, fill=True, outline=False, window=lung)
        )
        shown.press("m", "1")
        np.testing.assert_array_equal(shown.pixels(), expected(shown, "axial", scale, regions={}))


ORDERS = ["LPS", "RAS", "LAS", "RPI", "SLP", "PIR", "ASL", "IRA"]


@pytest.mark.slow
def test_left_and_right_are_right_in_eight_orders(browser, tmp_path):
    found = []
    for codes in ORDERS:
        scan = write_scan(tmp_path / f"ct-{codes}.nii", make_image(), codes)
        found += find_entries(ViewRequest(path=scan))
    with serving(found) as served, showing(browser, served, width=800, height=600) as shown:
        for codes in ORDERS:
            assert shown.text("#case-name") == f"ct-{codes}.nii"
            for plane in PLANES:
                np.testing.assert_array_equal(shown.pixels(plane), expected(shown, plane, regions={}))
            middle = shown.pixels()[shown.pixels().shape[0] // 2, :, 0].astype(int)
            assert middle[middle > 0].argmax() > middle[middle > 0].argmin()  # brighter to the patient's left
            assert shown.text("[data-plane=axial] .letter.left") == "R"
            assert shown.text("[data-plane=sagittal] .letter.left") == "A"
            assert shown.text("[data-plane=coronal] .letter.top") == "H"
            shown.press("j")
            shown.wait_until_read()


def test_keys_and_wheel_move_slices(shown):
    shown.page.focus("[data-plane=axial]")
    shown.press("Home")
    assert shown.caption() == "axial 1 of 9"
    shown.press("ArrowUp", "ArrowRight", "ArrowUp")
    assert shown.caption() == "axial 4 of 9"
    shown.press("ArrowDown", "ArrowLeft")
    assert shown.caption() == "axial 2 of 9"
    shown.press("End")
    assert shown.caption() == "axial 9 of 9"
    shown.press("PageDown")
    assert shown.caption() == "axial 1 of 9"
    shown.page.hover("[data-plane=axial]")
    shown.page.mouse.wheel(0, -100)
    shown.settle()
    assert shown.caption() == "axial 3 of 9"
    np.testing.assert_array_equal(shown.pixels(), expected(shown, "axial"))
    assert shown.page.input_value("#slice") == "3"
    shown.press("c", "Home")
    assert shown.caption("coronal") == "coronal 1 of 14"
    assert shown.text("#live") == "axial 3 of 9, 88 voxels of tumor" or "axial 3 of 9" in shown.text("#live")


def test_the_table_jumps_and_agrees_with_the_report(shown):
    lesions = find_lesions(make_mask() == 2, make_affine())
    rows = [row.split("\t") for row in shown.page.inner_text("#parts tbody").splitlines() if row.strip()]
    assert len(rows) == len(lesions) == 2
    for row, lesion in zip(rows, lesions, strict=True):
        assert [int(row[0]), int(row[1])] == [lesion.id, lesion.key_z + 1]
        assert float(row[2]) == round(lesion.max_axial_diameter_mm, 1)
        box = tuple(map(slice, lesion.bbox_zyx[:3], lesion.bbox_zyx[3:]))
        assert float(row[4]) == pytest.approx(make_image()[box][make_mask()[box] == 2].mean(), abs=0.5)
    assert "2 lesions of tumor" in shown.text("#parts-text")
    assert shown.caption() == f"axial {lesions[0].key_z + 1} of 9"  # the largest is shown first
    shown.press("n")
    assert shown.caption() == f"axial {lesions[1].key_z + 1} of 9"
    assert shown.text("#parts tr.chosen td") == "2"
    shown.press("n")
    assert shown.caption() == f"axial {lesions[0].key_z + 1} of 9"
    shown.page.click("#parts tbody tr:nth-child(2) button")
    shown.settle()
    assert shown.caption() == f"axial {lesions[1].key_z + 1} of 9"
    x = lesions[1].bbox_zyx[2]
    assert shown.caption("sagittal") == f"sagittal {x + 1} of 20"


def test_the_organ_has_its_tumors_in_volume_and_parts(shown):
    ml = np.prod(SPACING) / 1000
    numbers = [text.split()[0] for text in shown.page.locator(".label-row .number").all_text_contents()]
    voxels = make_mask()
    expected_ml = [(voxels > 0).sum() * ml, (voxels == 2).sum() * ml]
    assert [float(one) for one in numbers] == pytest.approx(expected_ml, rel=0.02)
    shown.page.select_option("#parts-of", label="liver")
    shown.wait("/1 part of liver/.test(document.querySelector('#parts-text').textContent)")


def test_a_label_that_is_hidden_is_not_drawn_and_its_voxels_stay_in_the_organ(shown):
    shown.page.click("#label-0-2")
    shown.settle()
    mask = np.where(make_mask() == 2, 1, make_mask())
    index = int(re.search(r"(\d+) of", shown.caption())[1]) - 1
    picture = render(
        make_image()[index],
        mask[index],
        regions={1: REGIONS[1]},
        canvas=shown.pixels().shape[:2],
        pixel_mm=PIXEL_MM["axial"],
        window=WINDOW,
        width=2,
    )
    np.testing.assert_array_equal(shown.pixels(), picture)


def place_of(shown, plane, column, row):
    """Return the position on the page, CSS pixels, of the middle of a voxel of a section."""
    box = shown.page.locator(f"[data-plane={plane}] .picture").bounding_box()
    shape = cut_section(make_image(), plane, 0).shape
    rows, columns = whole_picture((round(box["height"]), round(box["width"])), shape, PIXEL_MM[plane])
    return (
        box["x"] + np.flatnonzero(columns == column).mean() + 0.5,
        box["y"] + np.flatnonzero(rows == row).mean() + 0.5,
    )


@pytest.mark.parametrize("plane", PLANES)
def test_the_place_under_the_pointer_is_that_of_voxel_to_mm(shown, plane):
    shape = cut_section(make_image(), plane, 0).shape
    row, column = shape[0] // 3, shape[1] // 4
    index = int(re.search(r"(\d+) of", shown.caption(plane))[1]) - 1
    flipped = SHAPE[0] - 1 - row
    z, y, x = {
        "axial": (index, row, column),
        "coronal": (flipped, index, column),
        "sagittal": (flipped, column, index),
    }[plane]
    shown.page.mouse.move(*place_of(shown, plane, column, row))
    text = shown.text("#pointer")
    mm = ", ".join(f"{value:.1f}" for value in voxel_to_mm(make_affine(), (z, y, x)))
    assert f"voxel {x}, {y}, {z}" in text
    assert f"{mm} mm" in text
    assert f"{make_image()[z, y, x]} HU" in text
    shown.page.mouse.down()
    shown.page.mouse.up()
    shown.settle()
    captions = [int(re.search(r"(\d+) of", shown.caption(one))[1]) - 1 for one in PLANES]
    assert captions == [z, y, x]


def test_a_length_is_that_of_the_voxels_in_mm(shown):
    shown.press("d")
    shown.page.mouse.move(*place_of(shown, "axial", 2, 3))
    shown.page.mouse.down()
    shown.page.mouse.move(*place_of(shown, "axial", 8, 7))
    shown.page.mouse.up()
    length = np.hypot(6 * SPACING[2], 4 * SPACING[1])
    assert float(shown.text("#lengths li").split()[0]) == pytest.approx(length, abs=0.15)
    shown.press("Escape")
    assert shown.page.locator("#lengths li").count() == 0


def test_a_length_can_be_measured_with_keys(shown):
    shown.press("d", "Enter", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Enter")
    assert float(shown.text("#lengths li").split()[0]) == round(np.hypot(2 * SPACING[2], SPACING[1]), 1)


@pytest.mark.slow
def test_the_window_follows_presets_fields_and_the_right_button(shown):
    shown.press("2")
    assert (shown.page.input_value("#low"), shown.page.input_value("#high")) == ("-20", "180")
    shown.page.fill("#low", "-50")
    shown.page.keyboard.press("Tab")
    shown.settle()
    assert shown.page.input_value("#preset") == "own"
    np.testing.assert_array_equal(shown.pixels(), expected(shown, "axial", window=(-50, 180)))
    x, y = place_of(shown, "axial", 10, 7)
    shown.page.mouse.move(x, y)
    shown.page.mouse.down(button="right")
    shown.page.mouse.move(x + 20, y + 10)
    shown.page.mouse.up(button="right")
    shown.settle()
    low, high = int(shown.page.input_value("#low")), int(shown.page.input_value("#high"))
    assert (low, high) == (-50 + 10 - 10, 180 + 10 + 10)
    np.testing.assert_array_equal(shown.pixels(), expected(shown, "axial", window=(low, high)))


def test_zoom_keeps_the_place_under_the_pointer_and_0_shows_the_whole_picture(shown):
    before = shown.pixels()
    place = place_of(shown, "axial", 6, 5)
    shown.page.mouse.move(*place)
    text = shown.text("#pointer")
    shown.page.keyboard.down("Control")
    shown.page.mouse.wheel(0, -300)
    shown.page.keyboard.up("Control")
    shown.settle()
    shown.page.mouse.move(place[0] + 1, place[1])
    assert shown.text("#pointer") == text
    assert (shown.pixels() != before).any()
    shown.press("0")
    np.testing.assert_array_equal(shown.pixels(), before)


def test_the_slider_and_the_bar_of_slices_move(shown):
    assert "tumor in 4 of 9 slices" in shown.page.get_attribute("#heat", "aria-label")
    shown.page.fill("#slice", "8")
    shown.settle()
    assert shown.caption() == "axial 8 of 9"
    box = shown.page.locator("#heat").bounding_box()
    shown.page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 5)
    shown.settle()
    assert shown.caption() == "axial 5 of 9"


@pytest.mark.slow
def test_cases_are_flipped_through_and_marked(browser, entries, tmp_path):
    several = [replace(entries[0], name=name, dice=dice, dice_of="tumor") for name, dice in (("a", 0.1), ("b", 0.5))]
    with serving(several, Marks(tmp_path / "marks.csv")) as served, showing(browser, served) as shown:
        assert shown.text("#case-choice option:checked") == "1. a, Dice 0.100"
        shown.press("b")
        shown.wait("document.querySelector('#case-name').textContent === 'b'")
        shown.wait_until_read()
        assert shown.text("#mark-count") == "1 of 2 marked"
        shown.press("k")
        shown.wait_until_read()
        assert shown.text("#case-choice option:checked") == "1. a, Dice 0.100 [bad]"
        assert shown.page.get_attribute("#mark-buttons button:has-text('bad')", "aria-pressed") == "true"
        shown.page.click("#mark-buttons button:has-text('bad')")
        shown.wait("document.querySelector('#mark-count').textContent === '0 of 2 marked'")
        shown.page.click("#next-case")
        shown.wait_until_read()
        assert shown.page.is_disabled("#next-case")
        shown.page.click("#mark-buttons button:has-text('good')")
        shown.wait("document.querySelector('#mark-count').textContent === '1 of 2 marked'")
    assert (tmp_path / "marks.csv").read_text().splitlines() == ["case,mark", "b,good"]


def test_names_from_files_are_text(browser, tmp_path):
    name = "<img src=x onerror=alert(1)>\u202egnp.nii"
    scan = write_scan(tmp_path / name, make_image())
    mask = write_scan(tmp_path / f"mask{name}", make_mask())
    labels = Labels({"<b>organ</b>": 1, "tumor": 2}, None, "tumor")
    found = find_entries(ViewRequest(path=scan, masks=(mask,), labels=labels))
    with serving(found) as served, showing(browser, served) as shown:
        assert shown.text("#case-name") == "<img src=x onerror=alert(1)>\\x202egnp.nii"
        assert shown.page.locator("img").count() == 0
        assert "<b>organ</b>" in shown.page.inner_text("#labels")


def test_a_mask_that_does_not_fit_is_explained(browser, tmp_path):
    scan = write_scan(tmp_path / "ct.nii", make_image())
    mask = write_scan(tmp_path / "mask.nii", make_mask()[:-1])
    with serving(find_entries(ViewRequest(path=scan, masks=(mask,)))) as served:
        context = browser.new_context()
        page = context.new_page()
        page.goto(served.access.url)
        page.wait_for_selector("#labels .problem")
        assert "same shape" in page.text_content("#labels .problem")
        context.close()


def test_without_the_token_the_page_says_what_to_do(browser, served):
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.base)
    page.wait_for_selector("#message:visible")
    assert "Open the address that slicemill printed" in page.text_content("#message")
    assert page.is_hidden("#main")
    context.close()


def test_the_token_leaves_the_address_and_a_reload_works(shown, served):
    assert shown.page.url == f"{served.base}/"
    shown.page.reload()
    shown.wait_until_read()


@pytest.mark.parametrize(("scheme", "size"), [("dark", (1200, 800)), ("light", (320, 640))])
def test_axe_finds_no_fault(browser, served, scheme, size):
    if not AXE.exists():
        pytest.skip("axe-core is not here (npm install in tests/web)")
    with showing(browser, served, scheme=scheme, width=size[0], height=size[1], bypass_csp=True) as shown:
        shown.page.evaluate(AXE.read_text())
        for opens_help in (False, True):
            if opens_help:
                shown.page.click("#help")
            found = shown.page.evaluate(
                "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})"
            )
            faults = [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found["violations"]]
            assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scale"), [(320, 1), (640, 2), (1200, 1)])
def test_nothing_is_cut_off(browser, served, width, scale):
    """640 CSS pixels at 200 % are the width of a 1280-pixel screen."""
    with showing(browser, served, width=width, height=640, scale=scale) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        for control in shown.page.locator("button:visible, select:visible, input:visible").all():
            box = control.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width + 0.5
        if width < 760:
            shown.page.click("#planes button:has-text('Coronal')")
            shown.settle()
            assert shown.page.is_visible("[data-plane=coronal]")
            np.testing.assert_array_equal(shown.pixels("coronal"), expected(shown, "coronal", scale))


def test_the_keys_are_listed_and_every_listed_key_is_connected(shown):
    shown.press("?")
    listed = shown.page.locator("#help-keys kbd").all_text_contents()
    assert {"n", "p", "o", "f", "m", "x", "d", "?", "Esc", "1", "5"} <= set(listed)
    shown.page.keyboard.press("Escape")
    assert shown.page.is_hidden("#help-dialog")


@pytest.mark.slow
def test_a_finger_scrolls_and_two_zoom(browser, served):
    with showing(browser, served, has_touch=True) as shown:
        before = shown.caption()
        x, y = place_of(shown, "axial", 10, 7)
        session = shown.page.context.new_cdp_session(shown.page)

        def touch(kind, *points):
            fingers = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

        touch("touchStart", (x, y))
        touch("touchMove", (x, y - 30))
        touch("touchEnd")
        shown.settle()
        assert int(shown.caption().split()[1]) == int(before.split()[1]) + 2
        whole = shown.pixels()
        touch("touchStart", (x - 20, y), (x + 20, y))
        touch("touchMove", (x - 60, y), (x + 60, y))
        touch("touchEnd")
        shown.settle()
        assert (shown.pixels() != whole).any()


def test_labels_of_lits_are_the_regions_of_the_tests():
    assert LITS_LABELS.regions() == {"liver": [1, 2], "tumor": [2]}
