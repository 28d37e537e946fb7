"""Findings and candidates as points in mm, as collections of lung nodules have them.

Positions are x, y, z in LPS mm, as in LUNA16's tables and in `Grid.affine_lps`. Voxel positions are z, y, x of the
stored array; the center of the first voxel is 0, 0, 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
PointKind = Literal["nodule", "excluded"]
"""``excluded``: a finding that is neither nodule nor background, so that training and scores leave it out."""
CANDIDATE_COLUMNS = ("x_mm", "y_mm", "z_mm", "class", "row", "segmentation_mean")
"""Columns of candidates, float64[n, 6]: position in LPS mm, class (1 nodule, 0 none), line of the source table, and the
mean probability of the segmentation that found it, NaN if its table has none."""


UNKNOWN_DIAMETER_MM = 10.0
"""Diameter of findings of unknown size, as LUNA16's program takes it."""


NODULE_WORDS = frozenset(
    (
        *("solid", "part-solid", "subsolid", "semi-solid", "non-solid", "ground-glass", "calcified", "mixed"),
        *("free", "isolated", "juxtavascular", "juxtapleural", "vessel", "pleura", "fissure"),
        *("spherical", "lobulated", "spiculated", "smooth", "benign", "malignant"),
    )
)
"""Words about nodules that a store keeps. Any other text could name a person."""

NODULE_NUMBERS = frozenset(
    (
        *("subtlety", "internalstructure", "calcification", "calcified", "sphericity", "margin", "lobulation"),
        *("spiculation", "spiculated", "texture", "solid", "malignant", "malignancyprobability", "lungrads"),
        *("agreement", "agreementlevel", "agrlevel", "confidence", "rating", "score"),
        *("volume", "volumeml", "volumemm3", "mass", "massmg", "radius", "radiusmm", "surfaceareamm2"),
        *("diameter", "diametermean", "diametermax", "diametermin", "meandiametermm", "maxdiametermm", "mindiametermm"),
        *("longaxis", "longaxismm", "shortaxis", "shortaxismm", "meanhu", "medianhu", "stdhu", "minhu", "maxhu"),
        *("emphysema", "fissure", "pleural", "juxtapleural", "juxtavascular", "perifissural"),
    )
)
"""Columns of numbers about nodules that a store keeps, in lower case, without spaces, ``_`` and ``-``.

The number of any other column could be that of a person, a study or a date.
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finding that is known by its center."""

    id: str
    """Unique in its case, like ``nodule-3``."""
    kind: PointKind
    xyz_mm: tuple[float, float, float]
    """Center x, y, z in LPS mm, as in the source."""
    diameter_mm: float | None
    """None if the source does not know it."""
    malignancy: float | None = None
    """Rating or probability as the source has it; None without one."""
    readers: int | None = None
    """Number of readers who marked it; None if unknown."""
    mask: str = ""
    """How its voxels in the segmentation were made: ``density``, ``ball``; empty if there are none."""
    volume_ml: float | None = None
    """Volume of its mask, ml; None without one."""
    flags: tuple[str, ...] = ()
    """What is unusual about its mask, as phrases."""
    further: Mapping[str, float] = field(default_factory=dict)
    """Further columns of the source with numbers."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Further columns of the source with words of NODULE_WORDS."""


def has_ratings(values: Iterable[float | None]) -> bool:
    """Return whether values of malignancy are ratings from 1 to 5 and not shares from 0 to 1; of all cases of a store.

    Some cases alone do not tell: a rating of 1 is benign, and a probability of 1 malignant.
    """
    return max((value for value in values if value is not None), default=0.0) > 1


def is_malignant(value: float | None, *, ratings: bool) -> bool | None:
    """Return whether a nodule is malignant; None without a value, or with a rating of 3.

    Values from 0 to 1 are probabilities or yes and no: malignant from 0.5. With `ratings` (`has_ratings`), values are
    from 1 to 5: above 3 malignant, below 3 benign.

    >>> is_malignant(0.5, ratings=False), is_malignant(2, ratings=True), is_malignant(3, ratings=True)
    (True, False, None)

    Raises
    ------
    ValueError
        The value is neither.
    """
    low, high, middle = (1.0, 5.0, 3.0) if ratings else (0.0, 1.0, 0.5)
    if value is not None and not low <= value <= high:
        raise ValueError(
            f"is {value:g}; the values of a store must all be from 0 to 1, or all be ratings from 1 to 5, as others are"
        )
    if value is None or (ratings and value == middle):
        return None
    return value > middle if ratings else value >= middle


def mm_to_voxel(affine: Floats, xyz_mm: npt.ArrayLike) -> Floats:
    """Return voxel positions of points in mm, by the inverse of the full affine.

    Parameters
    ----------
    affine
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    xyz_mm
        float[..., 3]: x, y, z in LPS mm.

    Returns
    -------
    float64[..., 3]: z, y, x in voxels, not rounded.

    >>> mm_to_voxel(np.diag([2.0, 2.0, 5.0, 1.0]), (6.0, 4.0, 5.0)).tolist()
    [1.0, 2.0, 3.0]
    """
    offset = np.asarray(xyz_mm, dtype=np.float64) - affine[:3, 3]
    solved = np.linalg.solve(affine[:3, :3], offset.reshape(-1, 3).T).T
    return np.asarray(solved[:, ::-1].reshape(offset.shape), dtype=np.float64)


def voxels_to_mm(affine: Floats, zyx: npt.ArrayLike) -> Floats:
    """Return float64[..., 3], x, y, z in LPS mm, of voxel positions float[..., 3], z, y, x.

    >>> voxels_to_mm(np.diag([2.0, 2.0, 5.0, 1.0]), [(1, 2, 3)]).tolist()
    [[6.0, 4.0, 5.0]]
    """
    xyz = np.asarray(zyx, dtype=np.float64)[..., ::-1]
    return np.asarray(xyz @ affine[:3, :3].T + affine[:3, 3], dtype=np.float64)


def is_inside(shape: tuple[int, int, int], zyx: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return bool[...]: whether voxel positions float[..., 3] lie in a scan of `shape` [z, y, x], borders included.

    A voxel reaches half a step around its center.

    >>> is_inside((3, 4, 5), [(0, 0, 0), (2.4, 0, -0.5), (2.5, 0, 0)]).tolist()
    [True, True, False]
    """
    places = np.asarray(zyx, dtype=np.float64)
    return np.asarray(((places >= -0.5) & (places < np.array(shape) - 0.5)).all(axis=-1), dtype=bool)
