"""Places of nodules in a lung: free, on a vessel, on the pleura, at a fissure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.nodule_shape import Shape
from slicemill.ct.chest.patient import (
    SIDES,
    Patient,
    Side,
    cavity_distance,
    fissure_distances,
    lung_distance,
    nearest_lung,
)
from slicemill.ct.chest.spec import Place
from slicemill.ct.chest.trees import LungTrees, sample_lung

Floats = npt.NDArray[np.float64]
GRID = 25
"""Points along each side of the cube in which a nodule is measured."""
TRIES = 40
"""Draws of 256 points each, among which a place is searched."""
APART_MM = 6.0
BESIDE_VESSEL_MM = (0.7, 2.2)
"""Radii of the vessels that nodules lie on."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the place of a nodule depends on."""

    patient: Patient
    trees: LungTrees
    taken: Sequence[tuple[Floats, float]]
    """Center and reach, mm, of the nodules that have a place."""

    def is_free(self, center: Floats, reach_mm: float) -> bool:
        """Return whether a nodule would touch none of the others."""
        return all(np.linalg.norm(center - other) > reach_mm + reach + APART_MM for other, reach in self.taken)


def split(points: Floats) -> tuple[npt.NDArray[np.float32], ...]:
    """Return x, y, z of points float64[..., 3], as the functions of `patient` take them."""
    return tuple(np.moveaxis(points.astype(np.float32), -1, 0))


def find_place(around: Surroundings, place: Place, shape: Shape, rng: np.random.Generator) -> Floats:
    """Find a center for a nodule: float64[3], mm.

    A place that is not there in this patient for this size, such as one free of vessels for 30 mm, becomes one on the
    pleura, and at last any in the lung.
    """
    for wanted in (place, "pleura", "anywhere"):
        for _ in range(TRIES):
            side = SIDES[int(rng.random() < 0.46)]
            centers = _propose(around, wanted, side, shape, rng)
            for center in centers[:24]:
                if around.is_free(center, shape.reach_mm) and _suits(around, wanted, center, shape):
                    return np.asarray(center, dtype=np.float64)
    raise RuntimeError("no room for a nodule")  # 12 of 32 mm take 0.2 of 4 liters


def _propose(around: Surroundings, place: str, side: Side, shape: Shape, rng: np.random.Generator) -> Floats:
    """Draw centers that may suit: float64[n, 3]."""
    patient, radius = around.patient, shape.radius_mm
    if place == "vessel":
        vessels = around.trees.vessels
        chosen = np.flatnonzero((vessels.radii > BESIDE_VESSEL_MM[0]) & (vessels.radii < BESIDE_VESSEL_MM[1]))
        chosen = rng.choice(chosen, 64)
        share = rng.random((64, 1))
        spots = vessels.starts[chosen] * share + vessels.ends[chosen] * (1 - share)
        way = rng.standard_normal((64, 3))
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        centers = spots + way * (vessels.radii[chosen] + 0.55 * radius)[:, None]
        return centers[nearest_lung(patient, *split(centers)) < -1.1 * radius - 1]
    points = sample_lung(patient, side, 256, rng, depth_mm=0.5)
    x, y, z = split(points)
    depth = -lung_distance(patient, side, x, y, z)
    if place == "pleura":
        at_ribs = -cavity_distance(patient, x, y, z) < 3 + radius
        return points[(depth > 0.35 * radius) & (depth < 0.8 * radius) & at_ribs]
    inside = depth > radius + (2.0 if place == "free" else 0.5)
    if place == "fissure":
        near = np.minimum.reduce([np.abs(d) for d in fissure_distances(patient, side, x, y, z)])
        inside &= near < 0.8 * radius
    return points[inside]


def _suits(around: Surroundings, place: str, center: Floats, shape: Shape) -> bool:
    """Return whether a free nodule is free of vessels that can be seen, and others are not inside of large ones."""
    vessels, airways = around.trees.vessels, around.trees.bronchi
    if airways.clearance(center) < 0.6 * shape.radius_mm:
        return False
    if place == "free":
        return vessels.pick(vessels.radii > 0.75).clearance(center) > shape.radius_mm + 1.0
    return vessels.pick(vessels.radii > 2.5).clearance(center) > 0.5 * shape.radius_mm


def measure(patient: Patient, center: Floats, shape: Shape) -> tuple[Floats, float]:
    """Return center of mass, mm, and diameter of the ball of equal volume, of a nodule's part inside of the lungs."""
    ticks = (np.arange(GRID) - (GRID - 1) / 2) / (GRID / 2) * shape.reach_mm
    offsets = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1)
    step = float(ticks[1] - ticks[0])
    share = np.clip(0.5 - shape.distance(offsets) / step, 0, 1)
    share *= np.clip(0.5 - nearest_lung(patient, *split(center + offsets)) / step, 0, 1)
    total = float(share.sum())
    if total == 0:
        return center, 0.0
    centroid = center + (share[..., None] * offsets).sum(axis=(0, 1, 2)) / total
    return centroid, float(np.cbrt(total * step**3 * 6 / np.pi))
