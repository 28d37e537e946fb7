"""Random changes of crops, each crop by a generator of its own, so that a result does not depend on the batch.

1. One of the 48 symmetries of a cube.
2. For half of the crops a shift by whole millimeters: their voxels are those that inference sees. For the other half a
   shift, rotation and scale, interpolated once more.
3. An offset in HU, and for half of the crops noise.
"""

import math
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor

from slicemill.ct.crops import SIDE
from slicemill.train.crops.network import VIEW_SIDE, halve, split_views
from slicemill.train.crops.settings import CropConfig

MARGIN = 6
"""Samples around a stored crop: the largest shift, and as much for scale and rotation; beyond, its border repeats."""
STORED_SIDE = SIDE + 2 * MARGIN
SYMMETRIES = [
    (order, [axis for axis, flipped in enumerate(flips) if flipped])
    for order in permutations(range(3))
    for flips in product((False, True), repeat=3)
]


def cut_middle(crop: Tensor, shift: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """Return [48, 48, 48] of a stored crop [60, 60, 60], shifted by whole samples z, y, x."""
    z, y, x = (MARGIN + one for one in shift)
    return crop[z : z + SIDE, y : y + SIDE, x : x + SIDE]


def augment_crop(stored: Tensor, config: CropConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Return the views of a changed crop, float32[24, 24, 24], HU, of a stored one int16[60, 60, 60].

    Both views have the same change. Their noise is independent; that of the wide one, whose samples are means of eight,
    is smaller.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        reach = int(config.shift_mm)
        crop = cut_middle(stored, tuple(rng.integers(-reach, reach + 1, 3).tolist()))
        fine, coarse = (view[0] for view in split_views(crop[None]))
    else:
        matrix, whole = _draw_matrix(config, rng), stored.float()
        fine, coarse = _warp(whole, matrix, 1), _warp(halve(whole[None])[0], matrix, 2)
    order, flips = SYMMETRIES[rng.integers(len(SYMMETRIES))]
    offset, noise = rng.uniform(-config.offset_hu, config.offset_hu), 0.0
    if config.noise_hu and rng.random() < 0.5:
        noise = rng.uniform(0, config.noise_hu)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

    def change(view: Tensor, deviation: float) -> Tensor:
        view = view.permute(order).flip(flips) + offset
        return view + deviation * torch.randn(view.shape, generator=generator) if deviation else view

    return change(fine, noise), change(coarse, noise / math.sqrt(8))


def _draw_matrix(config: CropConfig, rng: np.random.Generator) -> Tensor:
    """Return float32[3, 4]: x y z from the middle of the crop to x y z from the middle of the stored one, mm."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    scale = rng.uniform(1 - config.scale, 1 + config.scale)
    shift = rng.uniform(-config.shift_mm, config.shift_mm, (3, 1))
    return torch.from_numpy(np.hstack([scale * turn, shift]).astype(np.float32))


def _warp(stored: Tensor, matrix: Tensor, spacing: int) -> Tensor:
    """Interpolate a view float32[24, 24, 24] from a stored crop, float32[side, side, side], `spacing` mm apart."""
    # grid_sample's coordinates run from -1 to 1 between the outer faces of the samples, in both grids
    side = stored.shape[0]
    theta = torch.cat([matrix[:, :3] * (VIEW_SIDE / side), matrix[:, 3:] * (2 / (side * spacing))], dim=1)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *[VIEW_SIDE] * 3], align_corners=False)
    sampled = torch.nn.functional.grid_sample(
        stored[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, 0]
