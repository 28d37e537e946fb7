"""How slices of any size are shown to a network of one size.

Slices smaller than the model's are padded with air, centered; larger ones are covered by overlapping tiles. Nothing is
squeezed. Each pixel is taken from the tile in which it lies farther from the edge; or, by request, all tiles and mirrored
slices are averaged.
"""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from store.framing import fit
from store.layout import AIR_HU

OVERLAP = 4
"""Neighboring tiles share at least one part in OVERLAP of their side."""

Number = TypeVar("Number", bound=np.generic)


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


def cover(extent: int, side: int) -> list[Span]:
    """Return tiles of `side` that cover `extent` pixels.

    >>> cover(100, 128)
    [Span(start=-14, keep_from=0, keep_to=100)]
    >>> [(span.start, span.keep_from, span.keep_to) for span in cover(200, 128)]
    [(0, 0, 100), (72, 100, 200)]
    """
    if extent <= side:
        return [Span((extent - side) // 2, 0, extent)]
    count = -(-(extent - side // OVERLAP) // (side - side // OVERLAP))
    starts = [round(index * (extent - side) / (count - 1)) for index in range(count)]
    seams = [0, *((left + side + right) // 2 for left, right in pairwise(starts)), extent]
    return [Span(start, first, last) for start, first, last in zip(starts, seams, seams[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class View:
    """A tile of a slice, as the network is shown it."""

    y: Span
    x: Span

    def show(self, section: npt.NDArray[np.int16], out: npt.NDArray[np.int16]) -> None:
        """Copy the tile of a slice int16[y, x], HU, into `out`: int16[H, W], with air around."""
        fit(section, (self.y.start, self.x.start), AIR_HU, out)

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


def views_of(shape: tuple[int, int], size: tuple[int, int]) -> tuple[View, ...]:
    """Return the views that show a network of `size` every pixel of a slice of `shape`, both y, x."""
    return tuple(View(y, x) for y, x in product(cover(shape[0], size[0]), cover(shape[1], size[1])))
