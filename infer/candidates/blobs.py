"""Blobs: round bright spots in the lungs, found without learning, as candidates that a segmentation misses.

A network that was trained on few nodules is sure of what it knows, and gives others a probability of 0. A spot that is
brighter than lung in every direction is worth a look by a classifier.

1. HU are mapped to 0 to 1, LOW_HU to HIGH_HU; what is not lung becomes 0, so that the chest wall has no edge. Voxels
   are averaged up to COARSEST_MM, so that a scan of 512 pixels takes about as long as one of 256 (3 and 2 s of a core).
2. For each of SIGMAS_MM the image is smoothed. A voxel counts if the Laplacian is lowest among its neighbors within
   sigma, and the Hessian has three negative eigenvalues a <= b <= c.
3. Its score is ``sigma ** 2 * c ** 2 / -a``: that of a ball is high, that of a vessel, which is bright along its
   course, low (the dot filter of Li, Sone and Doi, Med Phys 30:2040, 2003). A ball of radius ``sqrt(3) * sigma`` has
   the largest Laplacian at sigma (Lindeberg, Int J Comput Vis 30:79, 1998), which gives its diameter.
4. Of spots within APART_SIGMAS of a better one, or APART_MM, the better one stays, and none within a lump of the
   segmentation. Of the rest, the MOST_BLOBS with the highest scores are candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid
from slicemill.ct.points import voxels_to_mm
from slicemill.infer.candidates.find import Lump

MOST_BLOBS = 150
"""Of 59 nodules in the 40 synthetic chests of seed 9001, 50 were lumps of a segmentation; with 100 blobs beside them
53 were candidates, with 150 blobs 54, and no more with 400."""
LOW_HU, HIGH_HU = -870.0, 30.0
COARSEST_MM = 1.6
SIGMAS_MM = (1.15, 1.6, 2.2, 3.0, 4.2)
"""Balls of 4 to 14.5 mm."""
LOWEST = 0.03
"""Lowest ``-sigma ** 2 * Laplacian``; ground glass 100 HU above lung has about 0.1 at its sigma."""
APART_SIGMAS, APART_MM = 1.2, 2.5
DIAMETERS = 2 * np.sqrt(3.0)
"""Diameter of a ball, in sigmas."""
Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A round bright spot."""

    center: tuple[float, float, float]
    """z, y, x in voxels of the scan."""
    diameter_mm: float
    score: float


def add_blobs(
    lumps: Sequence[Lump],
    volume: npt.NDArray[np.int16],
    inside: npt.NDArray[np.bool_],
    probability: npt.NDArray[np.uint8],
    grid: Grid,
) -> list[Lump]:
    """Return the blobs of a scan that are in none of its lumps, as candidates; the best first.

    Their volume is that of a ball of their diameter, and their probabilities are those of the segmentation in it.

    Parameters
    ----------
    lumps
        The lumps of the segmentation.
    volume, inside
        As for `find_blobs`.
    probability
        uint8[z, y, x], 255 times the probability of tumor.
    grid
        The scan's grid.
    """
    blobs = find_blobs(volume, inside, grid.spacing_mm, MOST_BLOBS + len(lumps))
    taken = np.array([lump.xyz_mm for lump in lumps]).reshape(-1, 3)
    reach = np.maximum(APART_MM, np.array([lump.diameter_mm for lump in lumps]) / 2)
    found: list[Lump] = []
    for blob in blobs:
        x, y, z = voxels_to_mm(grid.affine_lps, blob.center).tolist()
        if len(found) < MOST_BLOBS and (np.linalg.norm(taken - (x, y, z), axis=1) >= reach).all():
            values = _values_in_ball(probability, blob, grid.spacing_mm)
            found.append(
                Lump(
                    xyz_mm=(x, y, z),
                    slice=round(blob.center[0]),
                    peak=float(values.max()) / 255,
                    mean=float(values.mean()) / 255,
                    volume_ml=pi / 6000 * blob.diameter_mm**3,
                    diameter_mm=blob.diameter_mm,
                )
            )
    return found


def _values_in_ball(
    probability: npt.NDArray[np.uint8], blob: Blob, spacing_mm: tuple[float, float, float]
) -> npt.NDArray[np.uint8]:
    """Return the values of the voxels in a blob's ball, at least of the one at its center."""
    radius, sides, squares = blob.diameter_mm / 2, [], []
    for axis, (center, spacing, count) in enumerate(zip(blob.center, spacing_mm, probability.shape, strict=True)):
        middle = min(max(round(center), 0), count - 1)
        reach = int(radius / spacing)
        side = np.arange(max(0, middle - reach), min(count, middle + reach + 1))
        sides.append(slice(int(side[0]), int(side[-1]) + 1))
        shape = [1, 1, 1]
        shape[axis] = -1
        squares.append((((side - middle) * spacing) ** 2).reshape(shape))
    ball = squares[0] + squares[1] + squares[2] <= radius**2
    return np.asarray(probability[tuple(sides)][ball], dtype=np.uint8)


def find_blobs(
    volume: npt.NDArray[np.int16], inside: npt.NDArray[np.bool_], spacing_mm: tuple[float, float, float], most: int
) -> list[Blob]:
    """Return the blobs of a scan with the highest scores, the best first.

    Parameters
    ----------
    volume
        int16[z, y, x], HU.
    inside
        bool[z, y, x], lungs with what lies in them.
    spacing_mm
        Along z, y, x.
    most
        Largest number of blobs.
    """
    box = _bounding_box(inside)
    if box is None:
        return []
    steps = [max(1, int(COARSEST_MM / spacing)) for spacing in spacing_mm]
    image = _average(volume[box], inside[box], steps)
    if min(image.shape) < 3:
        return []
    sizes = np.array([step * spacing for step, spacing in zip(steps, spacing_mm, strict=True)])
    parts = [_find_at(image, sizes, sigma) for sigma in SIGMAS_MM]
    places, scores = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    sigmas = np.repeat(SIGMAS_MM, [len(part[1]) for part in parts])
    kept = _keep_best(places * sizes, scores, sigmas, most)
    start = np.array([side.start for side in box])
    centers = start + (places[kept] + 0.5) * steps - 0.5
    return [
        Blob(center=(center[0], center[1], center[2]), diameter_mm=float(DIAMETERS * sigma), score=score)
        for center, sigma, score in zip(centers.tolist(), sigmas[kept], scores[kept].tolist(), strict=True)
    ]


def _bounding_box(inside: npt.NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return the slices along z, y, x that contain all voxels inside; None without any."""
    planes = inside.any(axis=(1, 2))
    if not planes.any():
        return None
    rows, columns = inside.any(axis=(0, 2)), inside.any(axis=(0, 1))
    ends = [np.flatnonzero(used)[[0, -1]] for used in (planes, rows, columns)]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def _average(volume: npt.NDArray[np.int16], inside: npt.NDArray[np.bool_], steps: list[int]) -> Image:
    """Map HU to 0 to 1, and average blocks of `steps` voxels; blocks that are not whole are left out."""
    counts = [max(1, side // step) for side, step in zip(volume.shape, steps, strict=True)]
    steps = [min(step, side) for step, side in zip(steps, volume.shape, strict=True)]
    image = np.empty(counts, dtype=np.float32)
    z, y, x = steps
    for index, target in enumerate(image):  # a few slices at a time, so that no array of the scan's size is made
        part = slice(index * z, (index + 1) * z), slice(0, counts[1] * y), slice(0, counts[2] * x)
        values = np.clip((volume[part].astype(np.float32) - LOW_HU) / (HIGH_HU - LOW_HU), 0, 1) * inside[part]
        target[...] = values.reshape(z, counts[1], y, counts[2], x).mean(axis=(0, 2, 4))
    return image


def _find_at(image: Image, sizes: Floats, sigma: float) -> tuple[Floats, Floats]:
    """Return the places float64[n, 3] in voxels z, y, x of the image, and the scores, of blobs of one size."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(image, sigma / sizes, truncate=3.0)
    bright = np.zeros_like(smooth)
    middle = (slice(1, -1),) * 3
    for axis, size in enumerate(sizes):
        before, behind = (tuple(side if along == axis else slice(1, -1) for along in range(3))
                          for side in (slice(0, -2), slice(2, None)))  # fmt: skip
        bright[middle] -= (smooth[before] + smooth[behind] - 2 * smooth[middle]) / np.float32(size**2)
    bright *= np.float32(sigma**2)
    reach = [2 * max(1, round(sigma / size)) + 1 for size in sizes]
    found = np.argwhere((ndimage.maximum_filter(bright, reach) == bright) & (bright > LOWEST))
    values = np.linalg.eigvalsh(_hessians(smooth, found, sizes))
    is_round = values[:, 2] < 0
    found, values = found[is_round], values[is_round]
    return found + _refine(bright, found), sigma**2 * values[:, 2] ** 2 / -values[:, 0]


def _hessians(smooth: Image, places: npt.NDArray[np.int64], sizes: Floats) -> Floats:
    """Return the second derivatives float64[n, 3, 3] at voxels z, y, x, none of them on the border, in 1/mm²."""

    def at(*moves: tuple[int, int]) -> Floats:
        moved = places.copy()
        for axis, step in moves:
            moved[:, axis] += step
        return smooth[moved[:, 0], moved[:, 1], moved[:, 2]].astype(np.float64)

    result, here = np.empty((len(places), 3, 3)), at()
    for one in range(3):
        result[:, one, one] = (at((one, 1)) + at((one, -1)) - 2 * here) / sizes[one] ** 2
        for other in range(one):
            mixed = at((one, 1), (other, 1)) + at((one, -1), (other, -1))
            mixed -= at((one, 1), (other, -1)) + at((one, -1), (other, 1))
            result[:, one, other] = result[:, other, one] = mixed / (4 * sizes[one] * sizes[other])
    return result


def _refine(bright: Image, places: npt.NDArray[np.int64]) -> Floats:
    """Return the offsets float64[n, 3] of maxima from their voxels, by a parabola along each axis.

    They are half a voxel at most, and 0 beside the border, where the neighbor is unknown.
    """
    offsets = np.zeros((len(places), 3))
    here = bright[tuple(places.T)].astype(np.float64)
    for axis in range(3):
        free = (places[:, axis] > 1) & (places[:, axis] < bright.shape[axis] - 2)
        low, high = places[free], places[free]  # copies
        low[:, axis] -= 1
        high[:, axis] += 1
        before, behind = bright[tuple(low.T)].astype(np.float64), bright[tuple(high.T)].astype(np.float64)
        bend = np.maximum(2 * here[free] - before - behind, 1e-12)
        offsets[free, axis] = np.clip((behind - before) / (2 * bend), -0.5, 0.5)
    return offsets


def _keep_best(places_mm: Floats, scores: Floats, sigmas: Floats, most: int) -> npt.NDArray[np.int64]:
    """Return the indices of the best blobs that lie apart, the best first; of equal ones the first in z, y, x."""
    order = np.lexsort((places_mm[:, 2], places_mm[:, 1], places_mm[:, 0], -scores))
    kept: list[int] = []
    free = np.ones(len(scores), dtype=bool)
    for index in order.tolist():
        if len(kept) == most:
            break
        if free[index]:
            kept.append(index)
            distance = np.linalg.norm(places_mm - places_mm[index], axis=1)
            free &= distance >= np.maximum(APART_MM, APART_SIGMAS * sigmas)
    return np.array(kept, dtype=np.int64)
