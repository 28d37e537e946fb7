"""What `slicemill info` says of a training run. Only small files are read, without torch."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slicemill.common.documents import from_document
from slicemill.common.errors import ConfigError
from slicemill.common.files import read_json
from slicemill.ct.labels import format_labels
from slicemill.store.crop_card import KIND
from slicemill.store.info import format_line
from slicemill.train.config import Config, read_config
from slicemill.train.crops.settings import CropConfig, read_crop_config

CONFIG, MODEL, METRICS = "config.toml", "model.json", "metrics.csv"
"""Files of a run folder, as in `slicemill.train.run.setup`, whose import takes seconds."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What ``model.json`` of a run says."""

    labels: dict[str, int]
    organ: str | None = None
    tumor: str | None = None
    size: tuple[int, int]
    store: str


@dataclass(frozen=True, kw_only=True)
class CropTrainedOn:
    """What ``model.json`` of a training of a classifier says."""

    store: str
    malignancy: bool


@dataclass(frozen=True, kw_only=True)
class CropRunSummary:
    """A folder of a training of a classifier."""

    kind: Literal["crop run"] = "crop run"
    path: str
    store: str
    malignancy: bool
    config: CropConfig
    epochs_done: int
    best_epoch: int | None
    """The epoch whose weights `export` takes."""
    best_validation_auc: float | None
    """AUC of that epoch."""
    best_validation_auc_alike: float | None = None
    """Its AUC among validation samples of like size, by which the epoch of malignancy is chosen; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A folder of a training run."""

    kind: Literal["run"] = "run"
    path: str
    trained_on: TrainedOn
    config: Config
    epochs_done: int
    best_epoch: int | None
    best_validation_dice: float | None


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a training run."""
    return (folder / CONFIG).is_file() and (folder / MODEL).is_file()


def read_scores(run: Path, column: str, *, optional: bool = False) -> dict[int, float]:
    """Return a column of a run's metrics by epoch; if it is optional, without empty cells, and empty if it is missing.

    Raises
    ------
    ConfigError
        The file is damaged.
    """
    if not (run / METRICS).is_file():
        return {}
    try:
        with (run / METRICS).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(column) or not optional]
            return {int(row["epoch"]): float(row[column]) for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(f"is damaged ({error}).", where=run / METRICS) from error


def summarize_run(run: Path) -> RunSummary | CropRunSummary:
    """Return settings and progress of a training run.

    Raises
    ------
    InputError
        A file of the run is damaged.
    """
    document = read_json(run / MODEL)
    if document.get("kind") == KIND:
        about = from_document(CropTrainedOn, document, str(run / MODEL), is_part=True)
        auc, alike = read_scores(run, "validation_auc"), read_scores(run, "validation_auc_alike", optional=True)
        chosen = alike if about.malignancy and alike else auc
        best_auc = max(chosen, key=lambda epoch: chosen[epoch], default=None)
        return CropRunSummary(
            path=str(run),
            store=about.store,
            malignancy=about.malignancy,
            config=read_crop_config(run / CONFIG),
            epochs_done=max(auc, default=0),
            best_epoch=best_auc,
            best_validation_auc=None if best_auc is None else auc[best_auc],
            best_validation_auc_alike=None if best_auc is None else alike.get(best_auc),
        )
    dice = read_scores(run, "validation_dice")
    best = max(dice, key=lambda epoch: dice[epoch], default=None)
    return RunSummary(
        path=str(run),
        trained_on=from_document(TrainedOn, document, str(run / MODEL), is_part=True),
        config=read_config(run / CONFIG),
        epochs_done=max(dice, default=0),
        best_epoch=best,
        best_validation_dice=None if best is None else dice[best],
    )


def describe_crop_run(run: CropRunSummary) -> list[str]:
    """Return the lines about a training of a classifier."""
    best = "-" if run.best_epoch is None else f"{run.best_validation_auc:.4f} in epoch {run.best_epoch}"
    if run.malignancy and run.best_validation_auc_alike is not None:
        best += f", {run.best_validation_auc_alike:.4f} among like sizes"
    return [
        format_line("run", run.path),
        format_line("store", run.store),
        format_line("classifier", "malignant or not" if run.malignancy else "nodule or not"),
        format_line("progress", f"{run.epochs_done} of {run.config.epochs} epochs"),
        format_line("best", f"validation AUC {best}"),
        format_line("next", f"slicemill export {run.path} CLASSIFIER.onnx"),
    ]


def describe_run(run: RunSummary) -> list[str]:
    """Return the lines about a training run."""
    config, source = run.config, run.trained_on
    best = "-" if run.best_epoch is None else f"{run.best_validation_dice:.3f} in epoch {run.best_epoch}"
    return [
        format_line("run", run.path),
        format_line("store", source.store),
        format_line(
            "labels", f"{format_labels(source.labels)}; organ {source.organ or '-'}, tumor {source.tumor or '-'}"
        ),
        format_line("network", f"width {config.width}, depth {config.depth}, context {config.context} slices"),
        format_line("slices", f"{source.size[0]} x {source.size[1]} pixels (y, x)"),
        format_line("progress", f"{run.epochs_done} of {config.epochs} epochs"),
        format_line("best", f"validation Dice {best}"),
        format_line("next", f"slicemill export {run.path} MODEL.onnx"),
    ]
