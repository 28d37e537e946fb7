"""The patient of a synthetic chest: measures, and the surfaces of lungs, mediastinum and diaphragm.

Coordinates are mm: x to the patient's left, y to posterior, z to superior, 0 in the middle of the chest. Every function
takes positions that broadcast against each other, a grid or a list of points.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from slicemill.ct.chest.shapes import Floats, ellipse, ellipsoid, smooth_max

Side = Literal[-1, 1]
"""The right lung is at negative x, the left at positive."""
RIGHT: Side = -1
LEFT: Side = 1
SIDES: tuple[Side, Side] = (RIGHT, LEFT)
ROUND_MM = 9.0
"""Width over which the surfaces of a lung pass into each other."""
APEX_MM, DOME_MM = 128.0, 40.0
"""Heights of the tip of a lung, and where it begins to narrow."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Measures of a patient, drawn once for a scan."""

    girth: float
    """Relative width; all positions across scale with it."""
    fat_mm: float
    blood_hu: float
    lung_hu: float
    gradient_hu: float
    """Rise of the lung's HU from front to back."""
    breath_mm: float
    """Height of the diaphragm above the usual."""
    emphysema: float
    """Share of the lung with holes, about."""
    waves: Floats
    """float32[n, 4]: wave vectors x, y, z, 1/mm, and phases, of what makes surfaces uneven."""

    def unevenness(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return a smooth random function of about standard deviation 1."""
        turns = [(a * x, b * y + (c * z + phase)) for a, b, c, phase in self.waves]
        if x.shape == (1, 1, x.size) and np.broadcast_shapes(y.shape, z.shape)[-1:] == (1,):
            total = _sum_sines(turns)
        else:
            total = sum(np.sin(along_x + others) for along_x, others in turns)
        return np.asarray(total * np.float32(np.sqrt(2 / len(self.waves))), dtype=np.float32)


def _sum_sines(turns: list[tuple[Floats, Floats]]) -> Floats:
    """Return the sum of sin(a + b) over pairs a float32[1, 1, x], b float32[z, y, 1]: one product of matrices.

    As sin(a + b) = sin(b) cos(a) + cos(b) sin(a), sines are taken of a line and of a plane only.
    """
    rows = np.concatenate([np.concatenate([np.sin(b), np.cos(b)], axis=-1) for _, b in turns], axis=-1)
    columns = np.concatenate([np.concatenate([np.cos(a), np.sin(a)], axis=1) for a, _ in turns], axis=1)
    return np.asarray(rows @ columns[0], dtype=np.float32)


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw the measures of a patient."""
    vectors = rng.standard_normal((9, 3))
    vectors *= 2 * np.pi / (rng.uniform(28, 110, (9, 1)) * np.linalg.norm(vectors, axis=1, keepdims=True))
    waves = np.column_stack([vectors, rng.uniform(0, 2 * np.pi, 9)])
    return Patient(
        girth=float(rng.uniform(0.88, 1.06)),
        fat_mm=float(rng.gamma(3.0, 5.0) + 5),
        blood_hu=float(rng.uniform(120, 260) if rng.random() < 0.4 else rng.uniform(35, 50)),
        lung_hu=float(rng.uniform(-905, -855)),
        gradient_hu=float(rng.uniform(40, 80)),
        breath_mm=float(rng.uniform(-12, 14)),
        emphysema=float(max(0.0, rng.uniform(-0.3, 0.12))),
        waves=waves.astype(np.float32),
    )


def cavity_distance(patient: Patient, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return the distance to the inner surface of the chest wall, negative inside."""
    g = patient.girth
    rise = np.clip((z - 5) / 125, 0, 1) ** 2
    narrow, flatter = 1 - 0.40 * rise, 1 - 0.28 * rise
    flat = np.maximum(y - 30, 0) * 0.10  # the back is flatter than the front
    return ellipse(x, y + flat, (136 * g * narrow, 95 * g * flatter))


def heart_distance(patient: Patient, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return the distance to the heart with its fat, tilted to the left and down."""
    g = patient.girth
    u = (x - 20 * g) * 0.86 - (z + 38) * 0.5
    v = (x - 20 * g) * 0.5 + (z + 38) * 0.86
    return ellipsoid(u, y + 24, v, (62 * g, 46 * g, 44))


def aorta_distance(patient: Patient, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return the distance to the aorta: its ascending part, its arch, and its descending part beside the spine."""
    g = patient.girth
    below_arch = np.maximum(z - 62, 0)
    descending = np.sqrt((x - 18 * g) ** 2 + (y - 40 * g) ** 2 + below_arch**2) - 12
    ascending = np.sqrt((x + 12) ** 2 + (y + 22) ** 2 + below_arch**2 + np.minimum(z, 0) ** 2) - 15
    across = (x - 3 * g) * 0.9 - (y - 9 * g) * 0.43
    arch = ellipsoid(across, (y - 9 * g) * 0.9 + (x - 3 * g) * 0.43, z - 66, (13, 46 * g, 14))
    return np.asarray(np.minimum(np.minimum(descending, ascending), arch), dtype=np.float32)


def mediastinum_distance(patient: Patient, side: Side, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return the distance to all that lies between the lungs, as one of them sees it."""
    g = patient.girth
    width = 10 + 14 * np.exp(-(((y - 6) / 34) ** 2)) + 8 * np.exp(-(((z - 24) / 26) ** 2) - ((y - 8) / 26) ** 2)
    if side == RIGHT:  # the superior vena cava
        width = width + 8 * np.exp(-(((y + 14) / 14) ** 2)) * np.clip((z - 5) / 20, 0, 1)
    middle = side * x - width * g
    spine = ellipse(x, y - 66 * g, (25.0, 23.0))
    heart = heart_distance(patient, x, y, z)
    nearest = np.minimum(np.minimum(middle, spine), np.minimum(heart, aorta_distance(patient, x, y, z)))
    return np.asarray(nearest, dtype=np.float32)


def diaphragm_height(patient: Patient, side: Side, x: Floats, y: Floats) -> Floats:
    """Return the height of the diaphragm, mm: a dome that falls off to the ribs, most at the back."""
    g = patient.girth
    top = patient.breath_mm - (62 if side == RIGHT else 72)
    across, deep = (x - side * 62 * g) / (96 * g), (y + 12 * g) / (100 * g)
    return np.asarray(top - 45 * (across * across + deep * deep), dtype=np.float32)


def lung_distance(patient: Patient, side: Side, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return about the distance to the surface of a lung, negative inside: float32, of the positions' shape."""
    g = patient.girth
    wider = 1 + np.maximum(DOME_MM - z, 0) / 40
    tip = np.sqrt(
        ((x - side * 56 * g) / (66 * g * wider)) ** 2
        + ((y - 4 * g) / (86 * g * wider)) ** 2
        + (np.maximum(z - DOME_MM, 0) / (APEX_MM - DOME_MM)) ** 2
    )
    distance = smooth_max(cavity_distance(patient, x, y, z), np.asarray((tip - 1) * 60, dtype=np.float32), ROUND_MM)
    distance = smooth_max(distance, -mediastinum_distance(patient, side, x, y, z), ROUND_MM)
    floor = (diaphragm_height(patient, side, x, y) - z) * np.float32(0.8)
    distance = smooth_max(distance, floor, 4.0)
    return np.asarray(distance + 1.2 * patient.unevenness(x, y, z), dtype=np.float32)


def nearest_lung(patient: Patient, x: Floats, y: Floats, z: Floats) -> Floats:
    """Return about the distance to the nearer lung, negative inside of one."""
    return np.minimum(lung_distance(patient, RIGHT, x, y, z), lung_distance(patient, LEFT, x, y, z))


def fissure_distances(patient: Patient, side: Side, x: Floats, y: Floats, z: Floats) -> tuple[Floats, ...]:
    """Return the signed distances to the fissures of a lung: the oblique one, and the right lung's horizontal one."""
    bent = 4 * patient.unevenness(0.6 * x, 0.6 * y, 0.6 * z)
    sine = np.float32(0.74 if side == RIGHT else 0.68)
    oblique = (z + 15) * np.sqrt(1 - sine**2) - y * sine + bent + 0.1 * np.abs(x)
    if side == LEFT:
        return (np.asarray(oblique, dtype=np.float32),)
    horizontal = z - 6 + 0.12 * y + 1.3 * bent + 0.05 * np.abs(x)
    return np.asarray(oblique, dtype=np.float32), np.where(oblique > 0, horizontal, 99).astype(np.float32)
