"""A picture becomes a slice as a browser shows it, and only if a window made it."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from slicemill.common.errors import ScanError
from slicemill.web.serve.pictures import convert_picture
from slicemill.web.serve.records import LIMITS, PictureRequest

SIZE = (48, 64)
STORED = {
    1: lambda gray: gray,
    2: np.fliplr,
    3: lambda gray: np.rot90(gray, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda gray: np.rot90(gray, 2).T,
    8: lambda gray: np.rot90(gray, -1),
}
"""How a camera stores what is to be shown, by EXIF's number."""
WHOLE = PictureRequest(low=0, high=255, left=0, top=0, right=SIZE[1], bottom=SIZE[0])


def draw():
    gray = np.full(SIZE, 20, dtype=np.uint8)
    gray[4:16, 8:40] = 200
    return gray


def write_turned(path, orientation):
    """Write a JPEG that shows `draw()`, stored turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](draw()))).save(path, exif=exif, quality=100)
    return path


def convert(path, tmp_path, request=WHOLE):
    convert_picture(path, request, LIMITS, tmp_path / "out.nii")
    return np.asarray(nib.load(tmp_path / "out.nii").dataobj)[..., 0].T


@pytest.mark.parametrize("orientation", sorted(STORED))
def test_a_turned_photograph_is_cut_as_it_is_shown(tmp_path, orientation):
    path = write_turned(tmp_path / "a.jpg", orientation)
    assert np.abs(convert(path, tmp_path).astype(int) - draw()).max() <= 3
    frame = replace(WHOLE, left=30, right=50, bottom=20)
    assert np.abs(convert(path, tmp_path, frame).astype(int) - draw()[:20, 30:50]).max() <= 3
    with pytest.raises(ScanError, match="64 x 48 pixels"):
        convert(path, tmp_path, replace(WHOLE, bottom=64))


def test_a_note_of_an_orientation_that_browsers_read_differently_is_refused(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(draw()).save(tmp_path / "exif.png", exif=exif)
    note = PngImagePlugin.PngInfo()
    note.add_itxt("XML:com.adobe.xmp", xmp.decode())
    Image.fromarray(draw()).save(tmp_path / "xmp.png", pnginfo=note)
    Image.fromarray(draw()).save(tmp_path / "xmp.jpg", xmp=xmp)
    for name in ("exif.png", "xmp.png", "xmp.jpg"):
        with pytest.raises(ScanError, match="stored turned"):
            convert(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "is_read"),
    [(0, 65535, True), (0, 4032, False), (0, 16383, False), (32768 - 1000, 32768 + 3000, False), (9000, 40000, True)],
)
def test_gray_values_of_16_bits_that_no_window_made_are_refused(tmp_path, low, high, is_read):
    gray = np.where(draw() > 100, high, low).astype(np.uint16)
    Image.fromarray(gray).save(tmp_path / "a.png")
    if is_read:
        assert convert(tmp_path / "a.png", tmp_path).max() == round(high / 65535 * 255)
    else:
        with pytest.raises(ScanError, match=f"are {low} to {high}, of 0 to 65535"):
            convert(tmp_path / "a.png", tmp_path)


def test_white_text_outside_the_frame_does_not_hide_dark_gray_values(tmp_path):
    gray = np.where(draw() > 100, 3000, 500).astype(np.uint16)
    gray[-4:] = 65535
    Image.fromarray(gray).save(tmp_path / "a.png")
    with pytest.raises(ScanError, match="are 500 to 3000, of 0 to 65535"):
        convert(tmp_path / "a.png", tmp_path, replace(WHOLE, bottom=40))


def test_nearly_black_pictures_of_8_bits_are_refused_too(tmp_path):
    Image.fromarray(draw() // 16).convert("RGB").save(tmp_path / "a.png")
    with pytest.raises(ScanError, match="are 1 to 12, of 0 to 255"):
        convert(tmp_path / "a.png", tmp_path)
