"""Everything around the lungs, in HU: chest wall with ribs and spine, mediastinum, heart, and the organs below."""

import numpy as np

from slicemill.ct.chest.patient import (
    LEFT,
    RIGHT,
    Patient,
    aorta_distance,
    cavity_distance,
    diaphragm_height,
    heart_distance,
)
from slicemill.ct.chest.shapes import Floats, Reals, cover, ellipse, ellipsoid

AIR, FAT, MUSCLE, SKIN, MARROW, CORTEX, CARTILAGE, LIVER, SPLEEN = -1000, -103, 52, 5, 210, 620, 105, 62, 50
RIB_SPACING_MM, RIB_SLOPE_MM = 25.0, 95.0
"""Distance of neighboring ribs along z, and how much a rib falls from the spine to the sternum."""


def draw_body(patient: Patient, x: Floats, y: Floats, z: Floats, pixel_mm: float) -> Floats:
    """Return the HU of a chest without lungs: float32, for positions that broadcast to [z, y, x]."""
    hu = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), AIR, dtype=np.float32)
    wall = cavity_distance(patient, x, y, z)
    painter = _Painter(hu, pixel_mm)
    _draw_wall(painter, patient, wall, x, y, z)
    _draw_below(painter, patient, wall, x, y, z)
    _draw_middle(painter, patient, x, y, z)
    _draw_bones(painter, patient, wall, x, y, z)
    return hu


class _Painter:
    """Blends tissues into an array of HU, with the voxels at their edges in part."""

    def __init__(self, hu: Floats, pixel_mm: float) -> None:
        self.hu = hu
        self.pixel_mm = pixel_mm

    def paint(self, distance: Reals, hu: float | Reals) -> None:
        """Set the HU inside of a shape."""
        self.hu += cover(distance, self.pixel_mm) * (hu - self.hu)


def _draw_wall(painter: _Painter, patient: Patient, wall: Floats, x: Floats, y: Floats, z: Floats) -> None:
    """Draw table, skin, fat and muscles."""
    g, fat = patient.girth, patient.fat_mm
    half = (152 * g + 0.6 * fat + np.maximum(z - 70, 0) * 0.5, 113 * g + 0.5 * fat - np.maximum(z - 95, 0) * 0.35)
    torso = ellipse(x, y - 6, half) + 1.2 * patient.unevenness(x, y, z)
    table = np.abs(y - (122 * g + 0.5 * fat - 0.0011 * x * x)) - 2.5
    painter.paint(np.asarray(table, dtype=np.float32), -120)
    painter.paint(np.asarray(torso, dtype=np.float32), SKIN)
    painter.paint(torso + 1.8, FAT + 6 * patient.unevenness(2 * x, 2 * y, 2 * z))
    back = 20 * np.exp(-((np.abs(x) - 26) ** 2) / 500) * (y > 20)
    chest = 15 * np.exp(-((np.abs(x) - 72 * g) ** 2) / 1500) * np.clip((-y - 5) / 40, 0, 1)
    chest = chest * np.clip((z + 30) / 50, 0, 1)
    shoulder = 22 * np.exp(-((np.abs(x) - 105 * g) ** 2) / 1800) * np.clip((y + 10) / 40, 0, 1) * np.clip(z / 40, 0, 1)
    armpit = 26 * np.clip((z - 50) / 80, 0, 1) * np.clip(np.abs(x) / 60, 0, 1)
    thickness = 11 + armpit + back + chest + shoulder + 2.5 * patient.unevenness(1.7 * x, 1.7 * y, z)
    muscle = np.maximum(wall - thickness, torso + 4)
    painter.paint(np.asarray(muscle, dtype=np.float32), MUSCLE + 5 * patient.unevenness(3 * x, 3 * y, 2 * z))
    seam = np.abs(wall - 12.5 - 2 * patient.unevenness(2 * x, 2 * y, 2 * z)) - 0.9
    painter.paint(np.maximum(seam, muscle), -70)
    painter.paint(wall - 2.0, -25)
    painter.paint(wall, FAT + 5)


def _draw_below(painter: _Painter, patient: Patient, wall: Floats, x: Floats, y: Floats, z: Floats) -> None:
    """Draw liver, spleen and stomach with gas, below the diaphragm."""
    g = patient.girth
    for side in (LEFT, RIGHT):
        below = np.maximum((z - diaphragm_height(patient, side, x, y)) * 0.8, wall + 0.5)
        below = np.maximum(below, -side * x - 12)
        painter.paint(below, 40)  # the diaphragm
        inner = below + 2.5
        painter.paint(inner, FAT)
        if side == RIGHT:
            painter.paint(inner + 0.5, LIVER + 4 * patient.unevenness(x, y, z))
            continue
        top = patient.breath_mm - 72
        painter.paint(np.maximum(inner, ellipsoid(x - 92 * g, y - 38 * g, z - top + 42, (34, 40, 48))), SPLEEN)
        stomach = np.maximum(inner, ellipsoid(x - 62 * g, y + 18 * g, z - top + 40, (46 * g, 48 * g, 44)))
        painter.paint(stomach, 38)
        painter.paint(np.maximum(stomach + 3, y + 22 * g), -960)
        painter.paint(np.maximum(stomach + 3, -(y + 22 * g)), 25)
        painter.paint(np.maximum(inner, ellipsoid(x - 20, y + 40 * g, z - top + 48, (60 * g, 38 * g, 36))), LIVER)


def _draw_middle(painter: _Painter, patient: Patient, x: Floats, y: Floats, z: Floats) -> None:
    """Draw heart, great vessels, lymph nodes and esophagus in the fat between the lungs."""
    g, blood = patient.girth, patient.blood_hu
    heart = heart_distance(patient, x, y, z)
    painter.paint(heart + 3, 48)
    if blood > 60:  # with contrast agent, the chambers show
        septum = np.abs((x - 20 * g) * 0.62 - (y + 24) * 0.78 + 5) - 4.5
        atria = np.abs((x - 20 * g) * 0.7 + (y + 24) * 0.6 - 12 + 0.2 * (z + 38)) - 2.0
        atria = np.where((x - 20 * g) * 0.62 - (y + 24) * 0.78 + 5 > 0, atria, 9)
        chambers = np.maximum(np.maximum(heart + 9, -septum), -np.minimum(atria, 9))
        painter.paint(np.asarray(chambers, dtype=np.float32), blood * 0.95)
    painter.paint(aorta_distance(patient, x, y, z), blood)
    trunk = ellipsoid(x - 14 * g, y + 14 * g, z - 20, (20, 15, 22))
    right_artery = np.maximum(np.sqrt((y - 3) ** 2 + (z - 22) ** 2) - 10, np.abs(x + 4) - 34 * g)
    painter.paint(np.minimum(trunk, right_artery), blood)
    vein = np.maximum(np.sqrt((x + 20 * g) ** 2 + (y + 14) ** 2) - 9, 8 - z)
    painter.paint(np.asarray(vein, dtype=np.float32), blood * 1.05)
    branches = [(-14, -2), (10, 4), (22, 12)]
    for bx, by in branches:
        branch = np.maximum(np.sqrt((x - bx * g) ** 2 + (y - by * g) ** 2) - 5.5, 68 - z)
        painter.paint(np.asarray(branch, dtype=np.float32), blood)
    painter.paint(np.asarray(np.sqrt((x - 7) ** 2 + ((y - 37 * g) * 1.3) ** 2) - 8, dtype=np.float32), 35)
    for nx, ny, nz in ((-13, 12, 52), (14, 20, 38), (-8, 2, 60), (4, 30, 26)):
        painter.paint(ellipsoid(x - nx * g, y - ny * g, z - nz, (6, 4, 7)), 38)


def _draw_bones(painter: _Painter, patient: Patient, wall: Floats, x: Floats, y: Floats, z: Floats) -> None:
    """Draw ribs, spine, sternum, shoulder blades and collar bones."""
    g = patient.girth
    turn = np.arctan2(np.abs(x), y - 12) / np.pi  # 0 at the spine, 1 at the sternum
    row = np.mod(z + RIB_SLOPE_MM * turn**1.15 + 6, RIB_SPACING_MM) - RIB_SPACING_MM / 2
    rib = (np.sqrt((row / 6.4) ** 2 + ((wall - 6.5) / 3.9) ** 2) - 1) * 4.4
    rib = np.maximum(rib, 14 - np.abs(x))
    cartilage = turn > 0.80
    painter.paint(rib, np.where(cartilage, CARTILAGE, CORTEX).astype(np.float32))
    painter.paint(np.where(cartilage, 9, rib + 1.5).astype(np.float32), MARROW)
    disc = np.abs(np.mod(z, 25.0) - 12.5) < 2.2
    body = ellipse(x, y - 65 * g, (17.0, 14.0))
    painter.paint(body, np.where(disc, 85, CORTEX * 0.8).astype(np.float32))
    marrow = MARROW + 25 * patient.unevenness(4 * x, 4 * y, 4 * z)
    painter.paint(body + 1.6, np.where(disc, 85, marrow).astype(np.float32))
    arch = np.minimum(ellipse(x, y - 90 * g, (15.0, 12.0)), _box(x, y - 104 * g, 3.2, 12))
    across = _box(np.abs(x) - 22, y - 88 * g - 0.25 * np.abs(x), 14, 4.5)
    bone = np.minimum(arch, np.maximum(across, np.abs(np.mod(z + 8, 25.0) - 12) - 7))
    painter.paint(bone, CORTEX)
    painter.paint(bone + 1.7, MARROW)
    painter.paint(ellipse(x, y - 88 * g, (8.5, 7.5)), 30)
    front = y + 95 * g * (1 - 0.28 * np.clip((z - 5) / 125, 0, 1) ** 2) + 7
    plate = np.maximum(ellipse(x, front, (19.0, 5.2)), np.maximum(-z - 48, z - 108))
    painter.paint(plate, CORTEX * 0.7)
    painter.paint(plate + 1.4, MARROW * 0.7)
    blade = np.abs(np.abs(x) - 118 * g + 0.75 * (y - 40)) - 2.6
    blade = np.maximum(np.maximum(blade, np.abs(y - 52) - 44), np.maximum(14 - wall, np.abs(z - 75) - 68))
    painter.paint(np.asarray(blade, dtype=np.float32), CORTEX * 0.8)
    collar = np.sqrt((y + 62 * g - 0.35 * np.abs(x)) ** 2 + (z - 122 - 0.12 * np.abs(x)) ** 2) - 6
    collar = np.maximum(collar, 18 - np.abs(x))
    painter.paint(np.asarray(collar, dtype=np.float32), CORTEX)
    painter.paint(np.asarray(collar + 2, dtype=np.float32), MARROW)


def _box(x: Reals, y: Reals, half_x: float, half_y: float) -> Floats:
    """Return the distance to a rectangle around 0, with its corners."""
    return np.asarray(np.maximum(np.abs(x) - half_x, np.abs(y) - half_y), dtype=np.float32)
