"""The metrics of an epoch: a record in memory, a row of equal columns in ``metrics.csv`` and in checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

Cell = int | float | None


@dataclass(frozen=True, kw_only=True)
class RegionDice:
    """Dice of one region (`Labels.regions`); None if neither reference nor prediction contains it."""

    train: float | None
    """Dice over all pixels of the training slices."""
    validation: float | None
    """Dice over the voxels of all validation cases together."""
    validation_per_case: float | None
    """Mean Dice of the validation cases."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """The metrics of one epoch."""

    epoch: int
    """Number of the epoch, from 1 on."""
    loss: float
    """Mean training loss of the steps."""
    learning_rate: float
    """Learning rate of the last step."""
    slices_per_second: float
    """Training speed, over all processes."""
    wait_share: float | None
    """Share of the training time spent waiting for the loader; None in runs of earlier versions."""
    regions: Mapping[str, RegionDice]
    """Dice by region."""
    validation_dice: float
    """Mean of the regions' validation Dice, which chooses the best epoch; 0 if no region has one."""

    def as_row(self) -> dict[str, Cell]:
        """Return the metrics as a row of ``metrics.csv``."""
        return {
            "epoch": self.epoch,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "slices_per_second": self.slices_per_second,
            **({} if self.wait_share is None else {"wait_share": self.wait_share}),
            **{f"train_dice_{name}": dice.train for name, dice in self.regions.items()},
            **{f"validation_dice_{name}": dice.validation for name, dice in self.regions.items()},
            **{f"validation_dice_per_case_{name}": dice.validation_per_case for name, dice in self.regions.items()},
            "validation_dice": self.validation_dice,
        }


def metrics_from_row(row: Mapping[str, Cell]) -> EpochMetrics:
    """Read a row that `EpochMetrics.as_row` wrote.

    Raises
    ------
    ValueError
        A column is missing or empty.

    >>> dice = RegionDice(train=0.5, validation=None, validation_per_case=0.25)
    >>> metrics = EpochMetrics(epoch=1, loss=1.0, learning_rate=0.1, slices_per_second=9.0, wait_share=0.0,
    ...     regions={"liver": dice}, validation_dice=0.0)
    >>> metrics_from_row(metrics.as_row()) == metrics
    True
    """

    def number(column: str) -> float:
        value = row.get(column)
        if value is None:
            raise ValueError(f"a row of metrics has no {column}")
        return value

    names = [column.removeprefix("train_dice_") for column in row if column.startswith("train_dice_")]
    return EpochMetrics(
        epoch=int(number("epoch")),
        loss=number("loss"),
        learning_rate=number("learning_rate"),
        slices_per_second=number("slices_per_second"),
        wait_share=row.get("wait_share"),
        regions={
            name: RegionDice(
                train=row[f"train_dice_{name}"],
                validation=row.get(f"validation_dice_{name}"),
                validation_per_case=row.get(f"validation_dice_per_case_{name}"),
            )
            for name in names
        },
        validation_dice=number("validation_dice"),
    )


def none_if_nan(value: float) -> float | None:
    """Return None instead of NaN, for JSON and CSV."""
    return None if math.isnan(value) else value
