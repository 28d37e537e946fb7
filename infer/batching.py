"""A scan of any size -> batches of the model's size -> labels on the scan's own slices.

Slices smaller than the model's are padded with air, centred; larger ones are covered by overlapping tiles, and each
pixel is taken from the tile in which it lies farther from the edge. Nothing is squeezed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from infer.model import Model
from store.framing import fit, neighbor_step, neighbors
from store.layout import AIR_HU

CPU_PIXELS = 2 * 512 * 512
"""Pixels in a batch on the CPU: more brings nothing there (design notes, RUNTIME section 3)."""
GPU_PIXELS = 32 * 512 * 512
"""Pixels in a batch on a GPU."""
OVERLAP = 4
"""Neighbouring tiles share at least one part in OVERLAP of their side."""


@dataclass(frozen=True, slots=True)
class Span:
    """A tile's place along one axis of the slice."""

    start: int
    """First pixel of the slice in the tile; negative where the slice is padded."""
    keep_from: int
    """First pixel of the slice that is taken from this tile."""
    keep_to: int


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


@dataclass(frozen=True, kw_only=True)
class Work:
    """A batch that is ready to run."""

    image: npt.NDArray[np.int16]
    """int16[n, H, W], HU."""
    neighbors: npt.NDArray[np.int32]
    """int32[b, c]."""
    zs: range
    tile: tuple[Span, Span]


def batches(
    volume: npt.NDArray[np.int16], size: tuple[int, int], window: tuple[int, float], pixels: int
) -> Iterator[Work]:
    """Yield the batches of a volume int16[z, y, x], HU; each slice goes in once per batch and tile.

    Parameters
    ----------
    window
        Slices of a window, and how many slices they lie apart.
    """
    nz, ny, nx = volume.shape
    count = max(1, pixels // (size[0] * size[1]))
    for first in range(0, nz, count):
        zs = range(first, min(first + count, nz))
        windows = [neighbors(z, nz, *window) for z in zs]
        lowest, highest = windows[0][0], windows[-1][-1]
        for tile in product(cover(ny, size[0]), cover(nx, size[1])):
            image = np.empty((highest - lowest + 1, *size), dtype=np.int16)
            for out, section in zip(image, volume[lowest : highest + 1], strict=True):
                fit(section, (tile[0].start, tile[1].start), AIR_HU, out)
            yield Work(
                image=image, neighbors=np.array(windows, dtype=np.int32) - lowest, zs=zs, tile=(tile[0], tile[1])
            )


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What the network says of a scan, before post-processing."""

    label: npt.NDArray[np.uint8]
    """uint8[z, y, x], label values."""
    tumor_probability: npt.NDArray[np.uint8] | None
    """uint8[z, y, x], 255 times the probability of tumor; None where the model knows no tumor or gives no probability."""


def segment_volume(
    model: Model,
    volume: npt.NDArray[np.int16],
    spacing_z_mm: float,
    advance: Callable[[int], None] = lambda _: None,
) -> Segmented:
    """Label every slice of a volume int16[z, y, x], HU, whose slices lie `spacing_z_mm` apart."""
    info = model.info
    window = (info.context, neighbor_step(info.context_spacing_mm, spacing_z_mm))
    value = info.labels.tumor_value()
    index = None if value is None else info.labels.table().tolist().index(value)
    label = np.zeros(volume.shape, dtype=np.uint8)
    tumor = None if index is None or not info.gives_probability else np.zeros(volume.shape, dtype=np.uint8)
    for work in batches(volume, info.size, window, CPU_PIXELS if model.provider == "cpu" else GPU_PIXELS):
        labels, probability = model.run(work.image, work.neighbors, probability=tumor is not None)
        place(labels, work, label)
        if tumor is not None and probability is not None and index is not None:
            place((probability[:, index] * 255 + 0.5).astype(np.uint8), work, tumor)
        advance(len(work.zs))
    return Segmented(label=label, tumor_probability=tumor)


def place(labels: npt.NDArray[np.uint8], work: Work, out: npt.NDArray[np.uint8]) -> None:
    """Copy the kept part of a batch's result uint8[b, H, W] to its slices of `out`: uint8[z, y, x]."""
    y, x = work.tile
    out[work.zs.start : work.zs.stop, y.keep_from : y.keep_to, x.keep_from : x.keep_to] = labels[
        :, y.keep_from - y.start : y.keep_to - y.start, x.keep_from - x.start : x.keep_to - x.start
    ]


def slice_scores(tumor_probability: npt.NDArray[np.uint8], strongest: int) -> Sequence[float]:
    """Return for each slice the mean of its `strongest` highest tumor probabilities, 0 to 1."""
    flat = tumor_probability.reshape(len(tumor_probability), -1)
    count = min(strongest, flat.shape[1])
    top = np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:]
    return [round(float(score), 4) for score in top.mean(axis=1) / 255]
