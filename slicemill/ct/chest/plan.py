"""What a chest has, and how it is scanned, in mm and without voxels: annotations are the same at any size."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.mimics import Mimics, draw_mimics
from slicemill.ct.chest.nodules import Nodule, draw_nodules
from slicemill.ct.chest.patient import Patient, draw_patient
from slicemill.ct.chest.spec import FIELD_MM, PLAN, SCAN, ChestSpec, draw_count
from slicemill.ct.chest.trees import LungTrees, grow_trees

BOTTOM_MM, TOP_MM = -154.0, 134.0
"""The scan's first and last slice, in the patient who breathes as usual: just beyond the lungs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a chest has, in mm."""

    patient: Patient
    trees: LungTrees
    nodules: tuple[Nodule, ...]
    mimics: Mimics


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a chest is scanned."""

    slices: int
    spacing_mm: float
    first_mm: float
    """Height of the first slice's middle."""
    blur_mm: float
    """Standard deviation of the point spread in the plane."""
    noise_hu: float
    origin_mm: tuple[float, float, float]
    """Position x, y, z of the first voxel in the file, LPS mm."""


def make_plan(spec: ChestSpec) -> Plan:
    """Draw what a chest has."""
    rng = spec.random(PLAN)
    patient = draw_patient(rng)
    trees = grow_trees(patient, rng)
    nodules = draw_nodules(patient, trees, draw_count(spec, rng), rng)
    return Plan(patient=patient, trees=trees, nodules=nodules, mimics=draw_mimics(patient, trees, rng))


def make_protocol(spec: ChestSpec, patient: Patient) -> Protocol:
    """Draw how a chest is scanned: the whole of both lungs, in slices of 0.7 to 2.5 mm, but no thinner than a pixel."""
    rng = spec.random(SCAN)
    bottom, top = BOTTOM_MM + patient.breath_mm, TOP_MM
    spacing = float(rng.uniform(max(0.7, 0.95 * spec.pixel_mm), 2.5))
    slices = int((top - bottom) / spacing) + 1
    half = (FIELD_MM - spec.pixel_mm) / 2
    shift = rng.uniform(-25, 25, 2)
    return Protocol(
        slices=slices,
        spacing_mm=round(spacing, 4),
        first_mm=bottom,
        blur_mm=float(np.hypot(rng.uniform(0.8, 1.2) / 2.355, 0.30 * spec.pixel_mm)),
        noise_hu=float(np.clip(rng.lognormal(np.log(25), 0.35), 15, 60)),
        origin_mm=(float(shift[0] - half), float(shift[1] - half), float(rng.uniform(-600, -150))),
    )


def make_affine(spec: ChestSpec, protocol: Protocol) -> npt.NDArray[np.float64]:
    """Return float64[4, 4], voxel (x, y, z, 1) of the scan to LPS mm."""
    affine = np.diag([spec.pixel_mm, spec.pixel_mm, protocol.spacing_mm, 1.0])
    affine[:3, 3] = protocol.origin_mm
    return affine


def to_file_mm(spec: ChestSpec, protocol: Protocol, point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the LPS mm in the file of a point of the plan, x, y, z."""
    half = (FIELD_MM - spec.pixel_mm) / 2
    return np.asarray(point + np.array(protocol.origin_mm) - [-half, -half, protocol.first_mm], dtype=np.float64)
