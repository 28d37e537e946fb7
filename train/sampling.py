"""Which slices an epoch trains on: a pure function of the slice table, the settings and the epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.config import Config

Row = dict[str, Any]
Place = tuple[str, int]
"""Case id and z."""


def epoch_places(rows: Sequence[Row], config: Config, epoch: int) -> list[Place]:
    """Return the slices of an epoch in order: a share with tumor, a share with other labels alone, the rest from everywhere.

    Parameters
    ----------
    rows
        Rows of the slice table, of the training cases only.
    """
    rng = np.random.default_rng((config.seed, epoch))
    tumor = [row for row in rows if row["has_tumor"]]
    organ = [
        row
        for row in rows
        if not row["has_tumor"] and any(count for name, count in row.items() if name.startswith("voxels_"))
    ]
    count = (config.steps or max(1, len(rows) // config.batch)) * config.batch
    from_tumor = round(count * config.tumor_share) if tumor else 0
    from_organ = round(count * config.organ_share) if organ else 0
    chosen = [
        *_draw(tumor, from_tumor, rng),
        *_draw(organ, from_organ, rng),
        *_draw(rows, count - from_tumor - from_organ, rng),
    ]
    return [(row["case_id"], row["z"]) for row in (chosen[index] for index in rng.permutation(len(chosen)))]


def _draw(rows: Sequence[Row], count: int, rng: np.random.Generator) -> list[Row]:
    """Draw with as few repeats as possible: every row once before any comes again."""
    drawn: list[Row] = []
    while len(drawn) < count:
        order = rng.permutation(len(rows))[: count - len(drawn)]
        drawn += [rows[index] for index in order]
    return drawn
