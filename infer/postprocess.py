"""Post-processing of a scan: largest organ, holes, and tumors that are too far, too small or too improbable.

All rules work in the bounding box of the labeled voxels, on runs along x (`slicemill.ct.runs`).
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ModelError
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import bounding_box
from slicemill.ct.runs import connect_runs, fill_runs, find_runs, select_values, voxel_coordinates
from slicemill.infer.lesion_features import ScanVolumes, keep_lesions, measure_lesions
from slicemill.store.model_card import PostprocessRules

Label = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, ...]


def extent(label: Label) -> Box | None:
    """Return the bounding box of the labeled voxels of uint8[z, y, x], or None if there are none."""
    shadow = np.bitwise_or.reduce(label, axis=0)
    across = bounding_box(shadow > 0)
    if across is None:
        return None
    filled = np.flatnonzero([bool(plane[across].any()) for plane in label])
    return slice(int(filled[0]), int(filled[-1]) + 1), *across


def keep_largest_organ(label: Label, labels: Labels) -> None:
    """Clear, in place, organ and tumor outside their largest 26-connected component; of equal ones, the first stays."""
    if labels.organ is None:
        return
    runs = find_runs(label, labels.organ_values())
    numbers, count = connect_runs(runs)
    if count > 1:
        sizes = np.bincount(numbers, weights=runs.voxels)
        fill_runs(label, runs[numbers != sizes.argmax()], 0)


def fill_holes(label: Label, labels: Labels) -> None:
    """Relabel, in place, background that organ and tumors enclose as organ."""
    if labels.organ is None:
        return
    # components of everything but the organ; one that touches no face of the array is enclosed
    runs = find_runs(~select_values(label, labels.organ_values()))
    numbers, count = connect_runs(runs, connectivity=6)
    nz, ny, nx = label.shape
    on_a_face = (runs.z == 0) | (runs.z == nz - 1) | (runs.y == 0) | (runs.y == ny - 1)
    on_a_face |= (runs.start == 0) | (runs.stop == nx)
    enclosed = np.ones(count, dtype=bool)
    enclosed[numbers[on_a_face]] = False
    for _, where in voxel_coordinates(runs[enclosed[numbers]]):
        label[where] = np.where(label[where] == 0, labels.values[labels.organ], label[where])


def drop_far_tumors(label: Label, labels: Labels, reach_mm: float, spacing_mm: tuple[float, float, float]) -> None:
    """Clear, in place, tumor voxels farther than `reach_mm` from the center of every voxel of the organ."""
    tumor = labels.tumor_value()
    if tumor is None or labels.organ is None:
        return
    box = bounding_box(label == tumor)
    if box is None:
        return
    margins = [math.floor(reach_mm / step) for step in spacing_mm]
    around = tuple(
        slice(max(0, side.start - margin), side.stop + margin) for side, margin in zip(box, margins, strict=True)
    )
    part = label[around]
    far = (part == tumor) & ~dilate(part == labels.values[labels.organ], reach_mm, spacing_mm)
    part[far] = 0


def dilate(mask: Mask, reach_mm: float, spacing_mm: tuple[float, float, float]) -> Mask:
    """Dilate bool[z, y, x] by a ball: true where a true voxel is no farther away than `reach_mm`.

    The ball is a stack of rows along x. For each offset (dz, dy) within reach, the mask is dilated along x by the half
    width of the ball's row there, shifted by the offset, and added. Rows of equal width are dilated once.
    """
    nz, ny, nx = mask.shape
    out = mask.copy()
    reach_z, reach_y = (math.floor(reach_mm / step) for step in spacing_mm[:2])
    rows: dict[int, Mask] = {}
    for dz in range(-min(reach_z, nz - 1), min(reach_z, nz - 1) + 1):
        for dy in range(-min(reach_y, ny - 1), min(reach_y, ny - 1) + 1):
            left = reach_mm**2 - (dz * spacing_mm[0]) ** 2 - (dy * spacing_mm[1]) ** 2
            if left < 0:
                continue
            width = min(math.floor(math.sqrt(left) / spacing_mm[2]), nx - 1)
            if width not in rows:
                rows[width] = dilate_along_x(mask, width)
            out[shifted_range(nz, dz), shifted_range(ny, dy)] |= rows[width][
                shifted_range(nz, -dz), shifted_range(ny, -dy)
            ]
    return out


def shifted_range(count: int, by: int) -> slice:
    """Return the indices along an axis that are valid after a shift by `by`."""
    return slice(max(0, by), count + min(0, by))


def dilate_along_x(mask: Mask, width: int) -> Mask:
    """Dilate bool[..., x] by `width` voxels to the left and right; the step doubles each time."""
    out = mask.copy()
    done = 0
    while done < width:
        step = min(width - done, max(1, done))
        before = out.copy()
        out[..., step:] |= before[..., :-step]
        out[..., :-step] |= before[..., step:]
        done += step
    return out


def drop_lesions(label: Label, labels: Labels, rules: PostprocessRules, grid: Grid, scan: ScanVolumes) -> None:
    """Relabel, in place, the lesions that the rules do not keep as organ, or as background without an organ label.

    `scan` has the arrays of `label`'s box, and `label` itself.
    """
    tumor = labels.tumor_value()
    if tumor is None:
        return
    if scan.probability is None:
        rules = replace(rules, min_lesion_probability=0.0, min_lesion_peak=0.0)
    runs = find_runs(label, [tumor])
    numbers, _ = connect_runs(runs)
    found = measure_lesions(scan, labels, grid, runs, numbers, fitted=rules.lesion_rule is not None)
    drop = ~keep_lesions(found, rules)
    if drop.any():
        fill_runs(label, runs[drop[numbers]], labels.values[labels.organ] if labels.organ else 0)


def postprocess(
    label: Label,
    labels: Labels,
    rules: PostprocessRules,
    grid: Grid,
    probability: npt.NDArray[np.uint8] | None = None,
    image: npt.NDArray[np.int16] | None = None,
) -> None:
    """Apply rules to `label`: uint8[z, y, x] on a scan's grid, in place.

    Parameters
    ----------
    probability
        uint8[z, y, x], probability of tumor, 255 for 1.
    image
        int16[z, y, x], HU; needed for a fitted rule only.

    Raises
    ------
    ModelError
        There is a fitted rule that needs probabilities, and there are none.
    ValueError
        There is a fitted rule, and no image.
    """
    if (rule := rules.lesion_rule) is not None:
        if image is None:
            raise ValueError("a fitted rule about lesions needs the image")
        if probability is None and (rule.mean_probability or rule.peak_probability):
            raise ModelError(
                "the model's fitted rule about lesions needs probabilities of tumor, and the file outputs none. Tune "
                "this file, or use one that outputs them."
            )
    box = extent(label)
    if box is None:
        return
    part = label[box]
    if rules.largest_organ:
        keep_largest_organ(part, labels)
    if rules.fill_holes:
        fill_holes(part, labels)
    if rules.tumor_reach_mm is not None:
        drop_far_tumors(part, labels, rules.tumor_reach_mm, grid.spacing_mm)
    by_probability = probability is not None and (rules.min_lesion_probability > 0 or rules.min_lesion_peak > 0)
    if rules.min_lesion_ml > 0 or by_probability or rules.lesion_rule is not None:
        inside = None if probability is None else probability[box]
        scan = ScanVolumes(label=part, probability=inside, image=None if image is None else image[box])
        drop_lesions(part, labels, rules, grid, scan)
