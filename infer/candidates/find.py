"""Candidates: lumps of the probability of tumor that a network gives, before post-processing.

1. Voxels of at least THRESHOLD are joined into lumps (26 neighbors), on runs (`slicemill.ct.runs`), which takes no
   array of the scan's size. Nothing is eroded: a lump of one voxel is one.
2. Where the model labels an organ, a lump counts if one of its voxels lies within REACH_MM of a voxel of the organ.
   That is decided on blocks of about BLOCK_MM, rounded outward along each axis, so that no lump within REACH_MM is
   lost.
3. Lumps whose centers are nearer than MERGE_MM are one.
4. At most MOST are kept, those of the highest peak. How many each step took away is counted.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.points import voxels_to_mm
from slicemill.ct.runs import Runs, connect_runs, find_runs, group_pairs, select_values, voxel_coordinates

THRESHOLD = 0.1
REACH_MM = 5.0
BLOCK_MM = 2.5
"""Half of REACH_MM. The distance of each block is computed: blocks of half the size take eight times as long."""
ROUNDING_MM = 1e-6
"""More than the rounding errors of a distance."""
MERGE_MM = 2.0
MOST = 300
Uint8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Lump:
    """One candidate, before a classifier."""

    xyz_mm: tuple[float, float, float]
    """Center in LPS mm, weighted by probability."""
    slice: int
    """Nearest slice of the center, from the lowest, 0."""
    peak: float
    """Highest probability, in steps of 1/255."""
    mean: float
    """Mean probability of its voxels."""
    volume_ml: float
    """Volume of the voxels of at least THRESHOLD."""
    diameter_mm: float
    """Diameter of the ball of this volume."""


@dataclass(frozen=True, kw_only=True)
class LumpCounts:
    """How many lumps there were, and how many each step took away."""

    found: int
    outside_organ: int
    """Lumps farther than REACH_MM from the organ; 0 if the model labels none."""
    merged: int
    """Lumps that became part of another one."""
    cut: int
    """Lumps beyond the MOST of the highest peak."""


@dataclass(kw_only=True)
class _Lumps:
    """Sums over the voxels of each lump; arrays of one length."""

    weights: Floats
    """Sum of the probabilities, in 1/255."""
    sums: Floats
    """float64[n, 3]: sums of z, y, x, weighted by them."""
    voxels: Floats
    peak: Floats

    def __len__(self) -> int:
        return len(self.peak)

    def __getitem__(self, chosen: npt.NDArray[np.generic]) -> "_Lumps":
        return _Lumps(
            weights=self.weights[chosen], sums=self.sums[chosen], voxels=self.voxels[chosen], peak=self.peak[chosen]
        )

    @property
    def centers(self) -> Floats:
        """Return float64[n, 3]: z, y, x in voxels."""
        return self.sums / self.weights[:, None]

    def merge(self, numbers: npt.NDArray[np.int32], count: int) -> "_Lumps":
        """Add up the lumps that have one of `count` numbers."""
        peak = np.zeros(count)
        np.maximum.at(peak, numbers, self.peak)
        columns = [np.bincount(numbers, column, count) for column in self.sums.T]
        return _Lumps(
            weights=np.bincount(numbers, self.weights, count).astype(np.float64),
            sums=np.stack(columns, axis=1),
            voxels=np.bincount(numbers, self.voxels, count).astype(np.float64),
            peak=peak,
        )


def find_lumps(
    probability: Uint8s, grid: Grid, label: Uint8s | None = None, organ_values: tuple[int, ...] = ()
) -> tuple[tuple[Lump, ...], LumpCounts]:
    """Return the candidates of a scan, the highest peak first, and the counts of those that were taken away.

    Parameters
    ----------
    probability
        uint8[z, y, x], 255 times the probability of tumor.
    grid
        The scan's grid.
    label
        uint8[z, y, x], label values, before post-processing; None if the model labels no organ.
    organ_values
        Label values of the organ, without those of tumor.
    """
    affine = grid.affine_lps
    runs = find_runs(probability >= math.ceil(THRESHOLD * 255))
    numbers, found = connect_runs(runs)
    near = None
    if label is not None and organ_values and found:
        near = _Nearness(label, organ_values, grid.spacing_mm)
    lumps, is_near = _measure(probability, runs, (numbers, found), near)
    lumps = lumps[is_near]
    outside, apart = found - len(lumps), len(lumps)
    if apart:
        places = voxels_to_mm(affine, lumps.centers)
        pairs = cKDTree(places).query_pairs(math.nextafter(MERGE_MM, 0), output_type="ndarray")
        lumps = lumps.merge(*group_pairs(apart, pairs[:, 0], pairs[:, 1]))
    centers = lumps.centers
    # equal peaks: the larger lump, then the lower one, so that the order does not depend on how they were found
    order = np.lexsort((centers[:, 2], centers[:, 1], centers[:, 0], -lumps.voxels, -lumps.peak))
    kept = order[:MOST]
    counts = LumpCounts(found=found, outside_organ=outside, merged=apart - len(lumps), cut=max(0, len(lumps) - MOST))
    return _describe(lumps[kept], affine), counts


def _describe(lumps: _Lumps, affine: Floats) -> tuple[Lump, ...]:
    volumes = lumps.voxels * voxel_ml(affine)
    return tuple(
        Lump(
            xyz_mm=(xyz[0], xyz[1], xyz[2]),
            slice=round(center[0]),
            peak=peak / 255,
            mean=mean / 255,
            volume_ml=volume,
            diameter_mm=(6000 * volume / math.pi) ** (1 / 3),
        )
        for xyz, center, peak, mean, volume in zip(
            voxels_to_mm(affine, lumps.centers).tolist(),
            lumps.centers.tolist(),
            lumps.peak.tolist(),
            (lumps.weights / lumps.voxels).tolist(),
            volumes.tolist(),
            strict=True,
        )
    )


def _measure(
    probability: Uint8s, runs: Runs, components: tuple[npt.NDArray[np.int32], int], near: "_Nearness | None"
) -> tuple[_Lumps, npt.NDArray[np.bool_]]:
    """Measure the lumps, and find those near the organ; `components` has the lump of each run, and their number."""
    numbers, count = components
    sums, weights, voxels = np.zeros((count, 3)), np.zeros(count), np.zeros(count)
    peak, is_near = np.zeros(count), np.full(count, near is None)
    for part, place in voxel_coordinates(runs):
        owner = np.repeat(numbers[part], runs[part].voxels)
        value = probability[place].astype(np.float64)
        weights += np.bincount(owner, value, count)
        voxels += np.bincount(owner, minlength=count)
        for axis, along in enumerate(place):
            sums[:, axis] += np.bincount(owner, value * along, count)
        np.maximum.at(peak, owner, value)
        if near is not None:
            is_near[owner[near.holds(place)]] = True
    return _Lumps(weights=weights, sums=sums, voxels=voxels, peak=peak), is_near


class _Nearness:
    """Which blocks of a scan lie within REACH_MM of an organ."""

    def __init__(self, label: Uint8s, values: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> None:
        self._steps = [max(1, round(BLOCK_MM / spacing)) for spacing in spacing_mm]
        firsts = [np.arange(0, count, step) for count, step in zip(label.shape, self._steps, strict=True)]
        blocks = np.empty([len(first) for first in firsts], dtype=bool)
        for row, z in zip(blocks, firsts[0], strict=True):
            section = select_values(label[z : z + self._steps[0]], values).any(axis=0)
            across = np.logical_or.reduceat(section, firsts[1], axis=0)
            row[...] = np.logical_or.reduceat(across, firsts[2], axis=1)
        sizes = [step * spacing for step, spacing in zip(self._steps, spacing_mm, strict=True)]
        if blocks.any():
            distance = ndimage.distance_transform_edt(~blocks, sampling=sizes)
            # two voxels are at most a block without one voxel nearer along each axis than their blocks are
            outward = [size - spacing for size, spacing in zip(sizes, spacing_mm, strict=True)]
            blocks = distance <= REACH_MM + float(np.linalg.norm(outward)) + ROUNDING_MM
        self._blocks: npt.NDArray[np.bool_] = blocks

    def holds(self, place: tuple[npt.NDArray[np.generic], ...]) -> npt.NDArray[np.bool_]:
        """Return bool[n]: whether voxels z, y, x lie near the organ."""
        z, y, x = (np.asarray(along) // step for along, step in zip(place, self._steps, strict=True))
        return np.asarray(self._blocks[z, y, x], dtype=bool)
