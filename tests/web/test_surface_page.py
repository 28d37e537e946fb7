"""The 3-D picture: its surfaces as bytes, its sides, its clicks, and that it needs no graphics card."""

import struct
import time
from dataclasses import replace

import numpy as np
import pytest

from slicemill.ct.geometry import voxel_ml
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.lesions import find_lesions
from slicemill.ct.surface import make_surface
from slicemill.web.entries import ViewRequest, find_entries
from slicemill.web.surface_bytes import pack_surface
from tests.web.browser import showing
from tests.web.made import SHAPE, make_affine, make_image, make_mask, write_scan
from tests.web.served import serving
from tests.web.test_page import ORDERS


def unpack(data):
    """Return positions, triangles and normals as the page must read them."""
    count, triangles, *middle, step = struct.unpack_from("<2I4f", data)
    points = np.frombuffer(data, "<i2", 3 * count, 24).reshape(-1, 3) * step + middle
    corners = np.frombuffer(data, "<u2", 3 * triangles, 24 + 6 * count).reshape(-1, 3)
    normals = np.frombuffer(data, np.int8, 3 * count, 24 + 6 * count + 6 * triangles).reshape(-1, 3)
    assert len(data) == 24 + 9 * count + 6 * triangles
    return points, corners, normals


def make_sided_mask():
    """Return uint8[z, y, x]: an organ with a tumor on the patient's left, at the back, near the head."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1:8, 2:12, 3:17] = 1
    mask[5:7, 8:11, 13:16] = 2
    return mask


@pytest.fixture(scope="module")
def sided(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sided")
    scan = write_scan(folder / "ct.nii", make_image())
    mask = write_scan(folder / "mask.nii", make_sided_mask())
    with serving(find_entries(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))) as served:
        yield served


@pytest.fixture
def shown(browser, sided):
    with showing(browser, sided) as one:
        open_surface(one)
        yield one


def open_surface(shown):
    shown.press("r")
    shown.wait("!document.querySelector('.surface .waiting').textContent")
    shown.settle()


def redness(shown):
    """Return float[height, width]: how much redder than blue a pixel is, positive on the tumor."""
    pixels = shown.pixels("surface").astype(int)
    return np.clip(pixels[..., 0] - pixels[..., 2], 0, None)


def side_of_tumor(shown):
    """Return x and y of the tumor's middle from that of all surfaces, in pixels."""
    rows, columns = np.nonzero(redness(shown) > 40)
    all_rows, all_columns = np.nonzero(shown.pixels("surface").any(axis=2))
    assert len(rows) > 100
    return columns.mean() - all_columns.mean(), rows.mean() - all_rows.mean()


def test_bytes_have_the_surface_of_the_region(sided):
    with sided.client() as client:
        while not client.get("/api/cases/0/progress").json()["masks"][0]["is_complete"]:
            time.sleep(0.01)
        for value, voxels in ((1, make_sided_mask() > 0), (2, make_sided_mask() == 2)):
            answer = client.get(f"/api/cases/0/surface/0/{value}")
            assert answer.status_code == 200
            points, corners, normals = unpack(answer.content)
            a, b, c = (points[corners[:, number]] for number in range(3))
            volume_ml = np.einsum("ij,ij->", a, np.cross(b, c)) / 6000
            assert volume_ml == pytest.approx(voxels.sum() * voxel_ml(make_affine()), rel=0.005)
            outside = np.linalg.norm(normals, axis=1)
            assert (np.abs(outside - 127) < 2).all()
        assert client.get("/api/cases/0/surface/0/3").content == pack_surface(None)
        for path in ("1/1", "0/0", "0/256"):
            assert client.get(f"/api/cases/0/surface/{path}").status_code == 404


def test_positions_are_kept_to_a_fraction_of_a_voxel():
    mask, affine = make_mask() > 0, make_affine()
    surface = make_surface(find_lesions(mask, affine), lambda start, stop: mask[start:stop], affine, 60_000)
    points, corners, _ = unpack(pack_surface(surface))
    np.testing.assert_allclose(points, surface.vertices, atol=0.001)
    np.testing.assert_array_equal(corners, surface.triangles)


def test_the_mask_must_have_been_read(sided, monkeypatch, files):
    scan, mask = files
    monkeypatch.setattr("slicemill.web.volumes.start_helper", lambda work: None)
    with serving(find_entries(ViewRequest(path=scan, masks=(mask,)))) as served, served.client() as client:
        assert client.get("/api/cases/0/surface/0/1").status_code == 503
        assert client.get("/api/cases/0/parts/0/1").status_code == 503


@pytest.mark.slow
def test_left_and_right_are_right_in_eight_orders(browser, tmp_path):
    found = []
    for codes in ORDERS:
        scan = write_scan(tmp_path / f"ct-{codes}.nii", make_image(), codes)
        mask = write_scan(tmp_path / f"mask-{codes}.nii", make_sided_mask(), codes[::-1])
        found += find_entries(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))
    with serving(found) as served, showing(browser, served) as shown:
        for _ in ORDERS:
            open_surface(shown)
            assert shown.caption("surface") == "3-D from the front"
            x, y = side_of_tumor(shown)
            assert x > 20  # the patient's left is on the right
            assert y < -20  # the head is on top
            shown.page.keyboard.press("j")
            shown.wait_until_read()


@pytest.mark.slow
def test_keys_and_a_hand_turn_it(shown):
    front = shown.pixels("surface")
    shown.page.focus(".surface")
    shown.press(*["ArrowRight"] * 6)
    assert shown.caption("surface") == "3-D from the left"
    x, _ = side_of_tumor(shown)
    assert x > 20  # from the patient's left, posterior is on the right
    shown.press(*["ArrowRight"] * 6)
    assert shown.caption("surface") == "3-D from the back"
    x, _ = side_of_tumor(shown)
    assert x < -20
    shown.press(*["ArrowUp"] * 6)
    assert shown.caption("surface") == "3-D from the head"
    shown.press("0")
    np.testing.assert_array_equal(shown.pixels("surface"), front)
    box = shown.page.locator(".surface").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x - 157, y, steps=4)  # the front goes to the left, and the patient's left is in front
    shown.page.mouse.up()
    shown.settle()
    assert shown.caption("surface") == "3-D from the left"
    shown.press("0")
    shown.page.mouse.wheel(0, -300)
    shown.settle()
    assert (shown.pixels("surface").any(axis=2)).sum() > 1.5 * front.any(axis=2).sum()
    assert shown.caption() == "axial 6 of 9"  # no key or wheel changed the slice


def test_a_click_moves_the_crosshair_to_the_surface(shown):
    box = shown.page.locator(".surface").bounding_box()
    pixels = shown.pixels("surface")
    rows, columns = np.nonzero(redness(shown) > 40)
    scale = box["width"] / pixels.shape[1]
    shown.press("Home")
    shown.page.mouse.click(box["x"] + columns.mean() * scale, box["y"] + rows.mean() * scale)
    shown.settle()
    z, y, x = (int(shown.caption(plane).split()[1]) - 1 for plane in ("axial", "coronal", "sagittal"))
    assert z in (5, 6)
    assert x in (13, 14, 15)
    assert y in (7, 8)  # the tumor's face towards the front


def test_a_hidden_label_is_not_drawn_and_an_organ_alone_is_opaque(shown):
    clear = shown.pixels("surface").max()
    shown.page.click("#label-0-2")
    shown.settle()
    assert redness(shown).max() == 0
    assert shown.pixels("surface").max() > clear * 0.9
    shown.page.click("#label-0-1")
    shown.settle()
    assert not shown.pixels("surface").any()
    assert shown.text(".surface .waiting") == "Nothing to show"


def test_a_scan_without_masks_has_no_3d_picture(browser, files):
    with serving(find_entries(ViewRequest(path=files[0]))) as served, showing(browser, served) as shown:
        assert shown.page.is_hidden(".surface")
        assert shown.page.is_hidden("#planes button:has-text('3-D')")
        shown.press("r")
        assert shown.page.is_visible("[data-plane=axial]")


@pytest.mark.slow
def test_it_needs_no_webgl(browser, sided):
    with showing(browser, sided) as shown:
        used = shown.page.evaluate(
            "() => { const get = HTMLCanvasElement.prototype.getContext; window.kinds = new Set();"
            " HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
            " window.kinds.add(kind); return kind === '2d' ? get.call(this, kind, ...rest) : null; }; }"
        )
        assert used is None
        open_surface(shown)
        assert shown.page.evaluate("[...window.kinds]") == ["2d"]
        assert (redness(shown) > 40).sum() > 100


@pytest.mark.slow
def test_the_next_case_shows_its_own_surfaces(browser, sided, tmp_path):
    scan = write_scan(tmp_path / "ct.nii", make_image())
    other = make_sided_mask()[:, :, ::-1].copy()
    masks = [write_scan(tmp_path / f"{name}.nii", voxels) for name, voxels in (("a", make_sided_mask()), ("b", other))]
    first, second = (find_entries(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))[0] for mask in masks)
    with serving([first, replace(second, name="other")]) as served, showing(browser, served) as shown:
        open_surface(shown)
        assert side_of_tumor(shown)[0] > 20
        shown.page.keyboard.press("j")
        shown.wait_until_read()
        open_surface(shown)
        assert side_of_tumor(shown)[0] < -20


@pytest.mark.slow
def test_an_empty_mask_without_names_has_nothing_to_show(browser, tmp_path):
    scan = write_scan(tmp_path / "ct.nii", make_image())
    mask = write_scan(tmp_path / "mask.nii", np.zeros(SHAPE, dtype=np.uint8))
    with serving(find_entries(ViewRequest(path=scan, masks=(mask,)))) as served, showing(browser, served) as shown:
        shown.press("r")
        shown.wait("document.querySelector('.surface .waiting').textContent === 'Nothing to show'")
