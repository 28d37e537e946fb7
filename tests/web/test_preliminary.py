"""Masks appear as they are made: slices that are labeled are shown, and marked until the model's rules are applied."""

import contextlib
import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.web.entries import Entry, ViewRequest, find_entries
from slicemill.web.sections import cut_section
from slicemill.web.serve.cases import Arriving
from slicemill.web.serve.records import LABEL
from tests.infer.networks import CARD, SIDE, write_threshold
from tests.web.browser import Shown
from tests.web.jobs import HU, dropping, serving_jobs, write_nifti
from tests.web.made import SHAPE, make_image, make_mask
from tests.web.rendering import render
from tests.web.served import serving
from tests.web.test_page import PIXEL_MM, REGIONS, WINDOW

pytestmark = pytest.mark.slow
LARGE, SMALL = (slice(3, 6), slice(8, 14), slice(4, 12)), (slice(1, 2), slice(3, 5), slice(3, 5))
Z = 4
"""A slice with both labels."""
CAPTION = "document.querySelector('[data-plane=axial] .caption')?.textContent"


def test_slices_are_announced_as_they_are_labeled_and_again_after_the_rules(tmp_path, monkeypatch):
    hu = np.full((8, SIDE, SIDE), -80, dtype=np.int16)
    hu[LARGE] = hu[SMALL] = HU
    announced = []
    add = Arriving.add

    def record(self, z, count):
        add(self, z, count)
        if self.path.name == LABEL:
            announced.append((z, self._read(z, count)))

    monkeypatch.setattr(Arriving, "add", record)
    (tmp_path / "private").mkdir()
    model = write_threshold(tmp_path / "net.onnx", card=f"{CARD}postprocess = {{min_lesion_ml = 0.1}}\n")
    with serving_jobs([model], tmp_path / "private") as served, dropping(served) as page:
        state = page.finish(write_nifti(tmp_path / "a.nii", hu))
        mask = nib.Nifti1Image.from_bytes(gzip.decompress(page.result(state, "segmentation.nii.gz")))
        progress = page.client.get(f"/api/cases/{state['id']}/progress").json()
    final = np.asarray(mask.dataobj).T
    assert not final[SMALL].any()
    assert final[LARGE].all()
    single = [z for z, sections in announced if len(sections) == 1]
    assert 1 in single, "a slice that the rules change"
    for z, sections in announced[: len(single)]:  # on a busy machine, read after the rules were applied
        assert np.array_equal(sections[0], hu[z] == HU) or np.array_equal(sections[0], final[z])
    last = announced[len(single) :]
    assert np.array_equal(np.concatenate([sections for _, sections in last]), final)
    assert next(z for z, _ in last) == 0
    assert progress["masks"][0]["is_complete"]
    assert progress["masks"][0]["preliminary"] == []


@pytest.fixture
def arriving(tmp_path):
    """The labels of a scan that is segmented; there is no tumor in them before the rules."""
    (make_mask() > 0).astype(np.uint8).tofile(tmp_path / LABEL)
    return Arriving(tmp_path / LABEL, SHAPE, np.uint8)


@contextlib.contextmanager
def looking(browser, files, arriving):
    """Show the slice Z of a case whose mask arrives."""
    source = find_entries(ViewRequest(path=files[0], masks=(files[1],), labels=LITS_LABELS))[0].open()
    (mask,) = source.masks
    volume = replace(mask.source, slabs=arriving.slabs, has_preliminary=True)
    case = replace(source, masks=(replace(mask, source=volume),))
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    with serving([Entry(name="a", case_id="a", open=lambda: case)]) as served:
        try:
            shown = Shown(context.new_page(), served)
            shown.page.goto(served.access.url)
            shown.wait(f"{CAPTION} === '{caption(SHAPE[0] // 2)}'")
            shown.press("Home", *["ArrowUp"] * Z)
            yield shown
            assert shown.faults == [], shown.faults
        finally:
            arriving.fail("the test has ended.")
            context.close()


def test_parts_are_shown_if_another_mask_is_complete_while_they_are_looked_for(browser, files, arriving):
    source = find_entries(ViewRequest(path=files[0], masks=(files[1], files[1]), labels=LITS_LABELS))[0].open()
    first, second = source.masks
    late = replace(second, source=replace(second.source, slabs=arriving.slabs))
    case = replace(source, masks=(first, late))
    context = browser.new_context()
    with serving([Entry(name="a", case_id="a", open=lambda: case)]) as served:
        try:
            shown = Shown(context.new_page(), served)
            held = []
            shown.page.route("**/parts/0/**", lambda route: held.append(route))  # noqa: PLW0108 (a method of C has no signature)
            shown.page.goto(served.access.url)
            while not held:
                shown.page.wait_for_timeout(20)
            arriving.add_all()
            shown.wait("document.querySelector('#reading').hidden")
            held[0].continue_()
            shown.wait_until_read()
            assert "2 lesions of tumor" in shown.text("#parts-text")
            assert shown.faults == []
        finally:
            arriving.fail("the test has ended.")
            context.close()


def caption(z):
    return f"axial {z + 1} of {SHAPE[0]}"


def expected(shown, mask, plane="axial", index=Z):
    sections = (cut_section(volume, plane, index) for volume in (make_image(), mask))
    canvas = shown.pixels(plane).shape[:2]
    return render(*sections, canvas=canvas, pixel_mm=PIXEL_MM[plane], width=2, regions=REGIONS, window=WINDOW)


def test_a_labeled_slice_is_shown_and_marked_until_the_rules_are_applied(browser, files, arriving):
    nothing, before = np.zeros(SHAPE, dtype=np.uint8), (make_mask() > 0).astype(np.uint8)
    with looking(browser, files, arriving) as shown:
        assert shown.caption() == caption(Z)
        np.testing.assert_array_equal(shown.pixels(), expected(shown, nothing))
        arriving.add(Z, 1)
        shown.wait(f"/preliminary/.test({CAPTION})")
        shown.settle()
        np.testing.assert_array_equal(shown.pixels(), expected(shown, before))
        np.testing.assert_array_equal(shown.pixels("coronal"), expected(shown, nothing, "coronal", SHAPE[1] // 2))
        assert shown.page.locator("#parts tbody tr").count() == 0, "nothing is counted yet"
        shown.press("ArrowUp")
        assert shown.caption() == caption(Z + 1)
        np.testing.assert_array_equal(shown.pixels(), expected(shown, nothing, index=Z + 1))
        make_mask().tofile(arriving.path)
        arriving.add_all()
        shown.wait_until_read()
        shown.press("Home", *["ArrowUp"] * Z)
        assert shown.caption() == caption(Z)
        np.testing.assert_array_equal(shown.pixels(), expected(shown, make_mask()))


def test_preliminary_slices_go_when_the_mask_fails(browser, files, arriving):
    with looking(browser, files, arriving) as shown:
        arriving.add(Z, 1)
        shown.wait(f"/preliminary/.test({CAPTION})")
        arriving.fail("the model stopped.")
        shown.wait("/the model stopped/.test(document.querySelector('#labels').textContent)")
        shown.settle()
        assert shown.caption() == caption(Z)
        np.testing.assert_array_equal(shown.pixels(), expected(shown, np.zeros(SHAPE, dtype=np.uint8)))
