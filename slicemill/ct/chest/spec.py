"""What a synthetic chest has: its size, its patient, and the statistics of its nodules.

Diameters and counts are those of LUNA16's table of 1,186 nodules in 888 scans: median 6.4 mm, 42 % below 6 mm, 34 % of
6 to 10 mm, 20 % of 10 to 20 mm, 4 % above; a third of the scans without any, at most 12 in one.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

FIELD_MM = 330.0
DEFAULT_SIZE = 256
SMALLEST_SIZE = 128
"""Pixels along a side: at 128 they have 2.6 mm, and the smallest nodules are one pixel wide."""
DIAMETERS_MM = (3.2, 4.6, 6.0, 6.4, 10.0, 20.0, 32.0)
DIAMETER_SHARES = (0.0, 0.16, 0.42, 0.5, 0.76, 0.96, 1.0)
"""Share of the nodules below each of DIAMETERS_MM; the logarithm is interpolated between them."""
PLAN, SCAN, NOISE, TEXTURE = range(4)
"""Purposes of random numbers."""
WITHOUT_NODULES = 1 / 3
MOST_NODULES = 12
"""In one scan: of LUNA16's, and the most that a chest takes."""
MANY = 0.03
"""Share of the scans with nodules that have at least six."""

Kind = Literal["solid", "part-solid", "ground-glass", "calcified"]
Place = Literal["free", "vessel", "pleura", "fissure"]
K = TypeVar("K", bound=str)
SMALLEST_PART_SOLID_MM = 6.0
"""Below it, a solid part cannot be told apart (Fleischner Society guidelines, Radiology 2017)."""
SMALL_KINDS: dict[Kind, float] = {"solid": 0.75, "ground-glass": 0.20, "calcified": 0.05}
KINDS: dict[Kind, float] = {"solid": 0.49, "part-solid": 0.26, "ground-glass": 0.20, "calcified": 0.05}
"""Below SMALLEST_PART_SOLID_MM, and from there on: of all nodules, 60 % are solid and 15 % part-solid."""
PLACES: dict[Place, float] = {"free": 0.45, "vessel": 0.25, "pleura": 0.25, "fissure": 0.05}


@dataclass(frozen=True, kw_only=True)
class ChestSpec:
    """Parameters of a synthetic chest; equal parameters give equal voxels."""

    seed: tuple[int, int]
    """Seed of the collection, and number of the case in it."""
    size: int = 256
    """Pixels along a slice's side, of FIELD_MM / size mm."""
    nodules: int | None = None
    """Number of its nodules; None draws one as often as LUNA16's scans have it."""

    @property
    def name(self) -> str:
        """Return the name of the case, which is the stem of its files and its seriesuid."""
        return f"chest-{self.seed[0]}-{self.seed[1]:04d}"

    @property
    def pixel_mm(self) -> float:
        """Return the width of a pixel, mm."""
        return FIELD_MM / self.size

    def random(self, purpose: int) -> np.random.Generator:
        """Return the generator of random numbers for one purpose, so that a change of one leaves the others."""
        return np.random.default_rng([*self.seed, purpose])


def draw_diameter(rng: np.random.Generator) -> float:
    """Draw a diameter, mm."""
    return float(np.exp(np.interp(rng.random(), DIAMETER_SHARES, np.log(DIAMETERS_MM))))


def draw_count(spec: ChestSpec, rng: np.random.Generator) -> int:
    """Return the number of a chest's nodules. If it is drawn, the mean of those that have some is 2, as LUNA16's."""
    if spec.nodules is not None:
        return spec.nodules
    if rng.random() < WITHOUT_NODULES:
        return 0
    if rng.random() < MANY:
        return int(rng.integers(6, MOST_NODULES + 1))
    return int(min(rng.geometric(0.55), MOST_NODULES))


def draw_key(rng: np.random.Generator, shares: dict[K, float]) -> K:
    """Draw a key by its share."""
    keys = list(shares)
    return keys[int(rng.choice(len(keys), p=np.array(list(shares.values()))))]
