"""What the random changes of training do to real slices, as one picture: a row a kind of change, a column a slice."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Generator, Tensor

from store.picture import Tile, draw_labels, gray, montage, spread
from store.preview import chosen_slices, label_colors
from store.reader import Store
from store.window import Window
from train.augment import move, shade
from train.config import Config
from train.setup import common_labels
from train.unet import normalize

COLUMNS = 5
Change = Callable[[Tensor, Tensor, float, Generator], tuple[Tensor, Tensor]]


def gallery(store: Store, config: Config) -> Image.Image:
    """Return slices as they are, moved, shaded, and both, at the settings' strength; outlines move with their slices.

    Raises
    ------
    StoreError
        No case has a mask.
    """
    labels = common_labels(store)
    generator = torch.Generator().manual_seed(config.seed)
    window = Window(config.window_low, config.window_high)
    changes: dict[str, Change] = {"as stored": keep, "moved": move, "shaded": shaded, "both": both}
    masked = [case for case in store if case.label is not None]
    tiles = []
    for title, change in changes.items():
        for case in spread(masked, COLUMNS) * (COLUMNS if len(masked) == 1 else 1):
            z = chosen_slices(case.info, 3)[1]
            label = np.zeros(case.image.shape[1:], np.uint8) if case.label is None else case.label[z]
            image = normalize(torch.from_numpy(case.image[z])[None, None], window.low, window.high)
            seen, truth = change(image, torch.from_numpy(label).long()[None], config.augment, generator)
            picture = gray(in_hu(seen[0, 0], window), window)
            picture = draw_labels(picture, truth[0].numpy().astype(np.uint8), label_colors(labels))
            tiles.append(Tile(picture=picture, caption=f"{title}: {case.info.case_id}, z={z}"))
    columns = len(tiles) // len(changes)
    return montage(tiles, columns, title=f"augment = {config.augment:g}, window {window.low:g} to {window.high:g} HU")


def keep(image: Tensor, label: Tensor, _strength: float, _generator: Generator) -> tuple[Tensor, Tensor]:
    """Change nothing."""
    return image, label


def shaded(image: Tensor, label: Tensor, strength: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Change contrast and brightness, and add noise."""
    return shade(image, strength, generator), label


def both(image: Tensor, label: Tensor, strength: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Move and shade, as training does."""
    image, label = move(image, label, strength, generator)
    return shade(image, strength, generator), label


def in_hu(image: Tensor, window: Window) -> npt.NDArray[np.int16]:
    """Return what the network sees, float32[y, x] in -1..1 over the window, as HU: int16[y, x]."""
    half = (window.high - window.low) / 2
    values: npt.NDArray[np.int16] = (image.numpy() * half + window.low + half).clip(-32768, 32767).astype(np.int16)
    return values
