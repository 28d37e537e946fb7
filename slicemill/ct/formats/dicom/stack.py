"""Planes to one box: their order, the affine, and the rules that a box must keep.

1. Planes are ordered by the dot product of position and normal. File names and InstanceNumber say nothing.
2. The step is (last position - first position) / (n - 1). Each position must lie within max(EVEN_MM, EVEN_PART of the
   step) of its place. A tilted gantry thus gives a sheared affine, which is exact; nothing is resampled.
3. Otherwise the box is refused with the numbers: which slices lack, or how the steps differ. `longest` cuts the longest
   run of equal steps.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, ScanError
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.dicom.planes import Plane
from slicemill.ct.geometry import Grid

EVEN_MM, EVEN_PART = 0.05, 0.01
"""How far a slice may be from its place: mm, and part of the step (dcm2niix and ITK issues in docs: rounding of exports
stays far below, a missing slice far above)."""
SAME_MM = 0.01
"""Positions closer than this are the same position."""
SHOWN_GAPS = 3
UNEVEN_NOTE = "those with equal steps (--uneven longest)"
"""End of the warning about a series of which only a part is used."""
Floats = npt.NDArray[np.float64]


class UnevenError(GeometryError):
    """The steps between slices differ; `run` has the longest part with equal steps."""

    def __init__(self, reason: str, run: Sequence[Plane]) -> None:
        super().__init__(reason)
        self.run = tuple(run)


def order_planes(planes: Sequence[Plane]) -> tuple[list[Plane], Floats]:
    """Return planes in order of position, and float64[n, 3], their positions, LPS mm."""
    normal = planes[0].normal
    points = np.array([plane.position for plane in planes], dtype=np.float64)
    order = np.argsort(points @ normal, kind="stable")
    return [planes[index] for index in order], points[order]


def find_places(planes: Sequence[Plane]) -> npt.NDArray[np.int64]:
    """Return int64[n], the number of each plane's position in order; planes at one position have one number."""
    along = np.array([plane.position for plane in planes], dtype=np.float64) @ planes[0].normal
    order = np.argsort(along, kind="stable")
    places = np.empty(len(planes), dtype=np.int64)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_MM)])
    return places


def make_grid(planes: Sequence[Plane]) -> Grid:
    """Return the grid of planes that are in order: i along a row, j along a column, k across the slices.

    Raises
    ------
    UnevenError
        The steps between the planes differ.
    GeometryError
        There is one plane without a thickness.
    """
    first = planes[0]
    points = np.array([plane.position for plane in planes], dtype=np.float64)
    step = (points[-1] - points[0]) / (len(points) - 1) if len(points) > 1 else _single_step(first)
    if (off := _off_place(points, step)) > tolerance(step):
        raise UnevenError(_explain(planes, points, off), _longest_run(planes, points))
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    form = first.header.format
    return Grid(shape=(form.columns, form.rows, len(planes)), affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def tolerance(step: Floats) -> float:
    """Return how far a plane may be from its place, mm."""
    return max(EVEN_MM, EVEN_PART * float(np.linalg.norm(step)))


def _off_place(points: Floats, step: Floats) -> float:
    """Return the largest distance of a position from its place in a box of equal steps, mm."""
    places = points[0] + np.arange(len(points))[:, None] * step
    return float(np.linalg.norm(points - places, axis=1).max())


def _single_step(plane: Plane) -> Floats:
    thickness = plane.header.kept.slice_thickness_mm
    if thickness is None:
        raise GeometryError(
            "is a single slice without SliceThickness (0018,0050), so its third dimension is unknown.",
            where=plane.header.file,
        )
    return plane.normal / np.linalg.norm(plane.normal) * thickness


def _explain(planes: Sequence[Plane], points: Floats, off: float) -> str:
    """Return why planes are no box: the missing slices with their neighbors, else the range of the steps."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    common = float(np.median(steps))
    ratios = steps / common
    missing = np.rint(ratios).astype(int) - 1
    regular = np.abs(steps - np.rint(ratios) * common) <= np.maximum(EVEN_MM, EVEN_PART * steps)
    keep = "Export the series again, or pass --uneven longest to use the longest part with equal steps."
    if common > SAME_MM and regular.all() and missing.any():
        gaps = np.flatnonzero(missing)
        shown = "; ".join(
            f"{missing[k]} between {planes[k].name} and {planes[k + 1].name} ({steps[k]:.6g} mm apart)"
            for k in gaps[:SHOWN_GAPS]
        )
        more = f"; and {len(gaps) - SHOWN_GAPS} more gaps" if len(gaps) > SHOWN_GAPS else ""
        return (
            f"{_count_missing(int(missing.sum()))} missing in a series of {len(planes)} with steps of {common:.6g} mm: "
            f"{shown}{more}. {keep}"
        )
    widest = int(np.argmax(np.abs(steps - common)))
    return (
        f"the steps between its {len(planes)} slices must be equal; they are {steps.min():.6g} to {steps.max():.6g} mm "
        f"(most {common:.6g}; {steps[widest]:.6g} between {planes[widest].name} and {planes[widest + 1].name}), and a "
        f"slice is {off:.3g} mm off its place. {keep}"
    )


def _count_missing(count: int) -> str:
    return f"{count_noun(count, 'slice')} {'is' if count == 1 else 'are'}"


def _longest_run(planes: Sequence[Plane], points: Floats) -> list[Plane]:
    """Return the longest part of at least two planes with equal steps; the lower one of two."""
    best, start = (0, 1), 0
    while start + best[1] < len(points):
        end = start + 1
        step = points[end] - points[start]
        while end + 1 < len(points) and np.linalg.norm(points[end + 1] - points[end] - step) <= tolerance(step):
            end += 1
        run = _trim(points[start : end + 1])
        if run > best[1]:
            best = (start, run)
        start = max(end, start + 1)
    return list(planes[best[0] : best[0] + best[1]])


def _trim(points: Floats) -> int:
    """Return how many of the first planes form a box: small deviations of steps may add up."""
    count = len(points)
    while count > 2:
        step = (points[count - 1] - points[0]) / (count - 1)
        if _off_place(points[:count], step) <= tolerance(step):
            break
        count -= 1
    return count


def check_side_by_side(planes: Sequence[Plane], places: npt.NDArray[np.int64]) -> None:
    """Check that planes at one position along the normal are also at one position within the plane.

    Raises
    ------
    ScanError
        They lie side by side.
    """
    at: dict[int, Plane] = {}
    for plane, place in zip(planes, places.tolist(), strict=True):
        other = at.setdefault(place, plane)
        apart = float(np.linalg.norm(np.subtract(plane.position, other.position)))
        if apart > max(SAME_MM, EVEN_MM):
            raise ScanError(
                f"{other.name} and {plane.name} lie side by side in one plane, {apart:.3g} mm apart: they are no box."
            )
