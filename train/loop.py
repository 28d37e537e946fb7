"""A slice store -> a trained U-Net, in a run folder that explains itself.

::

    RUN/config.toml  split.json  model.json  environment.json  best.safetensors  last.safetensors  metrics.csv  events.*
        curves.png  cases.csv  worst.png  best.png  report.html

1. The split is made once, by patient, and written down.
2. An epoch: slices drawn by `sampling`, decoded ahead by `dataset`, normalized and augmented on the device.
3. After each epoch every slice of the validation cases is segmented whole; the best mean Dice keeps its weights.
4. Weights, optimizer and position, also within an epoch, are one file, written whole: the same command after a kill goes
   on from there, and gives bit for bit what an undisturbed run gives (on the CPU; on GPUs up to the order of summation).
5. At the end the validation cases are segmented by the best weights, and the report is written, last of all.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slicemill.common.errors import ConfigError
from slicemill.common.files import Location, write_csv
from slicemill.common.progress import progress
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import mean_of
from slicemill.store.cache import SliceCache
from slicemill.store.reader import open_store
from slicemill.train.config import Config
from slicemill.train.data.sampling import epoch_places
from slicemill.train.network.processes import joined
from slicemill.train.network.step import (
    Learner,
    class_of_value,
    learning_rate,
    make_learner,
    network_input,
    on_device,
    one_step,
)
from slicemill.train.report.curves import keep_current
from slicemill.train.report.page import write_report
from slicemill.train.run.checkpoint import BEST, State, load_progress, save_progress, save_weights
from slicemill.train.run.environment import note_start
from slicemill.train.run.interrupt import Interruption, asked_to_stop
from slicemill.train.run.memory import full_memory_explained
from slicemill.train.run.setup import CASES, CURVES, METRICS, REPORT, Setup, common_labels, prepare, remove_run
from slicemill.train.run.tally import SliceLosses, Step, Tally, no_losses, region_overlaps, tally_from_json
from slicemill.train.run.validate import Overlaps, pooled_dice, validate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]


def train(
    store_path: Location,
    run: Path,
    config: Config,
    *,
    split_file: Path | None = None,
    cache: SliceCache | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None],
) -> State:
    """Train, or go on where an earlier call with the same arguments was stopped, or forget that one and `overwrite` it.

    `cache` is for a store in a bucket.

    Under torchrun, the processes share every batch, and the first of them writes and tells.

    Raises
    ------
    ConfigError
        The run folder belongs to other settings or another store, or a setting cannot work here.
    StoreError
        The store has no masks or too few patients.
    """
    with joined(config.device) as processes:
        if overwrite and processes.first:
            common_labels(open_store(store_path, cache))  # a store that cannot be trained on costs no run
            remove_run(run)
        processes.wait()
        setup = prepare(store_path, run, config, split_file, cache, processes)
        return to_the_end(setup, run, tell if processes.first else _silent)


def _silent(_line: str) -> None:
    """Say nothing."""


def to_the_end(setup: Setup, run: Path, tell: Callable[[str], None]) -> State:
    """Train epoch after epoch, and write down where the run stands after each."""
    config, first = setup.config, setup.processes.first
    learner, losses, state = where_it_stands(setup, run)
    parts = parts_of(learner, losses)
    tell(beginning(setup, learner, state))

    def save(state: State) -> None:
        if first:
            save_progress(run, replace(state, scaler=learner.scaler.state_dict()), parts, learner.optimizer)

    board = None
    if first and not finished(state, config):
        from torch.utils.tensorboard import SummaryWriter

        note_start(run, setup, state.epoch)
        board = SummaryWriter(str(run), purge_step=state.epoch + 1)
    with board or nullcontext(), asked_to_stop() as asked:
        interruption = Interruption(config, setup.processes, asked, save)
        while not finished(state, config):
            row, seconds = one_epoch(setup, learner, state, losses, interruption)
            best = row["validation_dice"] > state.best_score
            state = replace(
                state,
                epoch=row["epoch"],
                seconds=state.seconds + seconds,
                best_score=row["validation_dice"] if best else state.best_score,
                best_epoch=row["epoch"] if best else state.best_epoch,
                rows=[*state.rows, row],
                tally=None,
            )
            losses.drawn_by.copy_(losses.latest)
            save(state)
            if best and first:
                save_weights(run / BEST, learner.average.module)
            tell(summary_line(row, setup.labels, best=best))
            if board is not None:
                show(run, board, state, setup.labels)
    if first and not (run / REPORT).exists():
        write_csv(run / METRICS, state.rows)
        write_report(run, setup, state)
    tell(ending(run, state))
    return state


def where_it_stands(setup: Setup, run: Path) -> tuple[Learner, SliceLosses, State]:
    """Return the network, the losses of the slices and the state of a run, as its last checkpoint has them, or fresh ones.

    Raises
    ------
    ConfigError
        Processes that train together do not see the same checkpoint.
    """
    learner = make_learner(setup.labels, setup.config, setup.device, setup.precision, setup.processes)
    losses = no_losses(setup.pool)
    state = load_progress(run, parts_of(learner, losses), learner.optimizer)
    if state.scaler:
        learner.scaler.load_state_dict(state.scaler)
    if len({*setup.processes.each(state.epoch, setup.device)}) > 1:
        raise ConfigError(
            f"{run}: is another folder on each machine; processes that train together need one that all see."
        )
    if setup.processes.first and state.epoch and state.epoch == state.best_epoch and not state.tally:
        save_weights(run / BEST, learner.average.module)  # a kill may have come between the two files
    return learner, losses, state


def parts_of(learner: Learner, losses: SliceLosses) -> dict[str, nn.Module | Tensor]:
    """Return what a checkpoint holds beside the state and the optimizer's memory."""
    return {**learner.parts(), **losses.parts()}


def show(run: Path, board: "SummaryWriter", state: State, labels: Labels) -> None:
    """Write down what the epochs have found so far: CSV, TensorBoard's events, curves."""
    write_csv(run / METRICS, state.rows)
    row = state.rows[-1]
    for name in row.keys() - {"epoch"}:
        board.add_scalar(name, math.nan if row[name] is None else row[name], row["epoch"])
    keep_current(run / CURVES, state.rows, labels)


def beginning(setup: Setup, learner: Learner, state: State) -> str:
    """Return what is trained, and from where on."""
    config, split, view = setup.config, setup.split, setup.view
    lines = []
    if state.epoch or state.tally:
        steps = f" and {len(state.tally['losses'])} steps" if state.tally else ""
        lines.append(f"going on after epoch {state.epoch}{steps} ({state.seconds / 60:.1f} minutes so far)")
    lines.append(
        f"{len(split.train)} cases to train on, {len(split.validation)} to choose the checkpoint, {len(split.test)} never seen"
    )
    processes = f" over {setup.processes.count} processes" if setup.processes.count > 1 else ""
    lines.append(
        f"{'slices' if view.size == setup.size else 'crops'} {view.size[0]}x{view.size[1]}, context {config.context}, "
        f"batch {config.batch}{processes}, {sum(p.numel() for p in learner.network.parameters()) / 1e6:.2f} M weights, "
        f"{str(setup.precision).removeprefix('torch.')} on {setup.device}"
    )
    return "\n".join(lines)


def ending(run: Path, state: State) -> str:
    """Return what came out, and where to look."""
    return (
        f"best: epoch {state.best_epoch} of {state.epoch}, mean Dice {state.best_score:.3f} on validation, {state.seconds / 60:.1f} minutes\n"
        f"curves: {run / CURVES}, {run / METRICS}; cases: {run / CASES}; or `tensorboard --logdir {run}`\n"
        f"all on one page: {run / REPORT}"
    )


def finished(state: State, config: Config) -> bool:
    """Return whether a run has reached its last epoch or its time, or has not become better for too long."""
    return (
        state.epoch >= config.epochs
        or bool(config.max_minutes and state.seconds >= 60 * config.max_minutes)
        or bool(config.patience and state.epoch - state.best_epoch >= config.patience)
    )


def one_epoch(
    setup: Setup, learner: Learner, state: State, losses: SliceLosses, interruption: Interruption
) -> tuple[Row, float]:
    """Train one epoch, or what is left of it, and validate; return its row of metrics and the seconds that it took.

    Raises
    ------
    KeyboardInterrupt
        Someone asked to stop; a checkpoint was written.
    ConfigError
        The loss is no number.
    """
    config, epoch, processes = setup.config, state.epoch + 1, setup.processes
    to_class = class_of_value(setup.labels, setup.device, setup.ignored)
    tally = tally_from_json(state.tally, len(setup.labels.values) + 1, setup.device, processes)
    places = epoch_places(setup.pool, config, epoch, losses.drawn_by.numpy())
    steps = len(places) // config.batch
    generator = torch.Generator(device=setup.device)
    pending: Step | None = None
    start = time.perf_counter() - tally.seconds
    learner.network.train()
    share = (processes.rank, processes.count)
    with (
        progress(f"epoch {epoch}", (steps - tally.step) * config.batch, "slices", quiet=not processes.first) as advance,
        setup.batches.over(places, (config.seed, epoch), first=tally.step, share=share) as stream,
    ):
        for step in range(tally.step, steps):
            orders = interruption.orders(state.seconds + time.perf_counter() - start, setup.device)
            if orders.stop or orders.save:
                tally.note(pending, losses, setup.pool, processes)
                pending, tally.seconds = None, time.perf_counter() - start
                interruption.write(replace(state, tally=tally.as_json(processes)))
            if orders.stop:
                raise KeyboardInterrupt
            if orders.spent >= 1 and (tally.step or pending):
                break
            asked = time.perf_counter()
            batch = next(stream)
            tally.waited += time.perf_counter() - asked
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(config, max((state.epoch + step / steps) / config.epochs, orders.spent))
            generator.manual_seed(seed_of(config.seed, epoch, step, processes.rank))
            with full_memory_explained(setup.labels, config, setup.view.size, setup.device, setup.precision):
                given = network_input(on_device(batch, to_class), config, setup.view.size, generator)
                loss, by_slice, voxels = one_step(learner, given, processes.together)
            tally.voxels += voxels
            tally.note(pending, losses, setup.pool, processes)  # a step late: by now a GPU has its numbers
            of_batch = places[step * config.batch : (step + 1) * config.batch]
            pending = Step(places=of_batch, loss=loss, by_slice=by_slice)
            advance(config.batch, f"loss {tally.losses[-1]:.3f}" if tally.losses else "")
        tally.note(pending, losses, setup.pool, processes)
        tally.seconds = time.perf_counter() - start
        orders = interruption.orders(state.seconds + tally.seconds, setup.device)
        if orders.stop or orders.save:
            interruption.write(replace(state, tally=tally.as_json(processes)))
        if orders.stop:
            raise KeyboardInterrupt
        advance(0, "validation")
        by_case = validate(setup, learner.average.module)
    row = row_of(setup, learner, epoch, tally, by_case)
    return row, processes.each(time.perf_counter() - start, setup.device)[0]


def row_of(setup: Setup, learner: Learner, epoch: int, tally: Tally, by_case: dict[str, Overlaps]) -> Row:
    """Return an epoch's row of metrics, from what training counted and what validation found of each case."""
    seen = region_overlaps(setup.processes.together(tally.voxels), setup.labels)
    scores = pooled_dice(by_case, setup.labels)
    per_case = {name: mean_of([found[name].dice for found in by_case.values()]) for name in scores}
    mean = mean_of(list(scores.values()))
    return {
        "epoch": epoch,
        "loss": sum(tally.losses) / max(tally.step, 1),
        "learning_rate": learner.optimizer.param_groups[0]["lr"],
        "slices_per_second": tally.step * setup.config.batch / tally.seconds,
        "wait_share": tally.waited / tally.seconds,
        **{f"train_dice_{name}": _number(counts.dice) for name, counts in seen.items()},
        **{f"validation_dice_{name}": _number(score) for name, score in scores.items()},
        **{f"validation_dice_per_case_{name}": _number(score) for name, score in per_case.items()},
        "validation_dice": 0.0 if math.isnan(mean) else mean,
    }


def seed_of(*numbers: int) -> int:
    """Return a seed of 64 bits that follows from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


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
