"""Random changes of crops, each crop by a generator of its own, so that a result does not depend on the batch.

1. One of the 48 symmetries of a cube.
2. For half of the crops a shift by whole millimeters: their voxels are those that inference sees. For the other half a
   shift, rotation and scale, interpolated once more.
3. An offset in HU, and for half of the crops noise.
"""

from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor

from slicemill.ct.crops import SIDE
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


def augment_crop(stored: Tensor, config: CropConfig, seed: int) -> Tensor:
    """Return a changed crop float32[48, 48, 48], HU, of a stored one int16[60, 60, 60]."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        reach = int(config.shift_mm)
        crop = cut_middle(stored, tuple(rng.integers(-reach, reach + 1, 3).tolist())).float()
    else:
        crop = _warp(stored.float(), _draw_matrix(config, rng))
    order, flips = SYMMETRIES[rng.integers(len(SYMMETRIES))]
    crop = crop.permute(order).flip(flips)
    crop = crop + rng.uniform(-config.offset_hu, config.offset_hu)
    if config.noise_hu and rng.random() < 0.5:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        crop = crop + rng.uniform(0, config.noise_hu) * torch.randn(crop.shape, generator=generator)
    return crop.contiguous()


def _draw_matrix(config: CropConfig, rng: np.random.Generator) -> Tensor:
    """Return float32[3, 4]: x y z from the middle of the crop to x y z from the middle of the stored one, samples."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    scale = rng.uniform(1 - config.scale, 1 + config.scale)
    shift = rng.uniform(-config.shift_mm, config.shift_mm, (3, 1))
    return torch.from_numpy(np.hstack([scale * turn, shift]).astype(np.float32))


def _warp(stored: Tensor, matrix: Tensor) -> Tensor:
    """Interpolate a crop float32[48, 48, 48] from a stored one float32[60, 60, 60]."""
    # grid_sample's coordinates run from -1 to 1 between the outer faces of the samples, in both grids
    share = torch.tensor(SIDE / STORED_SIDE)
    theta = torch.cat([matrix[:, :3] * share, matrix[:, 3:] * (2 / STORED_SIDE)], dim=1)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 1, SIDE, SIDE, SIDE], align_corners=False)
    sampled = torch.nn.functional.grid_sample(
        stored[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, 0]
