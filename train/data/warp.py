"""Warp slices: one linear map and one smooth deformation per slice, one interpolation for both."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

CONTROL_SPANS = 8
"""Number of parts into which the control points of the elastic deformation divide each side."""

ImageAndLabel = tuple[Tensor, Tensor]
"""image: float32[b, c, y, x], normalized; label: int64[b, y, x], class indices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """A mapping from the pixels p of b new slices to their sources: ``matrix @ (p + shift + bend(p))``.

    Positions are x, y in pixels from the center of a slice.
    """

    matrix: Tensor
    """float32[b, 2, 2]."""
    shift: Tensor
    """float32[b, 2], pixels."""
    bend: Tensor
    """float32[b, k, k, 2], pixels: control points [y, x] of a uniform cubic B-spline (Rueckert et al. 1999).

    k is CONTROL_SPANS + 3."""

    def changes(self) -> Tensor:
        """Return whether it changes each slice: bool[b]."""
        one = torch.eye(2, device=self.matrix.device)
        changes = (self.matrix - one).flatten(1), self.shift, self.bend.flatten(1)
        return torch.cat(changes, dim=1).any(dim=1)

    def select(self, index: Tensor) -> "Warp":
        """Return the warp of some of the slices."""
        return Warp(matrix=self.matrix[index], shift=self.shift[index], bend=self.bend[index])


def identity_warp(count: int, device: torch.device) -> Warp:
    """Return a warp that changes nothing."""
    points = CONTROL_SPANS + 3
    return Warp(
        matrix=torch.eye(2, device=device).repeat(count, 1, 1),
        shift=torch.zeros(count, 2, device=device),
        bend=torch.zeros(count, points, points, 2, device=device),
    )


def scale_warp(warp: Warp, zoom: Tensor | None) -> Warp:
    """Return a warp that also enlarges by `zoom`: float32[b, 2], y and x; None changes nothing."""
    if zoom is None:
        return warp
    return Warp(matrix=warp.matrix / zoom.flip(1)[:, :, None], shift=warp.shift, bend=warp.bend)


def apply_warp(image: Tensor, label: Tensor, warp: Warp, size: tuple[int, int]) -> ImageAndLabel:
    """Return new slices of a size y, x: bilinear for the image, nearest for the label; air and 0 outside the source."""
    # `grid_sample` takes the source of every pixel as x, y from -1 to 1 along each side. The linear part is a sum of a
    # term of the column and a term of the row, so the grid needs no matrix product per pixel.
    matrix = 2 / sides_xy((image.shape[2], image.shape[3]), image.device)[:, None] * warp.matrix
    y, x = (center_offsets(side, image.device) for side in size)
    across = matrix[:, None, :, 0] * x[:, None]
    down = matrix[:, None, :, 1] * y[:, None] + (matrix @ warp.shift[:, :, None]).mT
    grid = down[:, :, None] + across[:, None]
    # The spline is separable: first along x for each row of control points, then along y, added to the grid.
    along_x, along_y = (spline_weights(side, image.device) for side in (size[1], size[0]))
    rows = torch.einsum("xj,bijc->bixc", along_x, warp.bend @ matrix.mT[:, None])
    bent = torch.baddbmm(grid.flatten(2), along_y.expand(len(image), -1, -1), rows.flatten(2)).view_as(grid)
    # Padding is 0, so air, -1, is shifted to 0 and back.
    taken = F.grid_sample(image + 1, bent, mode="bilinear", padding_mode="zeros", align_corners=False).sub_(1)
    labels = F.grid_sample(label[:, None].float(), bent, mode="nearest", padding_mode="zeros", align_corners=False)
    return taken, labels[:, 0].long()


def apply_where_changed(image: Tensor, label: Tensor, warp: Warp) -> ImageAndLabel:
    """Return slices of the same size, and those that the warp does not change bit for bit.

    All are computed, so that the host need not know how many it changes.
    """
    changed = warp.changes()[:, None, None]
    warped_image, warped_label = apply_warp(image, label, warp, (image.shape[2], image.shape[3]))
    return torch.where(changed[:, None], warped_image, image), torch.where(changed, warped_label, label)


@lru_cache(maxsize=16)
def sides_xy(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the sides x, y of slices of a size y, x: int64[2], pixels. Do not change it: every call returns it again.

    It is copied to the device once, because the host waits for the copy.
    """
    return torch.tensor([size[1], size[0]], device=device)


@lru_cache(maxsize=16)
def spline_weights(side: int, device: torch.device) -> Tensor:
    """Return the weights of uniform cubic B-spline control points at each pixel: float32[side, CONTROL_SPANS + 3].

    Do not change the result: every call returns it again.

    >>> weights = spline_weights(8 * CONTROL_SPANS, torch.device("cpu"))
    >>> bool(torch.allclose(weights.sum(dim=1), torch.ones(8 * CONTROL_SPANS)))
    True
    """
    position = (torch.arange(side, device=device) + 0.5) / side * CONTROL_SPANS + 1
    apart = (position[:, None] - torch.arange(CONTROL_SPANS + 3, device=device)).abs()
    return ((2 - apart).clamp(min=0) ** 3 - 4 * (1 - apart).clamp(min=0) ** 3) / 6


def center_offsets(side: int, device: torch.device) -> Tensor:
    """Return the positions of the pixels of a side, from its middle: float32[side], pixels."""
    return torch.arange(side, device=device) - (side - 1) / 2
