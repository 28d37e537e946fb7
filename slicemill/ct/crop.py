"""Fit slices of any size to a network's input size, and choose the neighboring slices of a window."""

import math

import numpy as np
import numpy.typing as npt


def neighbors(z: int, count: int, context: int, step: float = 1.0) -> list[int]:
    """Return the `context` slices around `z` among `count`, `step` slices apart; edges are repeated.

    >>> neighbors(0, 10, 5), neighbors(5, 10, 3, 2.6)
    ([0, 0, 0, 1, 2], [2, 5, 8])
    """
    reach = context // 2
    return [min(max(z + math.floor(offset * step + 0.5), 0), count - 1) for offset in range(-reach, reach + 1)]


def neighbor_step(context_spacing_mm: float | None, spacing_z_mm: float) -> float:
    """Return the distance of neighbors in slices: 1, or the equivalent of a distance in mm.

    >>> neighbor_step(None, 5.0), neighbor_step(3.0, 1.5)
    (1.0, 2.0)
    """
    return 1.0 if context_spacing_mm is None else context_spacing_mm / spacing_z_mm


def centered_corner(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Return the corner (y, x) of a window of `size` centered on a slice of `shape` [y, x]; negative if it is padded.

    >>> centered_corner((100, 130), (128, 128))
    (-14, 1)
    """
    return (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2


def crop_or_pad(
    section: npt.NDArray[np.generic], corner: tuple[int, int], fill: int, out: npt.NDArray[np.generic]
) -> None:
    """Crop or pad a slice any[y, x] into `out`: any[H, W], whose origin is the slice's pixel `corner`.

    Pixels outside the slice become `fill`.
    """
    inside = [
        (max(-start, 0), max(start, 0), min(start + side, extent) - max(start, 0))
        for start, extent, side in zip(corner, section.shape, out.shape, strict=True)
    ]
    (to_y, from_y, height), (to_x, from_x, width) = inside
    if (height, width) != out.shape:
        out[...] = fill
    out[to_y : to_y + height, to_x : to_x + width] = section[from_y : from_y + height, from_x : from_x + width]
