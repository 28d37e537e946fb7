"""Tiles: pass slices of any size to a network with a fixed input size.

Slices smaller than the network's input are padded with air, centered. Larger slices are covered by overlapping tiles.
Slices are not rescaled. Each pixel is taken from the tile in which it is farther from the edge.

On request, tiles overlap by half and are averaged. The weights are a Gaussian whose standard deviation is an eighth of
the side (as in nnU-Net, Isensee et al. 2021). On request, slices are also passed with left and right exchanged, as
`train` exchanges them in half of its slices. Front and back it never does, so a network has seen no such slice.
"""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slicemill.ct.crop import crop_or_pad
from slicemill.ct.window import AIR_HU

QUARTER, HALF = 4, 2
"""Neighboring tiles share at least 1/QUARTER of their side, or 1/HALF where tiles are averaged."""
SIDES_PER_SIGMA = 8
"""Side of a tile divided by the standard deviation of its Gaussian weights."""
MIN_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Averages over several predictions, and whether probabilities are kept."""

    mirror: bool = False
    """Average over the slice and its mirror image, left and right exchanged."""
    overlap: bool = False
    """Average over tiles that overlap by half, where a slice needs more than one tile."""
    probability: bool = False
    """Keep the probability of every class."""


PLAIN = PredictOptions()


@dataclass(frozen=True, slots=True)
class Span:
    """Extent of a tile along one axis of the slice."""

    start: int
    """Index in the slice of the tile's first pixel; negative where the slice is padded."""
    keep_from: int
    """First pixel of the slice that is taken from this tile."""
    keep_to: int
    """One past the last pixel of the slice that is taken from this tile."""

    @property
    def kept(self) -> slice:
        """Return the kept pixels as indices of the slice."""
        return slice(self.keep_from, self.keep_to)

    @property
    def inside(self) -> slice:
        """Return the kept pixels as indices of the tile."""
        return slice(self.keep_from - self.start, self.keep_to - self.start)


def cover_axis(extent: int, side: int, overlap: int = QUARTER) -> list[Span]:
    """Return tiles of `side` pixels that cover `extent` pixels; neighbors share at least ``side / overlap`` pixels.

    >>> cover_axis(100, 128)
    [Span(start=-14, keep_from=0, keep_to=100)]
    >>> [(span.start, span.keep_from, span.keep_to) for span in cover_axis(200, 128)]
    [(0, 0, 100), (72, 100, 200)]
    """
    if extent <= side:
        return [Span((extent - side) // 2, 0, extent)]
    count = -(-(extent - side // overlap) // (side - side // overlap))
    starts = [round(index * (extent - side) / (count - 1)) for index in range(count)]
    # a seam is the middle of the pixels that two neighboring tiles share
    seams = [0, *((left + side + right) // 2 for left, right in pairwise(starts)), extent]
    return [Span(start, first, last) for start, first, last in zip(starts, seams, seams[1:], strict=False)]


def keep_all(span: Span, extent: int, side: int) -> Span:
    """Return the same tile with every pixel of the slice kept.

    >>> keep_all(Span(72, 100, 200), 200, 128)
    Span(start=72, keep_from=72, keep_to=200)
    """
    return Span(span.start, max(0, span.start), min(extent, span.start + side))


def gaussian_weights(side: int) -> npt.NDArray[np.float32]:
    """Return the weights of a tile's pixels along one axis, about 1 in the middle: float32[side]."""
    distance = (np.arange(side) - (side - 1) / 2) / (side / SIDES_PER_SIGMA)
    return np.exp(-(distance**2) / 2).clip(MIN_WEIGHT).astype(np.float32)


@dataclass(frozen=True, slots=True)
class SliceTile:
    """One tile of a slice, perhaps mirrored."""

    y: Span
    x: Span
    step_x: Literal[1, -1] = 1
    """Step along x: -1 exchanges left and right."""

    def cut(self, section: npt.NDArray[np.int16], out: npt.NDArray[np.int16]) -> None:
        """Copy the tile from a slice int16[y, x], HU, to `out`: int16[H, W], padded with air."""
        crop_or_pad(section, (self.y.start, self.x.start), AIR_HU, self.mirror(out))

    def mirror(self, tile: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of an array any[..., H, W], mirrored along x if this tile is."""
        return tile[..., :: self.step_x]

    @property
    def kept(self) -> tuple[slice, slice]:
        """Return the kept pixels as indices of the slice."""
        return self.y.kept, self.x.kept

    @property
    def inside(self) -> tuple[slice, slice]:
        """Return the kept pixels as indices of the tile."""
        return self.y.inside, self.x.inside

    def paste(self, tile: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Copy the kept pixels of an output any[..., H, W] to `out`: any[..., y, x]."""
        out[..., *self.kept] = tile[..., *self.inside]

    def weights(self, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Return the weight of each kept pixel where tiles are averaged: float32[y, x]."""
        return gaussian_weights(size[0])[self.y.inside, None] * gaussian_weights(size[1])[None, self.x.inside]


def make_tiles(shape: tuple[int, int], size: tuple[int, int], predict: PredictOptions = PLAIN) -> tuple[SliceTile, ...]:
    """Return tiles that cover a slice of `shape` for a network with input `size`, both y, x."""
    rows, columns = (
        [keep_all(span, extent, side) for span in cover_axis(extent, side, HALF)]
        if predict.overlap
        else cover_axis(extent, side)
        for extent, side in zip(shape, size, strict=True)
    )
    steps: tuple[Literal[1, -1], ...] = (1, -1) if predict.mirror else (1,)
    return tuple(SliceTile(y, x, step) for step in steps for y, x in product(rows, columns))
