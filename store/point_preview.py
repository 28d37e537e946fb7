"""Pictures of nodules that are annotated by points: three views each, with outlines of label and flags."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from slicemill.common.terminal import format_number
from slicemill.ct.pictures import Panel, draw_labels, label_colors, render_gray
from slicemill.ct.points import Point, mm_to_voxel
from slicemill.ct.window import Window
from slicemill.store.reader import Case

LUNG_WINDOW = Window(-1000.0, 400.0)
SIDE_MM = 40.0
"""Least side of a view."""
DIAMETERS = 2.5
"""Least side of a view in diameters."""
PIXELS = 128
VIEWS = ("axial", "coronal", "sagittal")
PAGE_NODULES = 40
"""Nodules on a page: with three views of 256 pixels each, about ten megapixels."""


def list_nodules(cases: Sequence[Case]) -> list[tuple[Case, Point]]:
    """Return all nodules of the cases, and the case of each."""
    return [(case, point) for case in cases for point in case.points or () if point.kind == "nodule"]


def draw_nodules(nodules: Sequence[tuple[Case, Point]]) -> Iterator[Panel]:
    """Yield three views of each nodule, through its center along the axes of the stored array: VIEWS."""
    for case, point in nodules:
        size = f"{format_number(point.diameter_mm or 0.0)} mm, {format_number(point.volume_ml or 0.0)} ml, {point.mask}"
        captions = (f"{point.id}  {case.case_id}", size, "; ".join(point.flags) or "no flag")
        for caption, picture in zip(captions, _draw_views(case, point), strict=True):
            yield Panel(picture=picture, caption=caption)


def _draw_views(case: Case, point: Point) -> Iterator[npt.NDArray[np.uint8]]:
    side_mm = max(SIDE_MM, DIAMETERS * (point.diameter_mm or 0.0))
    center = mm_to_voxel(case.affine, point.xyz_mm)
    steps = (np.arange(PIXELS) + 0.5) / PIXELS * side_mm - side_mm / 2
    # indices of the voxels of each pixel, along z, y, x; those outside of the scan are cut off
    indices = [
        np.rint(place + steps / spacing).astype(int) for place, spacing in zip(center, case.spacing_mm, strict=True)
    ]
    inside = [(index >= 0) & (index < count) for index, count in zip(indices, case.image.shape, strict=True)]
    indices = [index.clip(0, count - 1) for index, count in zip(indices, case.image.shape, strict=True)]
    first, last = int(indices[0].min()), int(indices[0].max())
    middle = [int(np.rint(place).clip(0, count - 1)) for place, count in zip(center, case.image.shape, strict=True)]
    image = case.image.read_many(range(first, last + 1))
    label = None if case.label is None else case.label.read_many(range(first, last + 1))
    z, y, x = indices
    cuts = (
        ((middle[0] - first, y[:, None], x), (inside[1], inside[2])),
        ((z[::-1, None] - first, middle[1], x), (inside[0][::-1], inside[2])),
        ((z[::-1, None] - first, y, middle[2]), (inside[0][::-1], inside[1])),
    )
    for cut, (rows, columns) in cuts:
        shown = rows[:, None] & columns
        hu = np.where(shown, image[cut], LUNG_WINDOW.low).astype(np.int16)
        picture = render_gray(hu, LUNG_WINDOW)
        if label is not None and case.info.labels is not None:
            section = np.where(shown, label[cut], 0).astype(np.uint8)
            picture = draw_labels(picture, section, label_colors(case.info.labels))
        yield picture
