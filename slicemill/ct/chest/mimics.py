"""What has the density of a nodule and is none: scars, bands, plaques, mucus, lymph nodes, ends of ribs, knots."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.patient import SIDES, Patient, cavity_distance
from slicemill.ct.chest.places import split
from slicemill.ct.chest.trees import LungTrees, Tubes, sample_lung

Floats = npt.NDArray[np.float64]


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
        *_draw_hilar_nodes(patient, rng),
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
    """Return the direction to the chest wall at a point."""
    steps = point + np.concatenate([np.zeros((1, 3)), np.eye(3)])
    x, y, z = split(steps)
    values = cavity_distance(patient, x, y, z).astype(np.float64)
    slope = values[1:] - values[0]
    return np.asarray(slope / max(float(np.linalg.norm(slope)), 1e-6), dtype=np.float64)


def _near_wall(patient: Patient, rng: np.random.Generator, depth_mm: tuple[float, float]) -> Floats:
    """Draw a point in a lung, at a depth below the chest wall within two limits."""
    while True:
        side = SIDES[int(rng.integers(2))]
        points = sample_lung(patient, side, 1024, rng, depth_mm=0.0)
        depth = -cavity_distance(patient, *split(points))
        fitting = points[(depth >= depth_mm[0]) & (depth <= depth_mm[1])]
        if len(fitting):
            return np.asarray(fitting[0], dtype=np.float64)


def _draw_scars(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw scars and bands: flat or long, most of them near the pleura, and small round ones that are shorter."""
    lumps = []
    for _ in range(int(rng.integers(3, 12))):
        point = _near_wall(patient, rng, (1.0, 40.0))
        half = np.array([rng.uniform(3, 16), rng.uniform(1.5, 5), rng.uniform(0.7, 1.8)])
        lumps.append(Lump(center=point, frame=_turn(rng), half_mm=half, hu=float(rng.uniform(-250, 40)), soft_mm=0.6))
    return lumps


def _draw_plaques(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw plaques and thickenings of the pleura: flat, along the chest wall."""
    lumps = []
    for _ in range(int(rng.integers(0, 8))):
        point = _near_wall(patient, rng, (0.0, 2.0))
        half = np.array([rng.uniform(3, 12), rng.uniform(3, 9), rng.uniform(1.2, 2.8)])
        frame = _turn(rng, _wall_normal(patient, point))
        lumps.append(Lump(center=point, frame=frame, half_mm=half, hu=float(rng.uniform(20, 90)), soft_mm=0.5))
    return lumps


def _draw_hilar_nodes(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw lymph nodes at the hilum, which bulge into the lung."""
    lumps = []
    for side in SIDES:
        for _ in range(int(rng.integers(1, 4))):
            center = np.array([side * 34 * patient.girth, 8.0, 12.0]) + rng.normal(0, (4, 10, 14))
            half = rng.uniform(3.5, 8, 3)
            lumps.append(Lump(center=center, frame=_turn(rng), half_mm=half, hu=float(rng.uniform(25, 60))))
    return lumps


def _draw_rib_ends(patient: Patient, rng: np.random.Generator) -> list[Lump]:
    """Draw ends of ribs and spurs of vertebrae that push the pleura inward."""
    lumps = []
    for _ in range(int(rng.integers(2, 7))):
        point = _near_wall(patient, rng, (-1.0, 1.5))
        half = np.array([rng.uniform(5, 9), rng.uniform(4, 6), rng.uniform(2.0, 4.5)])
        frame = _turn(rng, _wall_normal(patient, point))
        lumps.append(Lump(center=point, frame=frame, half_mm=half, hu=float(rng.uniform(80, 250)), soft_mm=0.8))
    return lumps


def _draw_knots(trees: LungTrees, rng: np.random.Generator) -> list[Lump]:
    """Draw knots where vessels divide, and vessels that are wider for a short way: as thick as a small nodule."""
    lumps = []
    chosen = rng.permutation(len(trees.forks))[: int(0.35 * len(trees.forks))]
    for *center, radius in trees.forks[chosen]:
        half = radius * rng.uniform(1.15, 1.75) * rng.uniform(0.85, 1.15, 3)
        lumps.append(Lump(center=np.array(center), frame=_turn(rng), half_mm=half, hu=float(rng.uniform(25, 55))))
    vessels = trees.vessels
    thin = rng.permutation(np.flatnonzero((vessels.radii > 0.55) & (vessels.radii < 1.9)))
    for index in thin[: int(rng.integers(40, 100))]:
        along = vessels.ends[index] - vessels.starts[index]
        length = float(np.linalg.norm(along))
        frame = _turn(rng, along / max(length, 1e-6))
        wide = vessels.radii[index] * rng.uniform(1.7, 2.7)
        half = np.array([wide, wide * rng.uniform(0.8, 1.1), wide * rng.uniform(1.2, 2.2)])
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
