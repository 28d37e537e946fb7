"""Slices are centered in another size, and HU windows are intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import ConfigError
from slicemill.ct.crop import centered_corner, crop_or_pad
from slicemill.ct.window import Window


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_slice_fitted_into_another_size_comes_back_where_they_overlap(ny, nx, height, width):
    section = np.arange(1, ny * nx + 1).reshape(ny, nx)
    out = np.empty((height, width), section.dtype)
    corner = centered_corner(section.shape, out.shape)
    crop_or_pad(section, corner, 0, out)
    for y in range(height):
        for x in range(width):
            inside = 0 <= y + corner[0] < ny and 0 <= x + corner[1] < nx
            assert out[y, x] == (section[y + corner[0], x + corner[1]] if inside else 0)


def test_an_empty_window_is_refused():
    with pytest.raises(ConfigError, match="below the upper"):
        Window(100, 100)
