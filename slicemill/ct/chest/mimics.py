"""What has the density of a nodule and is none: scars, bands, plaques, mucus, lymph nodes, ends of ribs, knots.

A nodule is a rounded opacity, mostly surrounded by lung (British Thoracic Society guidelines, Thorax 2015, table 1). So
none of these lies round and free in the lung: readers would call it a nodule, and a network that finds it would be
right. Each is long or flat, or touches a wall, a bronchus or a vessel. Nodules may touch them, too: form, density and
what is touched tell them apart.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.patient import SIDES, Patient, cavity_distance, nearest_lung
from slicemill.ct.chest.places import split
from slicemill.ct.chest.trees import LARGE_AIRWAYS, LungTrees, Tubes, bronchial_walls, sample_lung

Floats = npt.NDArray[np.float64]
UNEVEN_MM = 6.0
"""A lung reaches up to so far beyond the even inner surface of the chest wall, or stays away from it."""
HILAR_BRONCHUS_MM = 2.8
"""Smallest radius of the bronchi on which hilar lymph nodes lie: the first few of each lung."""


@dataclass(frozen=True, kw_only=True)
class Lump:
    """An ellipsoid of soft tissue in the lung."""

    center: Floats
    """float64[3]: x, y, z, mm."""
    frame: Floats
    """float64[3, 3]: rows are the directions of its axes."""
    half_mm: Floats
    """float64[3]: half the lengths of its axes."""
    hu: float
    soft_mm: float = 0.0
    """Width over which the edge fades."""

    @property
    def reach_mm(self) -> float:
        """Return the largest distance of its surface from its center."""
        return float(self.half_mm.max()) + self.soft_mm

    def distance(self, offset: Floats) -> Floats:
        """Return about the distance of points float64[..., 3] from the surface, relative to the center."""
        local = offset @ self.frame.T
        scaled = np.linalg.norm(local / self.half_mm, axis=-1)
        slope = np.linalg.norm(local / self.half_mm**2, axis=-1) / np.maximum(scaled, 1e-6)
        return np.asarray((scaled - 1) / np.maximum(slope, 1e-3), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Mimics:
    """All of a patient's."""

    lumps: tuple[Lump, ...]
    mucus: Tubes
    """Parts of bronchi that are filled."""


def draw_mimics(patient: Patient, trees: LungTrees, rng: np.random.Generator) -> Mimics:
    """Draw a patient's findings that are no nodules."""
    lumps = [
        *_draw_scars(patient, rng),
        *_draw_plaques(patient, rng),
        *_draw_hilar_nodes(trees, rng),
        *_draw_rib_ends(patient, rng),
        *_draw_knots(trees, rng),
    ]
    return Mimics(lumps=tuple(lumps), mucus=_draw_mucus(trees, rng))


def _turn(rng: np.random.Generator, normal: Floats | None = None) -> Floats:
    """Return a random frame; its last row is `normal`, if given."""
    rows = rng.standard_normal((3, 3))
    if normal is not None:
        rows[2] = normal
    basis, _ = np.linalg.qr(rows[::-1].T)
    return np.asarray(basis.T[::-1], dtype=np.float64)


def _wall_normal(patient: Patient, point: Floats) -> Floats:
    """Return the direction to the lung's surface at a point."""
    steps = point + np.concatenate([np.zeros((1, 3)), np.eye(3)])
    values = nearest_lung(patient, *split(steps)).astype(np.float64)
    slope = values[1:] - values[0]
    return np.asarray(slope / max(float(np.linalg.norm(slope)), 1e-6), dtype=np.float64)


def _near_wall(patient: Patient, rng: np.random.Generator, deepest_mm: float) -> Floats:
    """Draw a point in a lung, at most so deep below its surface at the chest wall."""
    while True:
        side = SIDES[int(rng.integers(2))]
        points = sample_lung(patient, side, 1024, rng, depth_mm=0.0)
        deep = -nearest_lung(patient, *split(points)) > deepest_mm
        at_wall = -cavity_distance(patient, *split(points)) < deepest_mm + UNEVEN_MM
        fitting = points[at_wall & ~deep]
        if len(fitting):
            return np.asarray(fitting[0], dtype=np.float64)


def _draw_scars(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw scars and bands: at least 2.5 times as long as wide, most of them near the pleura."""
    lumps = []
    for _ in range(int(rng.integers(3, 12))):
        point = _near_wall(patient, rng, 40.0)
        wide = rng.uniform(1.2, 4.5)
        half = np.array([max(wide * rng.uniform(2.5, 5.0), 5.0), wide, rng.uniform(0.7, 1.6)])
        lumps.append(Lump(center=point, frame=_turn(rng), half_mm=half, hu=float(rng.uniform(-250, 40)), soft_mm=0.6))
    return lumps


def _draw_plaques(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw plaques and thickenings of the pleura: on the chest wall, at least three times as wide as high."""
    lumps = []
    for _ in range(int(rng.integers(0, 8))):
        point = _near_wall(patient, rng, 0.8)
        height = rng.uniform(1.0, 2.5)
        half = np.array([height * rng.uniform(3, 6), height * rng.uniform(3, 5), height])
        frame = _turn(rng, _wall_normal(patient, point))
        lumps.append(Lump(center=point, frame=frame, half_mm=half, hu=float(rng.uniform(20, 90)), soft_mm=0.5))
    return lumps


def _draw_hilar_nodes(trees: LungTrees, rng: np.random.Generator) -> list[Lump]:
    """Draw lymph nodes on the walls of the large bronchi."""
    bronchi, walls = trees.bronchi, bronchial_walls(trees.bronchi)
    near = np.flatnonzero(bronchi.radii > HILAR_BRONCHUS_MM)
    near = near[near >= LARGE_AIRWAYS]  # nodes at trachea and main bronchi are not in the lung
    lumps = []
    for index in rng.choice(near, int(rng.integers(2, 7))):
        along = bronchi.ends[index] - bronchi.starts[index]
        away = np.cross(along, rng.standard_normal(3))
        away /= max(float(np.linalg.norm(away)), 1e-6)
        half = rng.uniform(3.5, 8, 3)
        center = bronchi.starts[index] + rng.random() * along + away * (walls.radii[index] + 0.7 * half.min())
        lumps.append(Lump(center=center, frame=_turn(rng), half_mm=half, hu=float(rng.uniform(25, 60))))
    return lumps


def _draw_rib_ends(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw ends of ribs that push the pleura inward: caps, wider than high."""
    lumps = []
    for _ in range(int(rng.integers(2, 7))):
        point = _near_wall(patient, rng, 0.5)
        half = np.array([rng.uniform(5, 9), rng.uniform(4.5, 6), rng.uniform(2.0, 3.8)])
        frame = _turn(rng, _wall_normal(patient, point))
        lumps.append(Lump(center=point, frame=frame, half_mm=half, hu=float(rng.uniform(80, 250)), soft_mm=0.8))
    return lumps


def _draw_knots(trees: LungTrees, rng: np.random.Generator) -> list[Lump]:
    """Draw knots where vessels divide, and vessels that are wider for a short way, two to four times as long."""
    lumps = []
    chosen = rng.permutation(len(trees.forks))[: int(0.35 * len(trees.forks))]
    for *center, radius in trees.forks[chosen]:
        half = radius * rng.uniform(1.1, 1.65) * rng.uniform(0.88, 1.12, 3)
        lumps.append(Lump(center=np.array(center), frame=_turn(rng), half_mm=half, hu=float(rng.uniform(25, 55))))
    vessels = trees.vessels
    thin = rng.permutation(np.flatnonzero((vessels.radii > 0.55) & (vessels.radii < 1.9)))
    for index in thin[: int(rng.integers(40, 100))]:
        along = vessels.ends[index] - vessels.starts[index]
        length = float(np.linalg.norm(along))
        frame = _turn(rng, along / max(length, 1e-6))
        wide = vessels.radii[index] * rng.uniform(1.4, 2.2)
        half = np.array([wide, wide * rng.uniform(0.8, 1.1), wide * rng.uniform(2.0, 4.0)])
        center = vessels.starts[index] + along * rng.random()
        lumps.append(Lump(center=center, frame=frame, half_mm=half, hu=float(rng.uniform(20, 50))))
    return lumps


def _draw_mucus(trees: LungTrees, rng: np.random.Generator) -> Tubes:
    """Choose bronchi that are filled with mucus for a part of their way."""
    bronchi = trees.bronchi
    small = np.flatnonzero((bronchi.radii > 0.6) & (bronchi.radii < 2.5))
    chosen = rng.permutation(small)[: int(rng.integers(2, 12))]
    start, along = bronchi.starts[chosen], bronchi.ends[chosen] - bronchi.starts[chosen]
    first = rng.uniform(0, 0.6, (len(chosen), 1))
    last = first + rng.uniform(0.15, 0.4, (len(chosen), 1))
    return Tubes(
        starts=start + first * along,
        ends=start + last * along,
        radii=bronchi.radii[chosen] * rng.uniform(1.2, 2.0, len(chosen)),
    )
