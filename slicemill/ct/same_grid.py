"""Whether two files hold the same voxels, and on which grid a segmentation is read.

Every command that pairs two files compares them here.

1. The axes of one file are matched to those of the other (`Grid.turned_to`). Files in other axis orders or directions
   are on the same grid if the corners of the turned grid agree within SAME_GRID_MM. Such a file is turned losslessly.
2. If they do not agree, ingest follows its option ``--geometry``: ``error`` refuses, ``trust-image`` reads the
   segmentation's voxels in the order of the image's file, ``resample`` believes both headers.
3. ``trust-image`` needs equal shapes and axis orders. A header that states none (`states_axes`) cannot disagree.
"""

from dataclasses import dataclass

import numpy as np

from slicemill.common.errors import GeometryError
from slicemill.common.files import Location
from slicemill.ct.geometry import RAS_TO_LPS, SAME_GRID_MM, Grid
from slicemill.ct.geometry_option import Geometry
from slicemill.ct.grid_checks import explain_lost_header


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The grid on which a segmentation file is read."""

    grid: Grid
    """The file's axes on the image's voxels; if `resampled`, the file's own grid."""
    resampled: bool = False
    warnings: tuple[str, ...] = ()


def match_grid(grid: Grid, onto: Grid) -> Grid | None:
    """Return the axes of `grid` on the positions of `onto`, or None if the two do not have the same voxels."""
    turned = grid.turned_to(onto)
    return turned if turned is not None and grid.distance_mm(turned) <= SAME_GRID_MM else None


def require_same_grid(grid: Grid, onto: Grid, where: object, other: object) -> Grid:
    """Return `match_grid` of two files; `where` and `other` name them.

    Raises
    ------
    GeometryError
        The files do not have the same voxels.
    """
    turned = match_grid(grid, onto)
    if turned is None:
        raise GeometryError(
            f"must have the same grid as {other}, in any axis order; {describe_difference(grid, onto)}.", where=where
        )
    return turned


def describe_difference(grid: Grid, onto: Grid) -> str:
    """Return how two grids differ: their shapes in LPS+ order, their axes, or the distance of their corners."""
    if grid.stored_shape != onto.stored_shape:
        shapes = ("x".join(map(str, one.stored_shape)) for one in (grid, onto))
        return "their shapes (z, y, x) are {} and {}".format(*shapes)
    turned = grid.turned_to(onto)
    if turned is None:
        return f"their axes point in other directions ({grid.axcodes} and {onto.axcodes}, oblique)"
    return f"their affines differ by {grid.distance_mm(turned):.3g} mm"


def states_axes(grid: Grid) -> bool:
    """Return whether a header states where its axes point.

    Without sform and qform it does not. Neither do the defaults of programs that save an array without its geometry:
    the identity in RAS (nibabel) or in LPS (SimpleITK).

    >>> states_axes(Grid(shape=(2, 2, 2), affine=np.eye(4))), states_axes(Grid(shape=(2, 2, 2), affine=2 * np.eye(4)))
    (False, True)
    """
    return grid.oriented and not any(np.array_equal(grid.affine, default) for default in (np.eye(4), RAS_TO_LPS))


def place_mask(mask: Grid, image: Grid, geometry: Geometry, path: Location) -> Placement:
    """Return where the voxels of a segmentation file lie.

    Raises
    ------
    GeometryError
        The two files do not have the same voxels, and `geometry` does not allow or cannot settle it.
    """
    turned = match_grid(mask, image)
    if turned is not None:
        return Placement(grid=turned)
    difference = describe_difference(mask, image)
    if geometry == "resample":
        _check_resample(mask, image, path, difference)
        return Placement(grid=mask, resampled=True)
    if geometry == "trust-image" and _may_trust(mask, image, path, difference):
        apart = f"lie {mask.distance_mm(image):.3g} mm apart by their headers; the image's was trusted"
        order = "" if states_axes(mask) else ", and the segmentation's axes were taken in the order of the image's file"
        return Placement(grid=image, warnings=(f"image and segmentation {apart}{order}",))
    if mask.stored_shape != image.stored_shape:
        raise GeometryError(
            f"image and segmentation must have the same shape; {difference} (segmentation, image). "
            "Export the segmentation on the image's grid; if both headers are right, --geometry resample does it.",
            where=path,
        )
    raise GeometryError(
        f"image and segmentation must share one grid (within {SAME_GRID_MM} mm); {difference}. "
        f"{_suggest_fix(image, mask)}",
        where=path,
    )


def _check_resample(mask: Grid, image: Grid, path: Location, difference: str) -> None:
    """Refuse to resample by a header that states no axes."""
    for name, grid in (("segmentation", mask), ("image", image)):
        if not states_axes(grid):
            raise GeometryError(
                f"--geometry resample needs two right headers, but the {name}'s states no axes; {difference}. "
                "Correct that header first.",
                where=path,
            )


def _may_trust(mask: Grid, image: Grid, path: Location, difference: str) -> bool:
    """Return whether the shapes agree; refuse axis orders that differ."""
    if mask.shape != image.shape and mask.stored_shape != image.stored_shape:
        return False
    if _have_one_order(mask, image):
        return True
    raise GeometryError(
        f"--geometry trust-image needs files of one axis order; the segmentation's is {mask.axcodes}, the "
        f"image's {image.axcodes}, and {difference}. Copy the image's affine into the segmentation's header if its "
        "voxels are in the image's order; if both headers are right, pass --geometry resample.",
        where=path,
    )


def _have_one_order(mask: Grid, image: Grid) -> bool:
    """Return whether the voxels of two files are in one order, as far as the headers state it."""
    turned = mask.turned_to(image)
    one_order = turned is not None and turned.axes == image.axes_of()
    return mask.shape == image.shape and (one_order or (not states_axes(mask) and states_axes(image)))


def _suggest_fix(image: Grid, mask: Grid) -> str:
    """Return a fix for an image and a mask on different grids, depending on which header looks lost."""
    lost_image, lost_mask = explain_lost_header(image), explain_lost_header(mask)
    if lost_image and not lost_mask:
        return f"The image's header looks lost ({lost_image}): correct it. Do not pass --geometry trust-image."
    if not _have_one_order(mask, image):
        return "Correct the header that is wrong; if both are right, pass --geometry resample."
    if lost_mask and not lost_image:
        return f"The segmentation's header looks lost ({lost_mask}): correct it, or pass --geometry trust-image."
    return (
        "Correct the segmentation's header, or pass --geometry trust-image if the image's is right, "
        "or --geometry resample if both are."
    )
