"""The surfaces of nodules: balls with waves and spicules."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DEGREES = (2, 3, 4, 5, 6)
"""Degrees of the spherical harmonics of a surface."""
SPICULE_MM, TIP = 1.1, 0.4
"""Largest half width of a spicule where it leaves the nodule, and the share of it that is left at its tip: strands 1 to
2 mm thick, both fine and coarse by the definition (coarse from 2 mm on: Zwirewich et al., Radiology 1991)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A surface around 0: a ball with waves, and spicules."""

    radius_mm: float
    axes: Floats
    """float64[k, 3]: unit vectors, of which each wave is a Legendre polynomial: a sum of harmonics of its degree."""
    heights: Floats
    """float64[k]: height of each wave, as a share of the radius."""
    degrees: tuple[int, ...]
    spicules: Floats
    """float64[m, 4]: direction, and length beyond the surface in mm."""
    soft_mm: float
    """Width over which the edge fades."""

    @property
    def reach_mm(self) -> float:
        """Return the largest distance of the surface from 0, spicules and soft edge included."""
        longest = float(self.spicules[:, 3].max()) if len(self.spicules) else 0.0
        return self.radius_mm * (1 + float(np.abs(self.heights).sum())) + longest + self.soft_mm

    def distance(self, offset: Floats) -> Floats:
        """Return the distance of points float[..., 3] from the surface along the radius, negative inside."""
        length = np.maximum(np.linalg.norm(offset, axis=-1), 1e-6)
        unit = offset / length[..., None]
        radius = np.full(length.shape, self.radius_mm)
        for axis, height, degree in zip(self.axes, self.heights, self.degrees, strict=True):
            radius += self.radius_mm * height * np.polynomial.legendre.legval(unit @ axis, [0] * degree + [1])
        distance = length - radius
        for *direction, beyond in self.spicules:
            along = offset @ np.array(direction)
            across = np.sqrt(np.maximum(length**2 - along**2, 0))
            tip = self.radius_mm + beyond
            half = min(SPICULE_MM, 0.3 * self.radius_mm)
            width = half * (1 - (1 - TIP) * np.clip((along - self.radius_mm) / beyond, 0, 1))
            outward = np.where(along > tip, along - tip, np.where(along < 0, along, 0.0))
            spike = np.hypot(across, outward) - width
            distance = np.minimum(distance, spike)
        return np.asarray(distance, dtype=np.float64)


def draw_shape(rng: np.random.Generator, radius_mm: float, *, spiculated: bool, soft_mm: float = 0.0) -> Shape:
    """Draw a surface whose volume is that of the ball of `radius_mm`, but for spicules."""
    degrees = rng.choice(DEGREES, 6)
    axes = rng.standard_normal((6, 3))
    heights = rng.normal(0, 0.5, 6) * (0.30 if spiculated else rng.uniform(0.08, 0.28))
    count = int(rng.integers(6, 15)) if spiculated else 0
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = radius_mm * rng.uniform(0.4, 1.0, count) + 1.5
    return Shape(
        radius_mm=radius_mm,
        axes=axes / np.linalg.norm(axes, axis=1, keepdims=True),
        heights=heights,
        degrees=tuple(int(degree) for degree in degrees),
        spicules=np.column_stack([directions, lengths]),
        soft_mm=soft_mm,
    )
