"""Which slices an epoch trains on, and where: a pure function of the tables, the settings, the epoch and the losses so far.

An epoch is drawn from four pools in stated shares: slices with tumor, slices with other labels alone, hard slices (those
on which the network did worst when it last saw them), and all of them. Nothing is drawn twice before everything of
its weight was drawn once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slicemill.ct.labels import Labels
from slicemill.train.config import Config

Row = dict[str, Any]
Floats = npt.NDArray[np.float32]


class Box(NamedTuple):
    """A part of a slice, pixels, ends left out."""

    y0: int
    x0: int
    y1: int
    x1: int


ANYWHERE = Box(0, 0, 1 << 30, 1 << 30)


class SlicePosition(NamedTuple):
    """A slice to train on, and what a crop of it aims at."""

    case_id: str
    z: int
    aim: Box | None = None
    """A crop holds a random pixel of this box; None aims at a labelled pixel where there is one."""


class Pool:
    """The slices of the training cases with the weights that they are drawn by."""

    def __init__(self, slices: Sequence[Row], lesions: Sequence[Row], labels: Labels, config: Config) -> None:
        """Weigh every slice of the slice table's rows by the labels that count; lesions of other cases are left out.

        A slice with tumor weighs sum(extent ** -lesion_balance) over its lesions, extent being the lesion's slices: with 0
        every lesion has the weight of its slices and long ones win, with 1 all lesions have the same.
        """
        self.places = [(str(row["case_id"]), int(row["z"])) for row in slices]
        tumor = np.array([labels.tumor is not None and bool(row["has_tumor"]) for row in slices])
        labelled = np.array([any(row.get(f"voxels_{name}") for name in labels.values) for row in slices])
        self._boxes: list[list[tuple[Box, float]]] = [[] for _ in slices]
        self.number = {place: number for number, place in enumerate(self.places)}
        for row in lesions:
            box = Box(row["bbox_y0"], row["bbox_x0"], row["bbox_y1"], row["bbox_x1"])
            extent = row["bbox_z1"] - row["bbox_z0"]
            for z in range(row["bbox_z0"], row["bbox_z1"]):
                if (found := self.number.get((row["case_id"], z))) is not None and tumor[found]:
                    self._boxes[found].append((box, extent**-config.lesion_balance))
        self.tumor = np.array(
            [
                (sum(weight for _, weight in boxes) or 1.0) if holds else 0.0
                for boxes, holds in zip(self._boxes, tumor, strict=True)
            ]
        )
        self.organ = (labelled & ~tumor).astype(float)

    def lesion_box(self, number: int, rng: np.random.Generator) -> Box | None:
        """Return the box of one of a slice's lesions, drawn by weight; None where the lesion table has none."""
        boxes = self._boxes[number]
        if not boxes:
            return None
        weights = np.array([weight for _, weight in boxes])
        return boxes[int(rng.choice(len(boxes), p=weights / weights.sum()))][0]


def epoch_places(pool: Pool, config: Config, epoch: int, losses: Floats | None = None) -> list[SlicePosition]:
    """Return the slices of an epoch in order.

    Parameters
    ----------
    losses
        float32[slices of the pool]: the loss of each slice when it was last trained on, NaN if it never was; hard slices
        are drawn in proportion to it, and as any slice while there is none.
    """
    rng = np.random.default_rng((config.seed, epoch))
    count = (config.steps or max(1, len(pool.places) // config.batch)) * config.batch
    from_tumor = round(count * config.tumor_share) if pool.tumor.any() else 0
    from_organ = round(count * config.organ_share) if pool.organ.any() else 0
    from_hard = round(count * config.hard_share)
    from_all = count - from_tumor - from_organ - from_hard
    chosen = [
        *(SlicePosition(*pool.places[n], pool.lesion_box(n, rng)) for n in draw(pool.tumor, from_tumor, rng)),
        *(SlicePosition(*pool.places[n]) for n in draw(pool.organ, from_organ, rng)),
        *(SlicePosition(*pool.places[n]) for n in draw(hardness(losses, len(pool.places)), from_hard, rng)),
        *(SlicePosition(*pool.places[n], ANYWHERE) for n in draw(np.ones(len(pool.places)), from_all, rng)),
    ]
    return [chosen[index] for index in rng.permutation(len(chosen))]


def hardness(losses: Floats | None, count: int) -> npt.NDArray[np.float64]:
    """Return the weights of slices by their last loss: float64[count]; slices never seen weigh as the mean does.

    >>> hardness(np.array([1, np.nan, 3], np.float32), 3).tolist()
    [1.0, 2.0, 3.0]
    """
    if losses is None or np.isnan(losses).all():
        return np.ones(count)
    return np.where(np.isnan(losses), np.nanmean(losses), losses).astype(np.float64)


def draw(weights: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Return `count` indices in proportion to `weights`, each as often as is due to it, rounded down or up (systematic sampling).

    >>> sorted(draw(np.array([1.0, 0.0, 3.0]), 8, np.random.default_rng(0)))
    [0, 0, 2, 2, 2, 2, 2, 2]
    """
    if not count:
        return []
    if not weights.any():
        weights = np.ones(len(weights))
    order = rng.permutation(len(weights))
    due = np.cumsum(weights[order])
    ticks = (np.arange(count) + rng.random()) * (due[-1] / count)
    return [int(order[place]) for place in np.minimum(np.searchsorted(due, ticks, side="right"), len(order) - 1)]
