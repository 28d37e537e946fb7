"""Pictures of slices: outlines, errors, montages."""

import numpy as np
from PIL import Image

from slicemill.ct import pictures as picture


def test_an_outline_is_the_pixels_that_touch_the_outside():
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    expected = mask.copy()
    expected[2, 2] = False
    assert np.array_equal(picture.outline_pixels(mask), expected)


def test_errors_are_green_red_and_orange():
    plain = np.zeros((1, 3, 3), np.uint8)
    drawn = picture.draw_errors(plain, np.array([[True, False, True]]), np.array([[True, True, False]]))
    green, red, orange = drawn[0].astype(int)
    assert green.argmax() == 1
    assert red.argmax() == 0
    assert red[1] < red[0] / 2
    assert orange[0] > orange[1] > orange[2]


def test_a_montage_has_rows_and_fits_its_captions(tmp_path):
    tile = picture.Panel(
        picture=picture.render_gray(np.zeros((64, 64), np.int16)), caption="a caption much wider than the picture " * 5
    )
    picture.save_png(tmp_path / "m.png", picture.make_montage([tile] * 5, 2))
    with Image.open(tmp_path / "m.png") as opened:
        assert opened.size == (2 * 260 + 4, 3 * (256 + 18 + 4) + 4)


def test_small_slices_are_enlarged_by_whole_factors():
    assert picture.render_gray(np.zeros((100, 60), np.int16)).shape == (300, 180, 3)
    assert picture.render_gray(np.zeros((512, 512), np.int16)).shape == (512, 512, 3)
