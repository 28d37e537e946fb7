"""Slices of a scan with its masks, small enough for a page; `slicemill/web/report/report.js` shows them.

Only slices that matter are kept: those with lesions and `NEAR` on both sides, or every k-th. They are reduced to at
most `MOST_SIDE` pixels a side and to 256 gray values, and packed until they fit into a size.

The data, compressed by gzip and as base64: for each mask uint32 its number of runs; for each mask uint32[runs], the
lengths of runs of equal values; for each mask uint8[runs], their values; uint8[slices, y, x], the gray values. All
little endian, in the order of the slices.
"""

import base64
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip

from slicemill.common.errors import LabelError
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import find_lesions
from slicemill.ct.pictures import label_colors

NEAR = 3
"""Slices that are kept on both sides of a lesion."""
MOST_SIDE = 256
"""Pixels along a side."""
LOW_HU, STEP_HU = -1024, 6
"""HU of gray value 0, and of a step. 255 is 506 HU, and all above it: the usual windows of soft tissue and
lung lie inside. `report.js` offers no window that ends above it, and says "at least" and "at most" at the ends."""
MEBIBYTE = 1 << 20
Voxels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SlicedLesion:
    """A lesion, as a place to jump to."""

    id: int
    first_z: int
    key_z: int
    last_z: int
    text: str


@dataclass(frozen=True, kw_only=True)
class SlicedMask:
    """A mask to show."""

    name: str
    label: Voxels
    """uint8[z, y, x], values of the labels."""


@dataclass(frozen=True, kw_only=True)
class PageLabel:
    """A label as the page draws it."""

    value: int
    name: str
    color: tuple[int, int, int]
    region: tuple[int, ...]
    """Values inside of its outline."""


@dataclass(frozen=True, kw_only=True)
class PageSlices:
    """What the page's viewer gets."""

    shape: tuple[int, int, int]
    """Kept slices, and their pixels along y and x."""
    spacing_mm: tuple[float, float, float]
    """z, y, x; of the reduced pixels."""
    slices: tuple[int, ...]
    """z of each kept slice."""
    slice_count: int
    """Slices of the scan."""
    reduced: int
    """Voxels along a side of a pixel."""
    low_hu: int
    step_hu: int
    tumor: int | None
    labels: tuple[PageLabel, ...]
    masks: tuple[str, ...]
    """Names of the masks."""
    lesions: tuple[SlicedLesion, ...]
    too_many_lesions: bool
    """None is listed, since there are more than `slicemill.ct.lesions.MAX_PARTS`."""
    data: str
    """Base64 of the packed voxels."""


def make_page_slices(
    image: npt.NDArray[np.int16],
    masks: Sequence[SlicedMask],
    labels: Labels,
    spacing_mm: tuple[float, float, float],
    lesions: Sequence[SlicedLesion] | None,
    most_mb: float,
) -> PageSlices | None:
    """Return the slices for a page; None if not even one fits. `lesions` is None if there are too many to list.

    Parameters
    ----------
    image
        int16[z, y, x], HU.
    masks
        On the grid of the image, with the same labels.
    spacing_mm
        z, y, x.
    most_mb
        MiB of the data as base64; 0 keeps nothing.
    """
    listed, most = lesions or (), int(most_mb * MEBIBYTE)
    step = max(1, math.ceil(max(image.shape[1:]) / MOST_SIDE))
    wanted = choose_slices(len(image), listed, find_labelled(masks))
    every = 1
    while True:
        kept = thin_out(wanted, every, {lesion.key_z for lesion in listed})
        grays = reduce_image(image[kept], step)
        reduced = [reduce_mask(mask.label[kept], step, labels.tumor_value()) for mask in masks]
        data = base64.b64encode(igzip.compress(pack(grays, reduced), 3)).decode()
        if len(data) <= most:
            break
        if every > len(wanted) or not most:
            return None
        every = max(every + 1, min(len(wanted) + 1, round(every * len(data) / most)))
    return PageSlices(
        shape=(len(kept), *grays.shape[1:]),
        spacing_mm=(spacing_mm[0], spacing_mm[1] * step, spacing_mm[2] * step),
        slices=tuple(kept),
        slice_count=len(image),
        reduced=step,
        low_hu=LOW_HU,
        step_hu=STEP_HU,
        tumor=labels.tumor_value(),
        labels=describe_labels(labels),
        masks=tuple(mask.name for mask in masks),
        lesions=tuple(lesion for lesion in listed if lesion.key_z in kept),
        too_many_lesions=lesions is None,
        data=data,
    )


def list_parts(
    mask: npt.NDArray[np.bool_], name: str, affine_lps: npt.NDArray[np.float64]
) -> list[SlicedLesion] | None:
    """Return the 26-connected parts of bool[z, y, x], the largest first; `affine_lps` is float64[4, 4].

    None if there are more than `slicemill.ct.lesions.MAX_PARTS`, as in a noisy prediction.
    """
    try:
        parts = find_lesions(mask, affine_lps)
    except LabelError:
        return None
    return [
        SlicedLesion(
            id=part.id,
            first_z=part.bbox_zyx[0],
            key_z=part.key_z,
            last_z=part.bbox_zyx[3] - 1,
            text=f"{name} {part.id}: {part.max_axial_diameter_mm:.1f} mm, slice {part.key_z + 1}",
        )
        for part in parts
    ]


def describe_labels(labels: Labels) -> tuple[PageLabel, ...]:
    """Return the labels with the colors and regions of all pictures of slicemill (`slicemill.ct.pictures`).

    >>> [(label.name, label.region) for label in describe_labels(Labels({"liver": 1, "tumor": 2}, "liver", "tumor"))]
    [('liver', (1, 2)), ('tumor', (2,))]
    """
    colors = {tuple(values): color for values, color in label_colors(labels)}
    regions = {name: tuple(values) for name, values in labels.regions().items()}
    return tuple(
        PageLabel(value=value, name=name, region=regions[name], color=colors[regions[name]])
        for name, value in labels.values.items()
    )


def find_labelled(masks: Sequence[SlicedMask]) -> list[int]:
    """Return the slices in which any mask has a label."""
    used = [mask.label.any(axis=(1, 2)) for mask in masks]
    return np.flatnonzero(np.any(used, axis=0)).tolist() if used else []


def choose_slices(count: int, lesions: Iterable[SlicedLesion], labelled: Sequence[int]) -> list[int]:
    """Return the slices that matter: those of lesions, else those from the first to the last label, else all.

    >>> lesion = SlicedLesion(id=1, first_z=4, key_z=5, last_z=5, text="")
    >>> choose_slices(10, [lesion], [])
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    near = itertools.chain.from_iterable(range(one.first_z - NEAR, one.last_z + NEAR + 1) for one in lesions)
    chosen = sorted({z for z in near if 0 <= z < count})
    if chosen:
        return chosen
    return list(range(labelled[0], labelled[-1] + 1)) if labelled else list(range(count))


def thin_out(slices: Sequence[int], every: int, always: set[int]) -> list[int]:
    """Return every k-th slice, and those that are always kept; with a k above their number only the latter, if any.

    >>> thin_out([1, 2, 3, 4, 5, 6], 3, {3})
    [2, 3, 5]
    """
    start = (min(every, len(slices)) - 1) // 2
    kept = {z for z in slices if z in always}
    return sorted(kept if kept and every > len(slices) else kept.union(slices[start::every]))


def reduce_image(image: npt.NDArray[np.int16], step: int) -> Voxels:
    """Return uint8[z, y, x]: the mean HU of squares of `step` voxels, in steps of STEP_HU from LOW_HU."""
    squares = _to_squares(image, step, "edge")
    return to_grays(squares.mean(axis=(2, 4), dtype=np.float32))


def to_grays(hu: npt.NDArray[Any]) -> Voxels:
    """Return HU as gray values, in steps of STEP_HU from LOW_HU.

    >>> to_grays(np.array([-2000.0, -1024.0, -1017.0, 506.0, 3000.0])).tolist()
    [0, 0, 1, 255, 255]
    """
    grays: Voxels = np.clip(np.rint((hu - np.float32(LOW_HU)) / STEP_HU), 0, 255).astype(np.uint8)
    return grays


def reduce_mask(label: Voxels, step: int, tumor: int | None) -> Voxels:
    """Return uint8[z, y, x]: the value in the middle of squares of `step` voxels; tumor, if any of them is tumor."""
    squares = _to_squares(label, step, "constant")
    reduced = squares[:, :, step // 2, :, step // 2]
    if tumor is not None:
        reduced = np.where((squares == tumor).any(axis=(2, 4)), np.uint8(tumor), reduced)
    values: Voxels = np.ascontiguousarray(reduced, dtype=np.uint8)
    return values


def _to_squares(voxels: npt.NDArray[np.generic], step: int, mode: str) -> npt.NDArray[np.generic]:
    """Return any[z, y, step, x, step]."""
    count, height, width = voxels.shape
    more = ((0, 0), (0, -height % step), (0, -width % step))
    padded = np.pad(voxels, more, mode=mode)  # type: ignore[call-overload]
    squares: npt.NDArray[np.generic] = padded.reshape(count, -(-height // step), step, -(-width // step), step)
    return squares


def pack(grays: Voxels, masks: Sequence[Voxels]) -> bytes:
    """Return the data of the module's docstring, before gzip."""
    runs = [find_runs(mask.ravel()) for mask in masks]
    counts = np.array([len(lengths) for lengths, _ in runs], dtype="<u4")
    return b"".join(
        [
            counts.tobytes(),
            *(lengths.tobytes() for lengths, _ in runs),
            *(values.tobytes() for _, values in runs),
            grays.tobytes(),
        ]
    )


def find_runs(values: Voxels) -> tuple[npt.NDArray[np.uint32], Voxels]:
    """Return the lengths, uint32[n], and the values, uint8[n], of runs of equal values.

    >>> lengths, runs = find_runs(np.array([0, 0, 2, 1, 1, 1], dtype=np.uint8))
    >>> lengths.tolist(), runs.tolist()
    ([2, 1, 3], [0, 2, 1])
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    return lengths.astype("<u4"), values[starts]
