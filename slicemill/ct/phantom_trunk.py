"""Thorax and pelvis of a phantom, above and below its abdomen, for scans from the shoulders to the hips."""

import numpy as np

from slicemill.ct.phantom_canvas import AIR, Canvas, Floats

LUNG_HU, HEART_HU, FAT_HU, MUSCLE_HU, BONE_HU, WATER_HU = -840, 120, -95, 55, 380, 10
LUNG_BASE_MM, LUNG_TOP_MM, NECK_MM, PELVIS_MM = 105.0, 235.0, 300.0, -120.0


def draw_trunk(canvas: Canvas) -> None:
    """Draw lungs up to their tips with vessels, heart, trachea, shoulders and neck; iliac bones, hips and bladder."""
    _draw_lungs(canvas)
    _draw_middle(canvas)
    _draw_neck(canvas)
    _draw_pelvis(canvas)


def _column(canvas: Canvas, base_mm: float, top_mm: float) -> Floats:
    """Return the distance in z, mm, from the range of heights between base and top: float32[z, 1, 1]."""
    below, above = np.minimum(canvas.z - base_mm, 0), np.maximum(canvas.z - top_mm, 0)
    return np.asarray(below + above, dtype=np.float32)


def _draw_lungs(canvas: Canvas) -> None:
    g, rng = canvas.girth, canvas.rng
    height = _column(canvas, LUNG_BASE_MM, LUNG_TOP_MM)
    narrow = 1 - 0.25 * np.clip((canvas.z - 170) / 100, 0, 1)  # toward the tips
    uneven = 0.02 * canvas.smooth_field(50)
    mottle = 25 * canvas.smooth_field(8)
    for side in (-1, 1):
        distance = ((canvas.x - side * 72 * g * narrow) / (55 * g * narrow)) ** 2
        distance = distance + ((canvas.y - 5) / (78 * g * narrow)) ** 2 + (height / 62) ** 2 + uneven
        inside = distance < 1
        canvas.hu[inside] = (LUNG_HU + mottle)[inside]
        for _ in range(40):  # vessels: short tubes from the middle outward
            y, z = rng.uniform(-50, 55), rng.uniform(LUNG_BASE_MM - 30, LUNG_TOP_MM + 20)
            slope_y, slope_z, radius = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(1.2, 4.0)
            along = np.abs(canvas.x) - 25
            tube = ((canvas.y - y - slope_y * along) ** 2 + (canvas.z - z - slope_z * along) ** 2) < radius**2
            canvas.hu[tube & inside & (np.sign(canvas.x) == side)] = 45


def _draw_middle(canvas: Canvas) -> None:
    """Draw heart, aorta, esophagus, and trachea with its two main bronchi, between the lungs."""
    g = canvas.girth
    column = _column(canvas, 60, 260)
    between = (canvas.x / 30) ** 2 + ((canvas.y + 5) / (60 * g)) ** 2 + (column / 25) ** 2
    canvas.paint((between < 1) & (canvas.z > 60), FAT_HU)
    heart = canvas.ellipsoid((16, -28, 115), (50 * g, 48 * g, 55))
    canvas.paint(heart < 1, 45)
    canvas.paint(heart < 0.55, HEART_HU)
    aorta = canvas.ellipsoid((12, 36 * g, 0), (12, 12, 1e6))
    canvas.paint((aorta < 1) & (canvas.z > 60) & (canvas.z < 215), 165)
    arch = canvas.ellipsoid((6, 5, 205), (16, 42 * g, 13))
    canvas.paint(arch < 1, 165)
    trachea = canvas.ellipsoid((0, 15, 0), (9, 9, 1e6))
    canvas.paint((trachea < 1) & (canvas.z > 175), AIR)
    for side in (-1, 1):
        bronchus = (canvas.y - 15) ** 2 + (canvas.z - (178 - 0.7 * np.abs(canvas.x))) ** 2 < 7**2
        canvas.paint(bronchus & (canvas.x * side > 0) & (np.abs(canvas.x) < 45), AIR)


def _draw_neck(canvas: Canvas) -> None:
    """Narrow the body above the shoulders; draw shoulder blades and collar bones."""
    g = canvas.girth
    for side in (-1, 1):
        blade = np.abs(canvas.x * side - 105 * g + 0.4 * (canvas.y - 40)) < 4
        canvas.paint(blade & (np.abs(canvas.y - 45) < 32) & (np.abs(canvas.z - 230) < 55) & (canvas.hu > -500), BONE_HU)
        collar = (canvas.y + 45 - 0.3 * np.abs(canvas.x)) ** 2 + (canvas.z - 272) ** 2 < 7**2
        canvas.paint(collar & (canvas.x * side > 12) & (canvas.x * side < 120 * g), BONE_HU)
    narrow = np.clip((canvas.z - NECK_MM) / 60, 0, 1)
    outside = (canvas.x / (158 * g * (1 - 0.62 * narrow))) ** 2 + (canvas.y / (112 * g * (1 - 0.4 * narrow))) ** 2 > 1
    canvas.paint(outside & (canvas.z > NECK_MM), AIR)


def _draw_pelvis(canvas: Canvas) -> None:
    """Draw the iliac bones, sacrum, hip joints, muscles and bladder, below the abdomen."""
    g = canvas.girth
    below = canvas.z < PELVIS_MM
    for side in (-1, 1):
        bone = canvas.ellipsoid((side * 62 * g, 18, -195), (52 * g, 58 * g, 72))
        canvas.paint((np.abs(bone - 1) < 0.14) & (canvas.y > -30) & (np.abs(canvas.x) > 28) & below, BONE_HU)
        canvas.paint(
            (canvas.ellipsoid((side * 92 * g, 62 * g, -215), (52, 40, 75)) < 1) & (canvas.hu > -200), MUSCLE_HU
        )
        canvas.paint(canvas.ellipsoid((side * 88 * g, 8, -262), (24, 24, 24)) < 1, 300)
        canvas.paint((canvas.ellipsoid((side * 32 * g, 30, -150), (16, 16, 90)) < 1) & below, MUSCLE_HU + 5)
    canvas.paint((canvas.ellipsoid((0, 74 * g, -190), (42, 18, 62)) < 1) & below, 260)
    canvas.paint(canvas.ellipsoid((0, -22, -235), (42, 34, 34)) < 1, WATER_HU)
