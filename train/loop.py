"""Train a U-Net on a slice store, in a run folder with a report.

::

    RUN/config.toml  split.json  model.json  environment.json  best.safetensors  last.safetensors  metrics.csv  events.*
        curves.png  cases.csv  worst.png  best.png  report.html

1. The split is made once, by patient, and stored.
2. In an epoch, `sampling` draws slices, `dataset` decodes them ahead, and the device normalizes and augments them.
3. After each epoch the validation cases are segmented. The weights with the best mean Dice are kept.
4. Weights, optimizer and progress are in one file, which is written atomically, also within an epoch. After a kill, the
   same command continues from it. The result is bit for bit that of an uninterrupted run (on GPUs up to the order of
   summation).
5. At the end the best weights segment the validation cases, and the report is written last.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.common.errors import ConfigError
from slicemill.common.files import Location, write_csv
from slicemill.store.cache import SliceCache
from slicemill.store.reader import open_store
from slicemill.train.config import Config
from slicemill.train.network.processes import join_processes
from slicemill.train.network.step import make_learner
from slicemill.train.report.curves import keep_current
from slicemill.train.report.page import write_report
from slicemill.train.run.checkpoint import BEST, State, load_progress, save_progress, save_weights
from slicemill.train.run.claim import claim_to_train
from slicemill.train.run.device import use_cores
from slicemill.train.run.environment import record_start
from slicemill.train.run.epoch import Training, train_epoch
from slicemill.train.run.interrupt import Interruption, catch_stop_signals
from slicemill.train.run.metrics import EpochMetrics
from slicemill.train.run.setup import CASES, CURVES, METRICS, REPORT, Setup, common_labels, prepare, remove_run
from slicemill.train.run.tally import no_losses

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def train(
    store_path: Location,
    run: Path,
    config: Config,
    *,
    split_file: Path | None = None,
    cache: SliceCache | None = None,
    overwrite: bool = False,
    log: Callable[[str], None],
) -> State:
    """Train a network, or continue an earlier call with the same arguments that was stopped.

    Under torchrun, processes share each batch; rank 0 writes files and logs.

    Parameters
    ----------
    split_file
        Split to use instead of a random one.
    cache
        Local cache for a store in a bucket.
    overwrite
        Remove an earlier run in the folder and start again.
    log
        Called with lines of text.

    Raises
    ------
    ConfigError
        The run folder belongs to other settings or another store, another training uses it, or a setting is not
        possible here.
    StoreError
        The store has no masks or too few patients.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes(config.device))
        if processes.first:
            store = open_store(store_path, cache)  # raises before the folder is made
            stack.enter_context(claim_to_train(run))
            if overwrite:
                common_labels(store)  # raises before the earlier run is removed
                remove_run(run)
        processes.barrier()
        setup = prepare(store_path, run, config, split_file, cache, processes)
        with use_cores(setup.device, processes):
            return train_remaining_epochs(setup, run, log if processes.first else _no_log)


def _no_log(_line: str) -> None:
    """Log nothing."""


def train_remaining_epochs(setup: Setup, run: Path, log: Callable[[str], None]) -> State:
    """Train from the last checkpoint to the end of the run, and write its files."""
    config, first = setup.config, setup.processes.first
    training, state = resume(setup, run)
    log(describe_start(training, state))

    def save(state: State) -> None:
        if first:
            state = replace(state, scaler=training.learner.scaler.state_dict())
            save_progress(run, state, training.parts(), training.learner.optimizer)

    board = None
    if first and not is_finished(state, config):
        from torch.utils.tensorboard import SummaryWriter

        record_start(run, setup, state.epoch)
        board = SummaryWriter(str(run), purge_step=state.epoch + 1)
    with board or nullcontext(), catch_stop_signals() as stop_requested:
        interruption = Interruption(config, setup.processes, stop_requested, save)
        while not is_finished(state, config):
            metrics, seconds = train_epoch(training, state, interruption)
            state = add_epoch(state, metrics, seconds)
            best = state.best_epoch == metrics.epoch
            training.losses.at_epoch_start.copy_(training.losses.latest)
            save(state)
            if best and first:
                save_weights(run / BEST, training.learner.average.module)
            log(summary_line(metrics, best=best))
            if board is not None:
                show_progress(run, board, state, setup)
    if first and not (run / REPORT).exists():
        write_csv(run / METRICS, state.rows)
        write_report(run, setup, state)
    log(describe_end(run, state))
    return state


def resume(setup: Setup, run: Path) -> tuple[Training, State]:
    """Restore a run from its last checkpoint, or start a new one.

    Raises
    ------
    ConfigError
        The processes have different checkpoints.
    """
    if setup.config.mining and setup.labels.tumor is None:
        raise ConfigError(f"mining = {setup.config.mining}: the labels have no tumor, of which it finds false pixels.")
    learner = make_learner(setup.labels, setup.config, setup.device, setup.precision, setup.processes)
    training = Training(setup=setup, learner=learner, losses=no_losses(setup.pool, mining=bool(setup.config.mining)))
    state = load_progress(run, training.parts(), learner.optimizer)
    if state.scaler:
        learner.scaler.load_state_dict(dict(state.scaler))
    if len({*setup.processes.gather(state.epoch, setup.device)}) > 1:
        raise ConfigError(
            f"{run}: the machines have different folders at this path; use a folder that all machines share."
        )
    if setup.processes.first and state.epoch and state.epoch == state.best_epoch and not state.tally:
        save_weights(run / BEST, learner.average.module)  # a kill may have happened between the two writes
    return training, state


def add_epoch(state: State, metrics: EpochMetrics, seconds: float) -> State:
    """Return the progress after one more epoch."""
    best = metrics.validation_dice > state.best_score
    return replace(
        state,
        epoch=metrics.epoch,
        seconds=state.seconds + seconds,
        best_score=metrics.validation_dice if best else state.best_score,
        best_epoch=metrics.epoch if best else state.best_epoch,
        history=[*state.history, metrics],
        tally=None,
    )


def is_finished(state: State, config: Config) -> bool:
    """Return whether a run has reached its last epoch, its time limit, or its limit of epochs without improvement."""
    return (
        state.epoch >= config.epochs
        or bool(config.max_minutes and state.seconds >= 60 * config.max_minutes)
        or bool(config.patience and state.epoch - state.best_epoch >= config.patience)
    )


def show_progress(run: Path, board: "SummaryWriter", state: State, setup: Setup) -> None:
    """Write the metrics so far as CSV, TensorBoard events and curves."""
    write_csv(run / METRICS, state.rows)
    row = state.history[-1].as_row()
    for name in row.keys() - {"epoch"}:
        value = row[name]
        board.add_scalar(name, math.nan if value is None else value, state.epoch)
    keep_current(run / CURVES, state.history, setup.labels)


def describe_start(training: Training, state: State) -> str:
    """Return log lines about data, network and starting point."""
    setup, config, view = training.setup, training.setup.config, training.setup.view
    lines = []
    if state.epoch or state.tally:
        steps = f" and {len(state.tally.losses)} steps" if state.tally else ""
        lines.append(f"continuing after epoch {state.epoch}{steps} ({state.seconds / 60:.1f} minutes so far)")
    lines.append(
        f"{len(setup.split.train)} cases to train, {len(setup.split.validation)} to validate, "
        f"{len(setup.split.test)} to test"
    )
    processes = f" over {setup.processes.count} processes" if setup.processes.count > 1 else ""
    weights = sum(parameter.numel() for parameter in training.learner.network.parameters())
    lines.append(
        f"{'slices' if view.size == setup.size else 'crops'} {view.size[0]}x{view.size[1]}, "
        f"context {config.context}, batch {config.batch}{processes}, {weights / 1e6:.2f} M weights, "
        f"{str(setup.precision).removeprefix('torch.')} on {setup.device}"
    )
    return "\n".join(lines)


def describe_end(run: Path, state: State) -> str:
    """Return log lines about the result and its files."""
    return (
        f"best: epoch {state.best_epoch} of {state.epoch}, mean Dice {state.best_score:.3f} on validation, "
        f"{state.seconds / 60:.1f} minutes\n"
        f"curves: {run / CURVES}, {run / METRICS}; cases: {run / CASES}; or `tensorboard --logdir {run}`\n"
        f"report: {run / REPORT}"
    )


def summary_line(metrics: EpochMetrics, *, best: bool) -> str:
    """Return the log line of an epoch."""

    def join(dices: list[float | None]) -> str:
        return " ".join("-" if dice is None else f"{dice:.3f}" for dice in dices)

    training = join([dice.train for dice in metrics.regions.values()])
    validation = join([dice.validation for dice in metrics.regions.values()])
    return (
        f"epoch {metrics.epoch:3d}  loss {metrics.loss:.3f}  Dice ({', '.join(metrics.regions)}): training {training}, "
        f"validation {validation}{' *' if best else '  '}  {metrics.slices_per_second:.0f} slices/s"
    )
