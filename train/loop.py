"""A slice store -> a trained U-Net, in a run folder that explains itself.

::

    RUN/config.toml  split.json  model.json  environment.json  best.safetensors  last.safetensors  metrics.csv  events.*
        curves.png  cases.csv  worst.png  best.png  report.html

1. The split is made once, by patient, and written down.
2. An epoch: slices drawn by `sampling`, decoded ahead by `dataset`, normalized and augmented on the device.
3. After each epoch every slice of the validation cases is segmented whole; the best mean Dice keeps its weights.
4. Weights, optimizer and position are one file, written whole: the same command after a kill goes on from the last epoch.
5. At the end the validation cases are segmented by the best weights, and the report is written, last of all.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from store.cache import SliceCache
from store.errors import ConfigError
from store.files import Place, write_csv
from store.labels import Labels
from store.metrics import Overlap, mean_of
from store.progress import progress
from train.checkpoint import BEST, State, load_progress, save_progress, save_weights
from train.config import Config
from train.curves import keep_current
from train.environment import note_start
from train.report import write_report
from train.sampling import epoch_places
from train.setup import CURVES, METRICS, REPORT, Setup, prepare
from train.step import Learner, class_of_value, learning_rate, make_learner, normalized, one_step
from train.validate import pooled_dice, validate

Row = dict[str, Any]


def train(
    store_path: Place,
    run: Path,
    config: Config,
    *,
    split_file: Path | None = None,
    cache: SliceCache | None = None,
    tell: Callable[[str], None],
) -> State:
    """Train, or go on where an earlier call with the same arguments was stopped; `cache` is for a store in a bucket.

    Raises
    ------
    ConfigError
        The run folder belongs to other settings, or a setting cannot work here.
    StoreError
        The store has no masks or too few patients.
    """
    setup = prepare(store_path, run, config, split_file, cache)
    learner = make_learner(setup.labels, config, setup.device)
    state = load_progress(run, learner.parts(), learner.optimizer)
    if state.epoch:
        tell(f"going on after epoch {state.epoch} ({state.seconds / 60:.1f} minutes so far)")
    tell(
        f"{len(setup.split.train)} cases to train on, {len(setup.split.validation)} to choose the checkpoint, {len(setup.split.test)} never seen; "
        f"slices {setup.size[0]}x{setup.size[1]}, context {config.context}, "
        f"{sum(p.numel() for p in learner.network.parameters()) / 1e6:.2f} M weights, {'bf16' if setup.bf16 else 'fp32'} on {setup.device}"
    )
    if not finished(state, config):
        note_start(run, setup, state.epoch)
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run), purge_step=state.epoch + 1) as board:
        while not finished(state, config):
            row, seconds = one_epoch(setup, learner, state)
            best = row["validation_dice"] > state.best_score
            if best:
                save_weights(run / BEST, learner.average.module)
            state = replace(
                state,
                epoch=row["epoch"],
                seconds=state.seconds + seconds,
                best_score=row["validation_dice"] if best else state.best_score,
                best_epoch=row["epoch"] if best else state.best_epoch,
                rows=[*state.rows, row],
            )
            save_progress(run, state, learner.parts(), learner.optimizer)
            write_csv(run / METRICS, state.rows)
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, row["epoch"])
            tell(summary_line(row, setup.labels, best=best))
            keep_current(run / CURVES, state.rows, setup.labels)
    if not (run / REPORT).exists():
        write_report(run, setup, state)
    return state


def finished(state: State, config: Config) -> bool:
    """Return whether a run has reached its last epoch or its time, or has not become better for too long."""
    return (
        state.epoch >= config.epochs
        or bool(config.max_minutes and state.seconds >= 60 * config.max_minutes)
        or bool(config.patience and state.epoch - state.best_epoch >= config.patience)
    )


def one_epoch(setup: Setup, learner: Learner, state: State) -> tuple[Row, float]:
    """Train one epoch and validate; return its row of metrics and the seconds that it took."""
    config, epoch = setup.config, state.epoch + 1
    start = time.perf_counter()
    places = epoch_places(setup.rows, config, epoch)
    steps = len(places) // config.batch
    to_class = class_of_value(setup.labels, setup.device)
    generator = torch.Generator(device=setup.device).manual_seed(config.seed * 100_003 + epoch)
    losses: list[float] = []
    seen = {name: Overlap() for name in setup.labels.values}
    learner.network.train()
    with (
        progress(f"epoch {epoch}", len(places), "slices") as advance,
        setup.batches.over(places, (config.seed, epoch)) as stream,
    ):
        for step, batch in enumerate(stream):
            spent = (
                (state.seconds + time.perf_counter() - start) / (60 * config.max_minutes) if config.max_minutes else 0.0
            )
            if spent >= 1:
                break
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(config, max((state.epoch + step / steps) / config.epochs, spent))
            image = torch.from_numpy(batch.image).to(setup.device)
            label = to_class[torch.from_numpy(batch.label).to(setup.device).long()]
            loss, predicted, truth = one_step(learner, normalized(image, label, config, generator), bf16=setup.bf16)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"epoch {epoch}, step {step}: the loss is {loss}; slices {batch.places}. Lower learning_rate."
                )
            losses.append(loss)
            _count(seen, setup.labels, truth, predicted)
            advance(config.batch, f"loss {loss:.3f}")
        trained = time.perf_counter() - start
        advance(0, "validation")
    by_case = validate(setup, learner.average.module)
    scores = pooled_dice(by_case, setup.labels)
    per_case = {name: mean_of([found[name].dice for found in by_case.values()]) for name in scores}
    row: Row = {
        "epoch": epoch,
        "loss": sum(losses) / max(len(losses), 1),
        "learning_rate": learner.optimizer.param_groups[0]["lr"],
        "slices_per_second": len(losses) * config.batch / trained,
        **{f"train_dice_{name}": _number(counts.dice) for name, counts in seen.items()},
        **{f"validation_dice_{name}": _number(score) for name, score in scores.items()},
        **{f"validation_dice_per_case_{name}": _number(score) for name, score in per_case.items()},
        "validation_dice": 0.0 if math.isnan(mean_of(list(scores.values()))) else mean_of(list(scores.values())),
    }
    return row, time.perf_counter() - start


def _count(totals: dict[str, Overlap], labels: Labels, truth: Tensor, predicted: Tensor) -> None:
    order = labels.table().tolist()
    for name, values in labels.regions().items():
        classes = torch.tensor([order.index(value) for value in values], device=truth.device)
        is_true, is_predicted = torch.isin(truth, classes), torch.isin(predicted, classes)
        both = int((is_true & is_predicted).sum())
        totals[name] += Overlap(both, int(is_predicted.sum()) - both, int(is_true.sum()) - both)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def summary_line(row: Row, labels: Labels, *, best: bool) -> str:
    """Return an epoch as one line."""

    def dice(part: str) -> str:
        return " ".join(
            "-" if row[f"{part}_dice_{name}"] is None else f"{row[f'{part}_dice_{name}']:.3f}" for name in labels.values
        )

    return (
        f"epoch {row['epoch']:3d}  loss {row['loss']:.3f}  Dice ({', '.join(labels.values)}): training {dice('train')}, "
        f"validation {dice('validation')}{' *' if best else '  '}  {row['slices_per_second']:.0f} slices/s"
    )
