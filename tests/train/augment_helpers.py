"""Slices for the tests of random changes."""

import numpy as np
import torch
from scipy import ndimage

from slicemill.train.data.augment import augment_by_shares
from slicemill.train.data.generators import make_generators

IGNORED = -100
MOVING_KINDS = ("mirror", "move", "elastic")
CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def generators(seed=0):
    """Return the generators of a step on the CPU."""
    return make_generators(CPU).manual_seed(seed)


def batch(count=4, channels=3, size=(48, 40)):
    """Return smooth random slices and labels of three classes, with a strip that is ignored."""
    rng = np.random.default_rng(5)
    image = ndimage.gaussian_filter(rng.standard_normal((count, channels, *size)), (0, 0, 2, 2)) * 2
    label = np.digitize(image[:, channels // 2], [0, 0.4])
    label[:, 10:14, 5:30] = IGNORED
    return torch.from_numpy(image).float().clamp(-1, 1), torch.from_numpy(label).long()


def of_all(kinds, strength=1.0):
    """Return a change by these kinds of every slice."""
    return lambda image, label, drawn_by: augment_by_shares(image, label, strength, dict.fromkeys(kinds, 1.0), drawn_by)


def blobs(count, channels, size, at, radius=5):
    """Return bright discs on air and their labels."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    disc = ((y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2).repeat(count, 1, 1)
    return disc[:, None].repeat(1, channels, 1, 1).float() * 2 - 1, disc.long()


def middles(weights):
    """Return the centroids y, x of slices float[b, y, x]: float[b, 2]."""
    return np.array([ndimage.center_of_mass(one.numpy()) for one in weights])
