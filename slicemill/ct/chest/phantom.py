"""Draws a synthetic chest CT: a plan of everything that is in it, then slab by slab its voxels.

1. The plan has the patient, the trees of vessels and airways, the nodules with their annotations, and what looks like
   nodules. It knows no voxels, so that annotations are the same at any size.
2. A slab is drawn in slices a third as thick as the scan's: body, lungs, fissures, vessels, airways, mimics, nodules.
   Edges cover voxels in part.
3. Each three are averaged over the slice profile, blurred, and covered with noise. Memory is that of the scan and of
   one slab.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.chest.drawer import Drawer
from slicemill.ct.chest.plan import Plan, Protocol, make_affine, make_protocol, to_file_mm
from slicemill.ct.chest.scanner import average_slices, make_noise, to_int16
from slicemill.ct.chest.spec import NOISE, ChestSpec

SLAB_SLICES = 6
"""Slices of a slab: with 20 thin ones of 512 pixels it has 21 MB an array."""


@dataclass(frozen=True, kw_only=True)
class ChestPhantom:
    """A synthetic chest CT with its references."""

    image: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    lungs: npt.NDArray[np.uint8]
    """uint8[z, y, x], 3 left lung, 4 right lung, 5 trachea and main bronchi, 0 elsewhere."""
    nodules: npt.NDArray[np.uint8]
    """uint8[z, y, x], number of the nodule from 1, 0 elsewhere."""
    affine: npt.NDArray[np.float64]
    """float64[4, 4], voxel (x, y, z, 1) to LPS mm."""


def make_chest(spec: ChestSpec, plan: Plan) -> ChestPhantom:
    """Draw the voxels of a plan."""
    from scipy import ndimage

    protocol = make_protocol(spec, plan.patient)
    shape = (protocol.slices, spec.size, spec.size)
    image, lungs = np.empty(shape, dtype=np.int16), np.empty(shape, dtype=np.uint8)
    nodules = np.zeros(shape, dtype=np.uint8)
    rng = spec.random(NOISE)
    drawer = Drawer(spec, plan, protocol)
    before = make_noise(rng, spec.size, 1.0)
    for first in range(0, protocol.slices, SLAB_SLICES):
        last = min(first + SLAB_SLICES, protocol.slices)
        drawn = drawer.draw(first, last)
        lungs[first:last], nodules[first:last] = drawn.lungs, drawn.nodules
        for index, clean in enumerate(average_slices(drawn.hu), start=first):
            noise = make_noise(rng, spec.size, 1.0)
            blurred = ndimage.gaussian_filter(clean, protocol.blur_mm / spec.pixel_mm)
            loud = protocol.noise_hu * drawer.loudness(protocol.first_mm + index * protocol.spacing_mm)
            image[index] = to_int16(blurred + loud * (0.9 * noise + 0.43 * before))
            before = noise
    _mark_tiny(nodules, spec, protocol, plan)
    return ChestPhantom(image=image, lungs=lungs, nodules=nodules, affine=make_affine(spec, protocol))


def _mark_tiny(volume: npt.NDArray[np.uint8], spec: ChestSpec, protocol: Protocol, plan: Plan) -> None:
    """Mark the voxel at the center of each nodule that covers no voxel by half."""
    present = set(np.unique(volume).tolist())
    for number, nodule in enumerate(plan.nodules, start=1):
        if number not in present:
            place = to_file_mm(spec, protocol, nodule.centroid) - protocol.origin_mm
            x, y, z = np.rint(place / [spec.pixel_mm, spec.pixel_mm, protocol.spacing_mm]).astype(int)
            volume[z, y, x] = number
