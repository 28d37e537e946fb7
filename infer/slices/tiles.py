"""How slices of any size are shown to a network of one size.

Slices smaller than the model's are padded with air, centered; larger ones are covered by overlapping tiles. Nothing is
squeezed. Each pixel is taken from the tile in which it lies farther from the edge. By request tiles overlap by half and are
averaged, weighted by a bell whose deviation is an eighth of the side (as nnU-Net does it, Isensee et al. 2021), and slices are
shown mirrored along y, x and both, too.
"""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.ct.crop import fit
from slicemill.ct.window import AIR_HU

OVERLAP, HALF = 4, 2
"""Neighboring tiles share at least one part in so many of their side; HALF where they are averaged."""
BELL = 8
"""Parts of the side that the deviation of the weights is one of."""
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How slices are shown to a network, and what of its answer is kept beside labels."""

    mirror: bool = False
    """Average over the slice and its three mirror images."""
    overlap: bool = False
    """Average over tiles that overlap by half, where a slice needs more than one."""
    probability: bool = False
    """Keep the probability of every class."""


PLAIN = Manner()


@dataclass(frozen=True, slots=True)
class Span:
    """A tile's place along one axis of the slice."""

    start: int
    """First pixel of the slice in the tile; negative where the slice is padded."""
    keep_from: int
    """First pixel of the slice that is taken from this tile."""
    keep_to: int

    @property
    def kept(self) -> slice:
        """Return the kept pixels, in the slice."""
        return slice(self.keep_from, self.keep_to)

    @property
    def inside(self) -> slice:
        """Return the kept pixels, in the tile."""
        return slice(self.keep_from - self.start, self.keep_to - self.start)


def cover(extent: int, side: int, overlap: int = OVERLAP) -> list[Span]:
    """Return tiles of `side` that cover `extent` pixels and share at least one part in `overlap` of their side.

    >>> cover(100, 128)
    [Span(start=-14, keep_from=0, keep_to=100)]
    >>> [(span.start, span.keep_from, span.keep_to) for span in cover(200, 128)]
    [(0, 0, 100), (72, 100, 200)]
    """
    if extent <= side:
        return [Span((extent - side) // 2, 0, extent)]
    count = -(-(extent - side // overlap) // (side - side // overlap))
    starts = [round(index * (extent - side) / (count - 1)) for index in range(count)]
    seams = [0, *((left + side + right) // 2 for left, right in pairwise(starts)), extent]
    return [Span(start, first, last) for start, first, last in zip(starts, seams, seams[1:], strict=False)]


def bell(side: int) -> npt.NDArray[np.float32]:
    """Return the weights of a tile's pixels along one axis, 1 in the middle: float32[side]."""
    away = (np.arange(side) - (side - 1) / 2) / (side / BELL)
    return np.exp(-(away**2) / 2).clip(LEAST_WEIGHT).astype(np.float32)


@dataclass(frozen=True, slots=True)
class View:
    """A tile of a slice, as the network is shown it."""

    y: Span
    x: Span
    flip: tuple[int, int] = (1, 1)
    """-1 along the axes, y and x, that are mirrored."""

    def show(self, section: npt.NDArray[np.int16], out: npt.NDArray[np.int16]) -> None:
        """Copy the tile of a slice int16[y, x], HU, into `out`: int16[H, W], with air around."""
        fit(section, (self.y.start, self.x.start), AIR_HU, self.turned(out))

    def turned(self, tile: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of a tile, any[..., H, W], mirrored as this one is."""
        return tile[..., :: self.flip[0], :: self.flip[1]]

    @property
    def kept(self) -> tuple[slice, slice]:
        """Return the pixels that are taken from the tile, in the slice."""
        return self.y.kept, self.x.kept

    @property
    def inside(self) -> tuple[slice, slice]:
        """Return the same pixels, in the tile."""
        return self.y.inside, self.x.inside

    def place(self, tile: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Copy the kept part of what the network says of the tile, any[..., H, W], to its pixels of `out`: any[..., y, x]."""
        out[..., *self.kept] = tile[..., *self.inside]

    def weights(self, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Return how much each kept pixel counts where tiles are averaged: float32[y, x]."""
        return bell(size[0])[self.y.inside, None] * bell(size[1])[None, self.x.inside]


def tiles_of(shape: tuple[int, int], size: tuple[int, int], manner: Manner = PLAIN) -> tuple[View, ...]:
    """Return the views that show a network of `size` every pixel of a slice of `shape`, both y, x."""
    rows, columns = (
        [whole(span, extent, side) for span in cover(extent, side, HALF)] if manner.overlap else cover(extent, side)
        for extent, side in zip(shape, size, strict=True)
    )
    flips = [(1, 1), (1, -1), (-1, 1), (-1, -1)] if manner.mirror else [(1, 1)]
    return tuple(View(y, x, flip) for flip in flips for y, x in product(rows, columns))


def whole(span: Span, extent: int, side: int) -> Span:
    """Return a tile of which every pixel of the slice is kept.

    >>> whole(Span(72, 100, 200), 200, 128)
    Span(start=72, keep_from=72, keep_to=200)
    """
    return Span(span.start, max(0, span.start), min(extent, span.start + side))
