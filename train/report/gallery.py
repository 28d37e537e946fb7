"""The augmentation of training on real slices, as one picture: a row per kind of change, a column per slice.

Colored outlines are the labels after the change, gray outlines the labels before. Kinds that only change
values are shown as close-ups, because their effect is small.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from slicemill.ct.crop import neighbors
from slicemill.ct.pictures import (
    Color,
    Panel,
    Picture,
    draw_labels,
    label_colors,
    make_montage,
    pick_evenly,
    render_gray,
)
from slicemill.ct.window import Window
from slicemill.store.preview import choose_slices
from slicemill.store.reader import Case, Store
from slicemill.train.config import KINDS, Config
from slicemill.train.data.augment import SHARES, VALUE_KINDS, augment_by_shares, tilt
from slicemill.train.data.generators import Generators, make_generators
from slicemill.train.data.warp import ImageAndLabel
from slicemill.train.network.unet import normalize
from slicemill.train.run.setup import common_labels

COLUMNS = 5
TILE_PX = 384
"""Longest side of a tile."""
CLOSE_UP = 3
"""A close-up shows one third of each side, around the middle of the highest label."""
REACH = 4
"""Slices that a tilt reaches in the picture if the settings turn tilting off."""
FORMER_COLOR: Color = (150, 150, 150)
"""Outlines before the change."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A column of the picture: a slab of slices around the one that is shown."""

    name: str
    image: Tensor
    """float32[1, 1 + 2m, y, x], normalized."""
    label: Tensor
    """int64[1, 1 + 2m, y, x], label values."""

    def middle(self) -> ImageAndLabel:
        """Return the slice that is shown: float32[1, 1, y, x] and int64[1, y, x]."""
        reach = self.image.shape[1] // 2
        return self.image[:, reach : reach + 1], self.label[:, reach]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the picture: one change, applied to every sample."""

    title: str
    change: Callable[[Sample, Generators], ImageAndLabel]
    close_up: bool = False


def draw_gallery(store: Store, config: Config) -> Image.Image:
    """Draw slices as stored, with each kind of change at the strength of the settings, and with all changes.

    Raises
    ------
    StoreError
        No case has a mask.
    """
    colors = label_colors(common_labels(store))
    generators = make_generators(torch.device("cpu")).manual_seed(config.seed)
    window = Window(config.window_low, config.window_high)
    masked = [case for case in store.values() if case.label is not None]
    chosen = pick_evenly(masked, COLUMNS) * (COLUMNS if len(masked) == 1 else 1)
    samples = [read_sample(case, window, config.oblique or REACH) for case in chosen]
    tiles = []
    for row in list_rows(config):
        for sample in samples:
            image, label = row.change(sample, generators)
            former = sample.middle()[1][0].numpy().astype(np.uint8)
            shown = label[0].numpy().astype(np.uint8)
            box = find_close_up(former) if row.close_up else (slice(None), slice(None))
            picture = render_gray(to_hu(image[0, 0], window)[box], window)
            if (former != shown).any():
                picture = draw_labels(picture, former[box], [(values, FORMER_COLOR) for values, _ in colors])
            picture = draw_labels(picture, shown[box], colors)
            tiles.append(Panel(picture=shrink(picture), caption=f"{row.title}: {sample.name}"))
    title = (
        f"augment = {config.augment:g}: training changes the shares of slices in brackets; "
        f"window {window.low:g} to {window.high:g} HU"
    )
    return make_montage(tiles, len(samples), title=title)


def list_rows(config: Config) -> Iterator[Row]:
    """Yield the rows: as stored, moved, tilted, with changed values, all together."""
    kinds = [kind for kind in KINDS if kind in config.kinds]
    yield Row(title="as stored", change=lambda sample, _: sample.middle())
    for kind in kinds:
        if kind not in VALUE_KINDS:
            yield kind_row(kind, config)
    off = "" if config.oblique else ", off"
    yield Row(
        title=f"tilt (oblique = {config.oblique or REACH}{off})",
        change=lambda sample, generators: tilt(sample.image, sample.label, generators.device),
    )
    if set(kinds) & set(VALUE_KINDS):
        yield Row(title="as stored, close up", change=lambda sample, _: sample.middle(), close_up=True)
    for kind in kinds:
        if kind in VALUE_KINDS:
            yield kind_row(kind, config)
    yield Row(title="all combined", change=lambda sample, generators: change_all(sample, config, generators))


def kind_row(kind: str, config: Config) -> Row:
    """Return the row of one kind, which changes every slice here."""
    return Row(
        title=f"{kind} ({config.augment * SHARES[kind]:.0%})",
        change=lambda sample, generators: augment_by_shares(*sample.middle(), config.augment, {kind: 1.0}, generators),
        close_up=kind in VALUE_KINDS,
    )


def change_all(sample: Sample, config: Config, generators: Generators) -> ImageAndLabel:
    """Apply all changes of the settings at once."""
    batch = tilt(sample.image, sample.label, generators.device) if config.oblique else sample.middle()
    return augment_by_shares(*batch, config.augment, dict.fromkeys(config.kinds, 1.0), generators)


def read_sample(case: Case, window: Window, reach: int) -> Sample:
    """Read the slice with most tumor, else one from the middle of the labels, with `reach` slices to either side."""
    tumor = case.info.labels and case.info.slice_stats.voxels.get(case.info.labels.tumor or "")
    z = choose_slices(case.info, 1)[0] if tumor and any(tumor) else choose_slices(case.info, 3)[1]
    around = neighbors(z, len(case.image), 1 + 2 * reach)
    image = torch.from_numpy(case.image.read_many(around))[None]
    label = np.zeros(image.shape, np.uint8) if case.label is None else case.label.read_many(around)[None]
    return Sample(
        name=f"{case.info.case_id}, z={z}",
        image=normalize(image, window.low, window.high),
        label=torch.from_numpy(label).long(),
    )


def find_close_up(label: npt.NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the part of a slice around the middle of its highest label, which may be background.

    >>> label = np.zeros((90, 60), np.uint8)
    >>> label[80:, 30] = 1
    >>> find_close_up(label)
    (slice(60, 90, None), slice(20, 40, None))
    """
    sides = [side // CLOSE_UP for side in label.shape]
    middle = np.argwhere(label == label.max()).mean(axis=0).round().astype(int)
    y, x = (
        int(np.clip(at - side // 2, 0, full - side)) for at, side, full in zip(middle, sides, label.shape, strict=True)
    )
    return slice(y, y + sides[0]), slice(x, x + sides[1])


def shrink(picture: Picture) -> Picture:
    """Return a picture with a longer side of at most TILE_PX."""
    height, width = picture.shape[:2]
    factor = TILE_PX / max(height, width)
    if factor >= 1:
        return picture
    return np.asarray(Image.fromarray(picture).resize((round(width * factor), round(height * factor))))


def to_hu(image: Tensor, window: Window) -> npt.NDArray[np.int16]:
    """Return an image of the network, float32[y, x] in -1..1 over the window, as HU: int16[y, x]."""
    half = (window.high - window.low) / 2
    values: npt.NDArray[np.int16] = (image.numpy() * half + window.low + half).clip(-32768, 32767).astype(np.int16)
    return values
