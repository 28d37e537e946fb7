"""Puts synthetic nodules into a real CT, with its blur and its noise: known truth in real lungs.

1. Places are free, on a vessel or on the pleura, by the distance from the border of the lung mask and by the HU around.
2. The share of each voxel that a nodule covers comes from 27 points in it, and is blurred by half a pixel, about the
   point spread of a scan. A nodule's HU replace the scan's in that share; ground glass only raises them.
3. The noise of a nodule is the scan's own: cut from the most even piece of soft tissue outside the lungs, so that
   strength and spectrum agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.ct.chest.nodules import Nodule, NoduleShares, cover_nodule, draw_loose_nodule
from slicemill.ct.chest.spec import Place, draw_diameter, draw_key

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
MOST_INSERTED = 6
WIDEST_PIXELS = 4.4
"""Smallest diameter over the pixel's width: 6 mm at 1.37 mm. Smaller nodules would be a few voxels without a shape."""
MOST_SMALLEST_MM = 15.0
"""Largest smallest diameter: one nodule in eight is larger."""
SUBPOINTS = np.array([-1 / 3, 0, 1 / 3])
BLUR_PIXELS = 0.5
PATCH = (3, 20, 20)
"""Voxels z, y, x of the piece of tissue that gives the noise."""
SOFT_HU = (-20, 120)
MOSTLY_SOFT = 0.98
"""Share of the piece that must be soft tissue."""
VESSEL_HU, CLEAR_HU = -300, -550
INSERTED: dict[Place, float] = {"free": 0.5, "vessel": 0.25, "pleura": 0.25}
APART_MM = 6.0
TRIES = 4000


@dataclass(frozen=True, kw_only=True)
class RealChest:
    """A scan that nodules are put into."""

    image: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    lungs: Mask
    """bool[z, y, x]."""
    affine: Floats
    """float64[4, 4], voxel (x, y, z, 1) to LPS mm."""

    @property
    def spacing_mm(self) -> Floats:
        """Return float64[3], z, y, x."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0)[::-1], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Inserted:
    """A scan with nodules put into it."""

    image: npt.NDArray[np.int16]
    numbers: npt.NDArray[np.uint8]
    """uint8[z, y, x], number of the nodule from 1, 0 elsewhere."""
    nodules: tuple[Nodule, ...]
    """With centers and centroids in LPS mm of the scan."""


def insert_nodules(chest: RealChest, rng: np.random.Generator) -> Inserted:
    """Put one to MOST_INSERTED nodules into a scan.

    Raises
    ------
    ScanError
        There is no room in the lungs, or no piece of soft tissue for the noise, or the pixels are too wide.
    """
    from scipy import ndimage

    smallest = WIDEST_PIXELS * float(chest.spacing_mm[1:].max())
    if smallest > MOST_SMALLEST_MM:
        raise ScanError(
            f"must have pixels of at most {MOST_SMALLEST_MM / WIDEST_PIXELS:.1f} mm, to show nodules; "
            f"they have {chest.spacing_mm[1:].max():.1f} mm."
        )
    depth = ndimage.distance_transform_edt(chest.lungs, sampling=chest.spacing_mm)
    inside = np.flatnonzero(chest.lungs)
    noise = cut_noise(chest)
    image, numbers = chest.image.astype(np.float32), np.zeros(chest.image.shape, dtype=np.uint8)
    nodules: list[Nodule] = []
    for _ in range(int(rng.integers(1, MOST_INSERTED + 1))):
        diameter = draw_diameter(rng)
        while diameter < smallest:
            diameter = draw_diameter(rng)
        nodule = draw_loose_nodule(diameter, draw_key(rng, INSERTED), rng)
        center = _find_center(chest, depth, inside, nodule, nodules, rng)
        box, covered = _cover_box(chest, replace(nodule, center=center))
        tissue = rng.permutation(noise)  # slices in another order
        cover_nodule(nodule, image[box], covered.shares, _tile(tissue, covered.whole.shape, rng))
        numbers[box][covered.whole >= 0.5] = len(nodules) + 1
        nodules.append(replace(nodule, center=center, centroid=covered.centroid, diameter_mm=covered.diameter_mm))
    rounded = np.rint(np.clip(image, np.iinfo(np.int16).min, np.iinfo(np.int16).max)).astype(np.int16)
    return Inserted(image=rounded, numbers=numbers, nodules=tuple(nodules))


def cut_noise(chest: RealChest) -> npt.NDArray[np.float32]:
    """Return the noise of the most even piece of soft tissue of a scan: float32[z, y, x] of PATCH, mean 0, HU.

    Raises
    ------
    ScanError
        No piece of that size is soft tissue.
    """
    from scipy import ndimage

    if any(count < needed for count, needed in zip(chest.image.shape, PATCH, strict=True)):
        raise ScanError(f"must have at least {PATCH[0]} slices of {PATCH[1]} x {PATCH[2]}; it has {chest.image.shape}.")
    soft = (chest.image >= SOFT_HU[0]) & (chest.image <= SOFT_HU[1]) & ~chest.lungs
    share = ndimage.uniform_filter(soft.astype(np.float32), PATCH, mode="constant")
    smooth = ndimage.gaussian_filter(chest.image.astype(np.float32), (0, 4, 4))
    uneven = ndimage.uniform_filter(np.hypot(*np.gradient(smooth, axis=(1, 2))), PATCH)
    reach = np.array(PATCH) // 2
    inner = tuple(slice(int(count), size - int(count)) for count, size in zip(reach, soft.shape, strict=True))
    uneven = np.where(share > MOSTLY_SOFT, uneven, np.inf)[inner]
    if not uneven.size or not np.isfinite(uneven.min()):
        raise ScanError(
            f"must have a piece of soft tissue ({SOFT_HU[0]} to {SOFT_HU[1]} HU) of {PATCH[1]} x {PATCH[2]} pixels in "
            f"{PATCH[0]} slices outside of the lungs, from which the noise is taken; it has none."
        )
    middle = np.array(np.unravel_index(int(uneven.argmin()), uneven.shape)) + reach
    corner = middle - reach
    box = tuple(slice(int(first), int(first) + size) for first, size in zip(corner, PATCH, strict=True))
    noise = chest.image[box] - smooth[box]
    return np.asarray(noise - noise.mean(axis=(1, 2), keepdims=True), dtype=np.float32)


def _find_center(
    chest: RealChest,
    depth: Floats,
    inside: npt.NDArray[np.int64],
    nodule: Nodule,
    others: Sequence[Nodule],
    rng: np.random.Generator,
) -> Floats:
    """Find a center for a nodule in the lungs, LPS mm; if the scan does not have its place, one on the pleura."""
    radius = nodule.shape.radius_mm
    for place in (nodule.place, "pleura"):
        chosen = inside[rng.integers(0, len(inside), TRIES)]
        for voxel in np.stack(np.unravel_index(chosen, depth.shape), axis=-1):
            deep = depth[tuple(voxel)]
            fits = 0.35 * radius < deep < 0.8 * radius if place == "pleura" else deep > radius + 1
            if not fits:
                continue
            center = (chest.affine @ [*(voxel + rng.uniform(-0.5, 0.5, 3))[::-1], 1.0])[:3]
            reach = nodule.shape.reach_mm + APART_MM
            if any(np.linalg.norm(center - other.center) < reach + other.shape.reach_mm for other in others):
                continue
            if place == "pleura" or _suits(chest, voxel, radius, on_vessel=place == "vessel"):
                return np.asarray(center, dtype=np.float64)
    raise ScanError(f"has no room in its lungs for a nodule of {2 * radius:.1f} mm.")


def _suits(chest: RealChest, voxel: npt.NDArray[np.int64], radius: float, *, on_vessel: bool) -> bool:
    """Return whether a ball around a voxel is free of vessels, or touches one."""
    reach = np.maximum(1, np.rint((radius + 1) / chest.spacing_mm)).astype(int)
    low = np.maximum(voxel - reach, 0)
    around = chest.image[tuple(slice(int(a), int(b) + 1) for a, b in zip(low, voxel + reach, strict=True))]
    dense = float((around > VESSEL_HU).mean())
    return 0.01 < dense < 0.15 if on_vessel else bool((around > CLEAR_HU).mean() < 0.01)


@dataclass(frozen=True, kw_only=True)
class _Covered:
    """What a nodule covers in a box."""

    whole: npt.NDArray[np.float32]
    """float32[z, y, x]: share of each voxel within its surface and the lungs, without blur."""
    shares: NoduleShares
    """Blurred."""
    centroid: Floats
    """Center of mass, LPS mm."""
    diameter_mm: float
    """Of the ball of equal volume."""


def _cover_box(chest: RealChest, nodule: Nodule) -> tuple[tuple[slice, ...], _Covered]:
    """Return the box of a nodule, and what it covers there."""
    from scipy import ndimage

    middle = np.linalg.solve(chest.affine, [*nodule.center, 1.0])[2::-1]
    reach = (nodule.shape.reach_mm * np.linalg.norm(np.linalg.inv(chest.affine[:3, :3]), axis=1))[::-1] + 2
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, chest.image.shape).astype(int)
    box = tuple(slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    lung = chest.lungs[box].astype(np.float32)
    step = float(chest.spacing_mm.min()) / len(SUBPOINTS)
    whole, soft, core = (np.zeros(lung.shape, dtype=np.float32) for _ in range(3))
    voxels = np.stack(np.meshgrid(*(np.arange(side.start, side.stop) for side in box), indexing="ij"), axis=-1)
    for shift in np.stack(np.meshgrid(SUBPOINTS, SUBPOINTS, SUBPOINTS), axis=-1).reshape(-1, 3):
        points = (voxels + shift)[..., ::-1] @ chest.affine[:3, :3].T + chest.affine[:3, 3] - nodule.center
        distance = nodule.shape.distance(points)
        whole += np.clip(0.5 - distance / step, 0, 1)
        soft += np.clip(0.5 - distance / (step + nodule.shape.soft_mm), 0, 1)
        if nodule.core is not None:
            core += np.clip(0.5 - nodule.core.distance(points) / step, 0, 1)
    lung /= len(SUBPOINTS) ** 3
    whole *= lung
    soft[...] = ndimage.gaussian_filter(soft * lung, (0, BLUR_PIXELS, BLUR_PIXELS))
    core[...] = ndimage.gaussian_filter(core * lung, (0, BLUR_PIXELS, BLUR_PIXELS))
    total = float(whole.sum())
    mean = (whole[..., None] * voxels).sum(axis=(0, 1, 2)) / total
    volume = total * abs(float(np.linalg.det(chest.affine[:3, :3])))
    return box, _Covered(
        whole=whole,
        shares=NoduleShares(soft=soft, core=None if nodule.core is None else core),
        centroid=(chest.affine @ [*mean[::-1], 1.0])[:3],
        diameter_mm=float(np.cbrt(6 * volume / np.pi)),
    )


def _tile(noise: npt.NDArray[np.float32], shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return noise of a shape: the piece, mirrored as often as it takes, from a random start."""
    start = [int(rng.integers(0, count)) for count in noise.shape]
    indices = []
    for first, count, size in zip(start, noise.shape, shape, strict=True):
        place = np.mod(first + np.arange(size), 2 * count)
        indices.append(np.where(place < count, place, 2 * count - 1 - place))
    return noise[np.ix_(*indices)]
