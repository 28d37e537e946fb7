"""The values of the option ``--geometry``, in a module that imports nothing and so delays no ``--help``."""

from typing import Literal

Geometry = Literal["error", "trust-image", "resample"]
"""What to do if an image and its segmentation are on different grids (`slicemill.ct.same_grid`)."""
Uneven = Literal["refuse", "longest"]
"""What happens to a series whose slices are not evenly spaced: it is refused, or its longest even run is taken."""
