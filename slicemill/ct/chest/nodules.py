"""Lung nodules: their kinds, densities and annotations."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.nodule_shape import Shape, draw_shape
from slicemill.ct.chest.patient import Patient
from slicemill.ct.chest.places import Surroundings, find_place, measure
from slicemill.ct.chest.spec import (
    KINDS,
    PLACES,
    SMALL_KINDS,
    SMALLEST_PART_SOLID_MM,
    Kind,
    Place,
    draw_diameter,
    draw_key,
)
from slicemill.ct.chest.trees import LungTrees

Floats = npt.NDArray[np.float64]
DENSITIES_HU: dict[Kind, tuple[float, float]] = {
    "solid": (0, 60),
    "calcified": (180, 700),
    "ground-glass": (-650, -450),
    "part-solid": (-640, -480),
}
CORE_HU = (-60.0, 50.0)
SMALLEST_MM = 3.0
"""Smallest diameter of the part inside of the lung, as in LUNA16's table."""
LUNG_HU, SEEN_HU = -880.0, -250.0
"""Ground glass raises lung by as much as its HU are above LUNG_HU, and what is above SEEN_HU not at all."""
HALF_SUSPICIOUS_MM, STEEPNESS = 10.5, 2.8
"""Diameter at which half of the solid nodules have spicules, and how steeply their share rises with its logarithm."""
SPICULATED = 0.92
"""Chance of a nodule with spicules to be malignant."""
MALIGNANT: dict[Kind, float] = {"solid": 0.04, "calcified": 0.0, "ground-glass": 0.03, "part-solid": 0.10}
SUSPICIOUS: dict[Kind, float] = {"solid": 0.0, "calcified": 0.0, "ground-glass": 0.35, "part-solid": 0.60}
"""Chance of a nodule without spicules to be malignant: of any size, and in addition of a large one. With the rise of
spicules with the diameter, the diameter alone tells malignant ones with an AUC of 0.75."""


@dataclass(frozen=True, kw_only=True)
class NoduleShares:
    """Shares of the voxels of a box that a nodule covers, float32[z, y, x]."""

    soft: npt.NDArray[np.float32]
    """With its soft edge."""
    core: npt.NDArray[np.float32] | None
    """Of its solid part."""


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """A nodule, with its annotation."""

    center: Floats
    """float64[3]: middle of its shape, x, y, z, mm."""
    shape: Shape
    kind: Kind
    place: Place
    hu: float
    core: Shape | None
    """The solid part of a part-solid nodule."""
    core_hu: float
    malignant: bool
    centroid: Floats
    """float64[3]: center of mass of the part inside of the lung, mm."""
    diameter_mm: float
    """Diameter of the ball with the volume of the part inside of the lung."""


def draw_nodules(patient: Patient, trees: LungTrees, count: int, rng: np.random.Generator) -> tuple[Nodule, ...]:
    """Draw `count` nodules in different places."""
    nodules: list[Nodule] = []
    while len(nodules) < count:
        nodule = draw_loose_nodule(draw_diameter(rng), draw_key(rng, PLACES), rng)
        taken = [(other.center, other.shape.reach_mm) for other in nodules]
        around = Surroundings(patient=patient, trees=trees, taken=taken)
        center = find_place(around, nodule.place, nodule.shape, rng)
        centroid, diameter_mm = measure(patient, center, nodule.shape)
        if diameter_mm >= SMALLEST_MM:
            nodules.append(replace(nodule, center=center, centroid=centroid, diameter_mm=diameter_mm))
    return tuple(nodules)


def draw_loose_nodule(diameter_mm: float, place: Place, rng: np.random.Generator) -> Nodule:
    """Draw a nodule around 0, which is to be put into a place."""
    kind = draw_key(rng, SMALL_KINDS if diameter_mm < SMALLEST_PART_SOLID_MM else KINDS)
    suspicious = float(1 / (1 + np.exp(-STEEPNESS * np.log(diameter_mm / HALF_SUSPICIOUS_MM))))
    spiculated = kind in ("solid", "part-solid") and rng.random() < suspicious
    radius = diameter_mm / 2
    soft_mm = 0.25 * radius if kind in ("ground-glass", "part-solid") else 0.0
    core = draw_shape(rng, radius * rng.uniform(0.35, 0.62), spiculated=spiculated) if kind == "part-solid" else None
    chance = SPICULATED if spiculated else MALIGNANT[kind] + SUSPICIOUS[kind] * suspicious
    return Nodule(
        center=np.zeros(3),
        shape=draw_shape(rng, radius, spiculated=spiculated, soft_mm=soft_mm),
        kind=kind,
        place=place,
        hu=float(rng.uniform(*DENSITIES_HU[kind])),
        core=core,
        core_hu=float(rng.uniform(*CORE_HU)),
        malignant=bool(rng.random() < chance),
        centroid=np.zeros(3),
        diameter_mm=diameter_mm,
    )


def cover_nodule(
    nodule: Nodule, hu: npt.NDArray[np.float32], shares: NoduleShares, noise: npt.NDArray[np.float32] | float = 0.0
) -> None:
    """Replace the HU of a box, float32[z, y, x], by a nodule's in the share of each voxel that it covers."""
    if nodule.kind in ("ground-glass", "part-solid"):  # vessels stay visible in it
        hu += shares.soft * (nodule.hu - LUNG_HU) * np.clip((SEEN_HU - hu) / (SEEN_HU - nodule.hu), 0, 1)
    else:
        hu += shares.soft * (nodule.hu + noise - hu)
    if shares.core is not None:
        hu += shares.core * (nodule.core_hu + noise - hu)
