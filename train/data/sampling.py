"""Sampling of the slices of an epoch: a pure function of the tables, the settings, the epoch and the losses so far.

An epoch is drawn from four groups in the shares of the settings: slices with tumor, slices with other labels only, hard
slices, and all slices. Hard slices are drawn in proportion to their last loss, or to the false tumor that mining found.
Slices of equal weight are drawn equally often, give or take one.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slicemill.ct.labels import Labels
from slicemill.store.reader import Store
from slicemill.store.tables import make_lesion_rows, make_slice_rows
from slicemill.train.config import Config

Row = dict[str, Any]
"""A row of the slice table or of the lesion table of a store."""
Floats = npt.NDArray[np.float32]


class Box(NamedTuple):
    """A box in a slice, pixels; the ends are exclusive."""

    y0: int
    x0: int
    y1: int
    x1: int


ANYWHERE = Box(0, 0, 1 << 30, 1 << 30)


class SlicePosition(NamedTuple):
    """A slice to train on, and the target of a crop of it."""

    case_id: str
    z: int
    aim: Box | None = None
    """A crop contains a random pixel of this box; None: a labeled pixel if there is one."""


class Pool:
    """The slices of the training cases with their sampling weights."""

    def __init__(self, slices: Sequence[Row], lesions: Sequence[Row], labels: Labels, config: Config) -> None:
        """Compute the weight of every row of the slice table. Lesions of other cases are left out.

        A slice with tumor weighs ``sum(extent ** -lesion_balance)`` over its lesions, where extent is the number of
        slices of a lesion. At 0 every slice of a lesion counts the same, so long lesions dominate; at 1 every lesion
        counts the same.
        """
        self.slices = [(str(row["case_id"]), int(row["z"])) for row in slices]
        """Case id and z of each slice."""
        self.number = {position: number for number, position in enumerate(self.slices)}
        """Index of each slice in `slices`."""
        has_tumor = np.array([labels.tumor is not None and bool(row["has_tumor"]) for row in slices])
        labeled = np.array([any(row.get(f"voxels_{name}") for name in labels.values) for row in slices])
        self._boxes: list[list[tuple[Box, float]]] = [[] for _ in slices]
        for row in lesions:
            box = Box(row["bbox_y0"], row["bbox_x0"], row["bbox_y1"], row["bbox_x1"])
            extent = row["bbox_z1"] - row["bbox_z0"]
            for z in range(row["bbox_z0"], row["bbox_z1"]):
                if (number := self.number.get((row["case_id"], z))) is not None and has_tumor[number]:
                    self._boxes[number].append((box, extent**-config.lesion_balance))
        self.tumor = np.array(
            [
                (sum(weight for _, weight in boxes) or 1.0) if tumor else 0.0
                for boxes, tumor in zip(self._boxes, has_tumor, strict=True)
            ]
        )
        """Weights of the slices with tumor, float64[n]; 0 without."""
        self.organ = (labeled & ~has_tumor).astype(float)
        """1 for slices with other labels only, float64[n]."""

    def draw_lesion_box(self, number: int, rng: np.random.Generator) -> Box | None:
        """Return the box of one of a slice's lesions, drawn by weight; None if the lesion table has none."""
        boxes = self._boxes[number]
        if not boxes:
            return None
        weights = np.array([weight for _, weight in boxes])
        return boxes[int(rng.choice(len(boxes), p=weights / weights.sum()))][0]


def make_pool(store: Store, case_ids: Collection[str], labels: Labels, config: Config) -> Pool:
    """Return the slices of these cases, from the cases: the tables may be of earlier versions of them."""
    chosen = set(case_ids)
    infos = [store[case_id].info for case_id in store.case_ids if case_id in chosen]
    slices = [row for info in infos for row in make_slice_rows(info)]
    lesions = [row for info in infos for row in make_lesion_rows(info)]
    return Pool(slices, lesions, labels, config)


def draw_epoch(
    pool: Pool, config: Config, epoch: int, losses: Floats | None = None, mined: Floats | None = None
) -> list[SlicePosition]:
    """Return the slices of an epoch, in order.

    Parameters
    ----------
    losses
        float32[slices of the pool]: the last training loss of each slice, NaN if it has none. Hard slices are drawn in
        proportion to it; before the first loss they are drawn from all slices.
    mined
        float32[slices of the pool, 5]: weight of each slice and box y0, x0, y1, x1 of its false tumor. With any
        weight, hard slices are drawn by it instead, and a crop shows the box.
    """
    rng = np.random.default_rng((config.seed, epoch))
    everything = np.ones(len(pool.slices))
    count = (config.steps or max(1, len(pool.slices) // config.batch)) * config.batch
    from_tumor = round(count * config.tumor_share) if pool.tumor.any() else 0
    from_organ = round(count * config.organ_share) if pool.organ.any() else 0
    from_hard = round(count * config.hard_share)
    from_all = count - from_tumor - from_organ - from_hard
    chosen = [
        *(SlicePosition(*pool.slices[n], pool.draw_lesion_box(n, rng)) for n in draw(pool.tumor, from_tumor, rng)),
        *(SlicePosition(*pool.slices[n]) for n in draw(pool.organ, from_organ, rng)),
        *_draw_hard(pool, from_hard, losses, mined, rng),
        *(SlicePosition(*pool.slices[n], ANYWHERE) for n in draw(everything, from_all, rng)),
    ]
    return [chosen[index] for index in rng.permutation(len(chosen))]


def _draw_hard(
    pool: Pool, count: int, losses: Floats | None, mined: Floats | None, rng: np.random.Generator
) -> list[SlicePosition]:
    if mined is None or not mined[:, 0].any():
        return [SlicePosition(*pool.slices[n]) for n in draw(loss_weights(losses, len(pool.slices)), count, rng)]
    chosen = draw(mined[:, 0].astype(np.float64), count, rng)
    return [SlicePosition(*pool.slices[n], Box(*map(int, mined[n, 1:]))) for n in chosen]


def loss_weights(losses: Floats | None, count: int) -> npt.NDArray[np.float64]:
    """Return the weights of slices by their last loss: float64[count]. Slices without a loss get the mean.

    >>> loss_weights(np.array([1, np.nan, 3], np.float32), 3).tolist()
    [1.0, 2.0, 3.0]
    """
    if losses is None or np.isnan(losses).all():
        return np.ones(count)
    return np.where(np.isnan(losses), np.nanmean(losses), losses).astype(np.float64)


def draw(weights: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Return `count` indices, each as often as its share of `weights`, rounded down or up (systematic sampling).

    >>> sorted(draw(np.array([1.0, 0.0, 3.0]), 8, np.random.default_rng(0)))
    [0, 0, 2, 2, 2, 2, 2, 2]
    """
    if not count:
        return []
    if not weights.any():
        weights = np.ones(len(weights))
    # Cumulate the weights in random order, and take the index at equally spaced ticks.
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    ticks = (np.arange(count) + rng.random()) * (ends[-1] / count)
    return [int(order[index]) for index in np.minimum(np.searchsorted(ends, ticks, side="right"), len(order) - 1)]
