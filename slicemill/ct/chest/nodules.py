"""Lung nodules: their kinds, densities and annotations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.nodule_shape import Shape, draw_shape
from slicemill.ct.chest.patient import Patient
from slicemill.ct.chest.places import Surroundings, find_place, measure
from slicemill.ct.chest.spec import KINDS, PLACES, Kind, Place, draw_diameter, draw_key
from slicemill.ct.chest.trees import LungTrees

Floats = npt.NDArray[np.float64]
DENSITIES_HU: dict[Kind, tuple[float, float]] = {
    "solid": (0, 60),
    "calcified": (180, 700),
    "ground-glass": (-650, -450),
    "part-solid": (-640, -480),
}
CORE_HU = (-60.0, 50.0)
MALIGNANT: dict[Kind, float] = {"solid": 0.04, "calcified": 0.0, "ground-glass": 0.03, "part-solid": 0.10}
SUSPICIOUS: dict[Kind, float] = {"solid": 0.0, "calcified": 0.0, "ground-glass": 0.35, "part-solid": 0.60}
"""Chance of a nodule without spicules to be malignant: of any size, and in addition of a large one. With the rise of
spicules with the diameter, the diameter alone tells malignant ones with an AUC of 0.75."""


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


def draw_nodules(
    patient: Patient, trees: LungTrees, count: int, rng: np.random.Generator
) -> tuple[Nodule, ...]:
    """Draw `count` nodules in different places."""
    nodules: list[Nodule] = []
    while len(nodules) < count:
        diameter = draw_diameter(rng)
        nodules.append(draw_nodule(patient, trees, diameter, nodules, rng))
    return tuple(nodules)


def draw_nodule(
    patient: Patient, trees: LungTrees, diameter_mm: float, others: Sequence[Nodule], rng: np.random.Generator
) -> Nodule:
    """Draw a nodule that touches none of the others."""
    kind, place = draw_key(rng, KINDS), draw_key(rng, PLACES)
    # the share of spiculated nodules rises with the diameter, so that size alone tells malignant ones with AUC 0.75
    suspicious = 1 / (1 + np.exp(-2.8 * np.log(diameter_mm / 10.5)))
    spiculated = kind in ("solid", "part-solid") and rng.random() < suspicious
    radius = diameter_mm / 2
    soft_mm = 0.25 * radius if kind in ("ground-glass", "part-solid") else 0.0
    shape = draw_shape(rng, radius, spiculated=spiculated, soft_mm=soft_mm)
    taken = [(other.center, other.shape.reach_mm) for other in others]
    center = find_place(Surroundings(patient=patient, trees=trees, taken=taken), place, shape, rng)
    core = draw_shape(rng, radius * rng.uniform(0.35, 0.62), spiculated=spiculated) if kind == "part-solid" else None
    chance = MALIGNANT[kind] + SUSPICIOUS[kind] * suspicious
    centroid, measured = measure(patient, center, shape)
    return Nodule(
        center=center,
        shape=shape,
        kind=kind,
        place=place,
        hu=float(rng.uniform(*DENSITIES_HU[kind])),
        core=core,
        core_hu=float(rng.uniform(*CORE_HU)),
        malignant=bool(rng.random() < (0.92 if spiculated else chance)),
        centroid=centroid,
        diameter_mm=measured,
    )
