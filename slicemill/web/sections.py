"""Sections of a volume in the order of a picture: axial, coronal and sagittal.

All are shown as radiologists are used to: the patient's right is on the left of axial and coronal sections, superior is
on top of coronal and sagittal sections, anterior is on top of axial and on the left of sagittal sections.
"""

from typing import Any, Literal

import numpy.typing as npt

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
AXES: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""Axis of [z, y, x] along which a plane's sections follow each other."""


def cut_section(voxels: npt.NDArray[Any], plane: Plane, index: int) -> npt.NDArray[Any]:
    """View the section of any[z, y, x], in LPS+ order, at an index along the plane's axis.

    Returns any[row, column]: axial [y, x], coronal [z from superior to inferior, x], sagittal [z from superior to
    inferior, y].

    >>> import numpy as np
    >>> cut_section(np.arange(8).reshape(2, 2, 2), "coronal", 0).tolist()
    [[4, 5], [0, 1]]
    """
    chosen: dict[Plane, Any] = {
        "axial": index,
        "coronal": (slice(None, None, -1), index),
        "sagittal": (slice(None, None, -1), slice(None), index),
    }
    section: npt.NDArray[Any] = voxels[chosen[plane]]
    return section
