"""A picture is read as a browser shows it, by the same rules in `infer` and in `serve`, or refused with the way out."""

import errno

import nibabel as nib
import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from slicemill.common.errors import ScanError
from slicemill.ct.window import Window
from slicemill.infer.inputs.pictures import open_picture
from slicemill.web.serve.pictures import convert_picture
from slicemill.web.serve.records import LIMITS, PictureRequest

WINDOW = Window(-200, 300)


def draw():
    """Return uint8[y, x]: all gray values from black to white, brighter below."""
    return np.add.outer(np.arange(40) * 3, np.linspace(0, 138, 60)).astype(np.uint8)


def read(path):
    """Return int16[y, x] as both commands read it."""
    with open_picture(path, WINDOW) as picture:
        hu = picture.decode()
        grid = nib.Nifti1Header(picture.header).get_data_shape()
    assert grid == (*hu.shape[:0:-1], 1)
    whole = PictureRequest(
        low=WINDOW.low, high=WINDOW.high, left=0, top=0, right=hu.shape[2], bottom=hu.shape[1], pixel_mm=1.0
    )
    out = path.with_suffix(".nii")
    convert_picture(path, whole, LIMITS, out)
    assert np.array_equal(np.asarray(nib.load(out).dataobj)[..., 0].T, hu[0]), "serve reads the same"
    return hu[0]


def refuse(path, why):
    with pytest.raises(ScanError, match=why), open_picture(path, WINDOW) as picture:
        picture.decode()
    with pytest.raises(ScanError, match=why):
        convert_picture(path, PictureRequest(low=0, high=1, left=0, top=0, right=60, bottom=40), LIMITS, path)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "LA", "P"])
def test_gray_values_become_hu_whatever_the_mode(tmp_path, mode):
    gray = draw()
    picture = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.rint(-200 + gray * (500 / 255)))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_turned_picture_is_read_as_it_is_shown(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(draw())
    if orientation in (2, 3, 4, 5, 6, 7, 8):
        back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
        stored = stored.transpose(Image.Transpose(back))
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100)
    expected = np.rint(-200 + draw() * (500 / 255))
    found = read(tmp_path / "a.jpg")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 8


@pytest.mark.parametrize("bits", [10, 12, 13])
@pytest.mark.parametrize("text", [0, 5])
def test_ct_values_of_few_bits_in_16_are_refused_even_with_white_text(tmp_path, bits, text):
    gray = draw().astype(np.uint16) * (2**bits // 256)
    gray[0, :text] = 65535
    Image.fromarray(gray).save(tmp_path / "dark.png")
    refuse(tmp_path / "dark.png", "no window made this picture. Export it with a window, as 8 bits")


def test_a_small_body_in_black_and_a_slice_of_air_are_pictures(tmp_path):
    gray = np.zeros((200, 200), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "air.png")
    assert (read(tmp_path / "air.png") == WINDOW.low).all()
    gray[100:104, 100:104] = 120
    Image.fromarray(gray).save(tmp_path / "small.png")
    assert read(tmp_path / "small.png").max() == round(-200 + 120 * 500 / 255)


def test_a_slice_of_air_in_the_window_of_the_lung_is_a_picture(tmp_path, rng):
    lung = Window(-1350, 150)
    levels = np.rint((rng.normal(-1000, 12, (80, 80)) - lung.low) / (lung.high - lung.low) * 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "air.png")
    with open_picture(tmp_path / "air.png", lung) as picture:
        assert abs(float(picture.decode().mean()) + 1000) < 5
    refuse(tmp_path / "air.png", "no window made this picture")


def test_another_gamma_than_that_of_srgb_is_refused(tmp_path):
    for gamma, is_plain in ((45455, True), (100000, False)):
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"gAMA", gamma.to_bytes(4, "big"))
        Image.fromarray(draw()).save(tmp_path / "g.png", pnginfo=chunks)
        if is_plain:
            read(tmp_path / "g.png")
        else:
            refuse(tmp_path / "g.png", "has a gamma of 1, so that its pixels")


def test_what_hides_a_part_of_a_picture_is_refused(tmp_path):
    alpha = np.full((40, 60), 255, dtype=np.uint8)
    alpha[3, 4] = 254
    picture = Image.fromarray(draw())
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "a.png")
    refuse(tmp_path / "a.png", "partly transparent. Save it without")
    Image.fromarray(draw()).save(tmp_path / "key.png", transparency=int(draw()[5, 5]))
    refuse(tmp_path / "key.png", "partly transparent")


def test_a_file_of_another_format_is_refused_whatever_its_name(tmp_path):
    Image.fromarray(draw()).save(tmp_path / "a.tif")
    refuse((tmp_path / "a.tif").rename(tmp_path / "a.png"), "cannot be read as a picture")


def test_a_damaged_picture_is_refused_for_good_whatever_pillow_raises(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(draw()).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    refuse(path, "cannot be read as a picture .image file is truncated")

    for raised in (AttributeError("'IFDRational' object has no attribute 'encode'"), TypeError("bad operand")):

        def fail(*_, raised=raised):
            raise raised

        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", fail)
            refuse(path, "cannot be read as a picture")


def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    Image.fromarray(draw()).save(tmp_path / "a.png")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image.Image, "load", fail)
    with open_picture(tmp_path / "a.png", WINDOW) as picture, pytest.raises(OSError, match="Input/output error"):
        picture.decode()
