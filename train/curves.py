"""The curves of a run as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store.files import written_whole
from store.labels import Labels

Row = dict[str, Any]


def draw_curves(path: Path, rows: Sequence[Row], labels: Labels) -> None:
    """Draw Dice over epochs, for training and validation, and the loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    epochs = [row["epoch"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 1))
    for index, name in enumerate(labels.values):
        for part, style in (("train", "--"), ("validation", "-")):
            values = [math.nan if row[f"{part}_dice_{name}"] is None else row[f"{part}_dice_{name}"] for row in rows]
            left.plot(
                epochs, values, style, color=f"C{index}", label=f"{name}, {'training' if part == 'train' else part}"
            )
    left.set(xlabel="epoch", ylabel="Dice (all voxels of the part together)", ylim=(0, 1), title="Dice")
    left.legend(loc="lower right")
    right.plot(epochs, [row["loss"] for row in rows], color="0.3")
    right.set(xlabel="epoch", title="training loss (1 - Dice + cross-entropy)", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)
