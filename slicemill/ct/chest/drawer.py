"""Draws the slabs of a chest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.body import draw_body
from slicemill.ct.chest.mimics import Lump
from slicemill.ct.chest.nodules import Nodule, NoduleShares, cover_nodule
from slicemill.ct.chest.patient import SIDES, fissure_distances, lung_distance
from slicemill.ct.chest.plan import Plan, Protocol
from slicemill.ct.chest.scanner import FINE, MARGIN, average_slices
from slicemill.ct.chest.shapes import Floats, cover
from slicemill.ct.chest.slab import Box, Slab, tube_cover
from slicemill.ct.chest.spec import TEXTURE, ChestSpec
from slicemill.ct.chest.texture import Texture
from slicemill.ct.chest.trees import LARGE_AIRWAYS, bronchial_walls

LEFT_LUNG, RIGHT_LUNG, AIRWAY = 3, 4, 5
"""Values of LUNA16's masks of the lungs."""
LUMEN_HU, WALL_HU, FISSURE_HU, MUCUS_HU = -965, -20, -560, 15
FIBER_HU, PATCH_HU = 20.0, 14.0
"""Standard deviations of the fine and the coarse mottle of lung, HU."""
HOLE_HU = -975


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A slab, before blur and noise."""

    hu: Floats
    """float32[FINE * n + 2 * MARGIN, y, x], HU, in thin slices."""
    lungs: npt.NDArray[np.uint8]
    """uint8[n, y, x]."""
    nodules: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Lungs:
    """The lungs in a slab."""

    left: Floats
    """float32[z, y, x]: distance to the surface in thin slices."""
    right: Floats
    share: Floats
    """float32[z, y, x]: share of each voxel that is lung."""


class Drawer:
    """Draws any slab of one chest."""

    def __init__(self, spec: ChestSpec, plan: Plan, protocol: Protocol) -> None:
        self._plan = plan
        self._protocol = protocol
        rng = spec.random(TEXTURE)
        self._fiber, self._patches = Texture(rng, 2.0), Texture(rng, 9.0)
        self._ticks = ((np.arange(spec.size) - (spec.size - 1) / 2) * spec.pixel_mm).astype(np.float32)
        bronchi = plan.trees.bronchi
        walls = bronchial_walls(bronchi)
        large = np.arange(len(bronchi)) < LARGE_AIRWAYS
        self._large, self._large_walls = bronchi.pick(large), walls.pick(large)
        self._small, self._walls = bronchi.pick(~large), walls.pick(~large)

    def draw(self, first: int, last: int) -> Drawn:
        """Draw the slices from `first` to before `last`."""
        protocol, ticks = self._protocol, self._ticks
        step = protocol.spacing_mm / FINE
        thin = np.arange(-MARGIN, FINE * (last - first) + MARGIN) - (FINE - 1) / 2
        z = (protocol.first_mm + first * protocol.spacing_mm + thin * step).astype(np.float32)
        slab = Slab(x=ticks, y=ticks, z=z, hu=np.empty((len(z), len(ticks), len(ticks)), dtype=np.float32))
        lungs = self._draw_tissue(slab)
        self._draw_fissures(slab, lungs)
        lumen = self._draw_tubes(slab, lungs)
        for lump in self._plan.mimics.lumps:
            self._draw_lump(slab, lump, lungs)
        nodules = self._draw_nodules(slab, lungs, last - first)
        return Drawn(hu=slab.hu, lungs=self._mark_lungs(lungs, lumen), nodules=nodules)

    def _draw_tissue(self, slab: Slab) -> _Lungs:
        """Draw body and lung tissue; what is smooth along z is computed on every third slice."""
        patient = self._plan.patient
        pixel = slab.steps[2]
        x, y = slab.x[None, None, :], slab.y[None, :, None]
        coarse = _spread(slab.z)
        z = coarse[:, None, None]
        slab.hu[...] = _resample(draw_body(patient, x, y, z, pixel), coarse, slab.z)
        right, left = (_resample(lung_distance(patient, side, x, y, z), coarse, slab.z) for side in SIDES)
        share = cover(np.minimum(left, right), pixel)
        patches = self._patches.at(slab.x, slab.y, slab.z)
        tissue = self._fiber.at(slab.x, slab.y, slab.z)
        tissue *= FIBER_HU
        tissue += patient.lung_hu + PATCH_HU * patches + patient.gradient_hu * y / 150
        if patient.emphysema > 0:
            holes = np.clip((patches - (2.2 - 12 * patient.emphysema)) * 4, 0, 1)
            tissue += holes * (HOLE_HU - tissue)
        depth = -np.minimum(left, right)
        hanging = np.clip((y - 55) / 25, 0, 1) * np.clip(1 - depth / 9, 0, 1) * np.clip(patches + 0.3, 0, 2)
        tissue += 160 * hanging  # what lies lowest is less open
        slab.blend(share, tissue)
        return _Lungs(left=left, right=right, share=share)

    def _draw_fissures(self, slab: Slab, lungs: _Lungs) -> None:
        """Draw fissures of 1 mm, with gaps."""
        x, y = slab.x[None, None, :], slab.y[None, :, None]
        coarse = _spread(slab.z)
        pixel = max(slab.steps[2], 1.0)
        holes = self._plan.patient.unevenness(0.5 * x + 40, 0.5 * y, 0.5 * coarse[:, None, None])
        gaps = _resample(holes, coarse, slab.z)
        for side, lung in zip(SIDES, (lungs.right, lungs.left), strict=True):
            for distance in fissure_distances(self._plan.patient, side, x, y, coarse[:, None, None]):
                near = np.clip((0.5 + pixel / 2 - np.abs(_resample(distance, coarse, slab.z))) / pixel, 0, 1)
                near *= min(1.0, 1.0 / pixel) * np.clip(gaps + 1.0, 0, 1) * (lung < 0)
                slab.blend(near, FISSURE_HU)

    def _draw_tubes(self, slab: Slab, lungs: _Lungs) -> Floats:
        """Draw vessels and airways; return the share of each voxel in trachea and main bronchi."""
        trees = self._plan.trees
        slab.blend(tube_cover(slab, trees.vessels), self._plan.patient.blood_hu)
        for walls, lumens, inside in ((self._walls, self._small, lungs.share), (self._large_walls, self._large, 1)):
            slab.blend(tube_cover(slab, walls) * inside, WALL_HU)
            lumen = tube_cover(slab, lumens)
            slab.blend(lumen * inside, LUMEN_HU)
        slab.blend(tube_cover(slab, self._plan.mimics.mucus) * lungs.share, MUCUS_HU)
        return lumen

    def _draw_lump(self, slab: Slab, lump: Lump, lungs: _Lungs) -> None:
        box = slab.box(lump.center - lump.reach_mm - 2, lump.center + lump.reach_mm + 2)
        if box is not None:
            distance = lump.distance(slab.offsets(box, lump.center)).astype(np.float32)
            slab.blend(cover(distance, slab.steps[2] + lump.soft_mm) * lungs.share[box], lump.hu, box)

    def _draw_nodules(self, slab: Slab, lungs: _Lungs, slices: int) -> npt.NDArray[np.uint8]:
        """Draw nodules; return uint8[n, y, x] with their numbers where they cover at least half a voxel."""
        numbers = np.zeros((slices, *slab.hu.shape[1:]), dtype=np.uint8)
        for number, nodule in enumerate(self._plan.nodules, start=1):
            box = nodule_box(slab, nodule)
            if box is None:
                continue
            share = paint_nodule(slab, nodule, box, lungs.share[box])
            whole = np.zeros((len(slab.z), *share.shape[1:]), dtype=np.float32)
            whole[box[0]] = share
            numbers[:, box[1], box[2]][average_slices(whole) >= 0.5] = number
        return numbers

    def _mark_lungs(self, lungs: _Lungs, lumen: Floats) -> npt.NDArray[np.uint8]:
        """Return uint8[n, y, x], at the middles of the slices."""
        middle = slice(MARGIN + FINE // 2, -MARGIN, FINE)
        mask = np.zeros(lungs.left[middle].shape, dtype=np.uint8)
        mask[lungs.left[middle] < 0] = LEFT_LUNG
        mask[lungs.right[middle] < 0] = RIGHT_LUNG
        mask[lumen[middle] >= 0.5] = AIRWAY
        return mask

    def loudness(self, height_mm: float) -> Floats:
        """Return the relative noise in a slice, float32[y, x]: more in the middle of a body, most at the shoulders."""
        x, y = self._ticks[None, :], self._ticks[:, None]
        inside = np.exp(-(x * x / 2.2e4 + y * y / 1.4e4))
        shoulders = 1 + 0.8 * np.clip((height_mm - 70) / 60, 0, 1)
        return np.asarray((0.55 + 0.55 * inside) * shoulders, dtype=np.float32)


def nodule_box(slab: Slab, nodule: Nodule) -> Box | None:
    """Return the box of a slab that a nodule may reach."""
    reach = nodule.shape.reach_mm + slab.steps[2]
    return slab.box(nodule.center - reach, nodule.center + reach)


def paint_nodule(slab: Slab, nodule: Nodule, box: Box, lung: Floats) -> Floats:
    """Draw a nodule where there is lung, and return the share of the box's voxels that it covers."""
    offsets = slab.offsets(box, nodule.center)
    pixel = slab.steps[2]
    distance = nodule.shape.distance(offsets).astype(np.float32)
    share = cover(distance, pixel) * lung
    core = None if nodule.core is None else cover(nodule.core.distance(offsets).astype(np.float32), pixel) * lung
    soft = cover(distance, pixel + nodule.shape.soft_mm) * lung
    cover_nodule(nodule, slab.hu[box], NoduleShares(soft=soft, core=core))
    return share


def _spread(ticks: Floats) -> Floats:
    """Return positions that cover `ticks`, a third as many."""
    return np.linspace(ticks[0], ticks[-1], max(2, len(ticks) // 3 + 1), dtype=np.float32)


def _resample(values: Floats, coarse: Floats, ticks: Floats) -> Floats:
    """Interpolate float32[n, y, x] along z from the positions `coarse` to `ticks`."""
    place = np.clip((ticks - coarse[0]) / (coarse[1] - coarse[0]), 0, len(coarse) - 1.001)
    low = place.astype(int)
    share = (place - low).astype(np.float32)[:, None, None]
    values = np.broadcast_to(values, (len(coarse), *values.shape[1:]))
    return np.asarray(values[low] + share * (values[low + 1] - values[low]), dtype=np.float32)
