"""PNG files: Pillow as the oracle."""

import io

import numpy as np
import pytest
from PIL import Image

from slicemill.ct.pictures import encode_png, save_png


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 300), (5, 4, 3), (1, 2, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pillow_reads_every_pixel(shape, dtype, rng):
    if len(shape) == 3 and dtype == np.uint16:
        pytest.skip("no picture of ours has colors of 16 bits")
    pixels = rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    for given in (pixels, pixels[::-1], np.asfortranarray(pixels)):
        with Image.open(io.BytesIO(encode_png(given))) as found:
            assert found.mode == {1: "L", 2: "I;16"}[pixels.itemsize] if pixels.ndim == 2 else found.mode == "RGB"
            assert np.array_equal(np.asarray(found).astype(dtype), given)


def test_a_picture_without_colors_is_saved_too(tmp_path):
    save_png(tmp_path / "a.png", Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)))
    with Image.open(tmp_path / "a.png") as found:
        found.verify()
    with Image.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found)[..., 1], np.arange(12).reshape(3, 4))
