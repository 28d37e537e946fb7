"""One epoch of a run: training steps, from the last checkpoint on, and validation."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from slicemill.common.progress import progress
from slicemill.ct.overlap import mean_without_nan
from slicemill.train.data.dataset import Batch
from slicemill.train.data.generators import make_generators
from slicemill.train.data.sampling import draw_epoch
from slicemill.train.network.step import (
    Learner,
    class_lookup,
    learning_rate,
    move_to_device,
    prepare_input,
    train_step,
)
from slicemill.train.run.checkpoint import State
from slicemill.train.run.device import search_algorithms
from slicemill.train.run.interrupt import Interruption, StepDecision
from slicemill.train.run.memory import explain_out_of_memory
from slicemill.train.run.metrics import EpochMetrics, RegionDice, none_if_nan
from slicemill.train.run.mining import is_mining_due, mine
from slicemill.train.run.setup import Setup
from slicemill.train.run.tally import PendingStep, SliceLosses, Tally, begin_record, region_overlaps, resume_tally
from slicemill.train.run.validate import Overlaps, global_dice, keep_on, validate


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run in progress: setup, network in training, and losses of the slices."""

    setup: Setup
    learner: Learner
    losses: SliceLosses

    def parts(self) -> dict[str, nn.Module | Tensor]:
        """Return the modules and tensors of a checkpoint, without the state and the optimizer."""
        return {**self.learner.modules(), **self.losses.tensors()}


def train_epoch(training: Training, state: State, interruption: Interruption) -> tuple[EpochMetrics, float]:
    """Train one epoch, or the rest of one, validate, and mine if that is due; return its metrics and its seconds.

    A single process can be stopped, and writes its checkpoints, within validation and mining, too: the next run repeats
    them, and no step. Processes that train together cannot, as each of them has other scans.

    Raises
    ------
    KeyboardInterrupt
        A stop was requested. A checkpoint was written.
    ConfigError
        The loss is not finite, or a step does not fit into memory.
    """
    setup, config = training.setup, training.setup.config
    epoch = _EpochInProgress(training, state, interruption)
    training.learner.network.train()
    slices = (epoch.steps - epoch.tally.step) * config.batch
    with (
        progress(f"epoch {epoch.number}", slices, "slices", quiet=not setup.processes.first) as advance,
        setup.batches.iterate(
            epoch.positions,
            (config.seed, epoch.number),
            first=epoch.tally.step,
            rank=setup.processes.rank,
            count=setup.processes.count,
        ) as stream,
    ):
        with search_algorithms(setup.device):
            for step in range(epoch.tally.step, epoch.steps):
                decision = epoch.save_or_stop()
                if decision.spent >= 1 and epoch.has_steps:
                    break
                epoch.take_step(step, stream, decision)
                advance(config.batch, f"loss {epoch.tally.losses[-1]:.3f}" if epoch.tally.losses else "")
        epoch.record_pending()
        epoch.save_or_stop()
        advance(0, "validation")
        check = epoch.save_or_stop if setup.processes.count == 1 else keep_on
        by_case = validate(setup, training.learner.average.module, check)
    metrics = epoch_metrics(training, epoch.number, epoch.tally, by_case)
    seconds = setup.processes.gather(epoch.seconds(), setup.device)[0]
    after = replace(state, epoch=epoch.number, seconds=state.seconds + seconds)
    if training.losses.mined is not None and is_mining_due(config, state, after):
        training.losses.mined.copy_(mine(setup, training.learner.average.module, epoch.number, check))
    return metrics, seconds


class _EpochInProgress:
    """The steps of one epoch.

    A step is prepared while a GPU still computes the one before, because nothing here waits for the GPU but the loss of
    the step before.
    """

    def __init__(self, training: Training, state: State, interruption: Interruption) -> None:
        setup = training.setup
        self.number = state.epoch + 1
        self._training = training
        self._state = state
        self._interruption = interruption
        self._to_class = class_lookup(setup.labels, setup.device, setup.ignored)
        self.tally = resume_tally(state.tally, len(setup.labels.values) + 1, setup.device, setup.processes)
        losses, mined = training.losses.at_epoch_start.numpy(), training.losses.mined
        self.positions = draw_epoch(
            setup.pool, setup.config, self.number, losses, None if mined is None else mined.numpy()
        )
        self.steps = len(self.positions) // setup.config.batch
        self._generators = make_generators(setup.device)
        self._pending: PendingStep | None = None
        self._start = time.perf_counter() - self.tally.seconds

    @property
    def has_steps(self) -> bool:
        """Return whether a step was taken."""
        return bool(self.tally.step or self._pending)

    def seconds(self) -> float:
        """Return the time since the epoch began, without the time between a stop and a restart."""
        return time.perf_counter() - self._start

    def save_or_stop(self) -> StepDecision:
        """Write a checkpoint if it is time, or if a stop was requested.

        Raises
        ------
        KeyboardInterrupt
            A stop was requested.
        """
        setup = self._training.setup
        decision = self._interruption.decide(self._state.seconds + self.seconds(), setup.device)
        if decision.stop or decision.save:
            self.record_pending()
            self._interruption.write(replace(self._state, tally=self.tally.as_record(setup.processes)))
        if decision.stop:
            raise KeyboardInterrupt
        return decision

    def take_step(self, step: int, stream: Iterator[Batch], decision: StepDecision) -> None:
        """Wait for the next batch, train on it, and record the step before."""
        setup, config, learner = self._training.setup, self._training.setup.config, self._training.learner
        requested = time.perf_counter()
        batch = next(stream)
        self.tally.waited += time.perf_counter() - requested
        done = max((self._state.epoch + step / self.steps) / config.epochs, decision.spent)
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate(config, done)
        self._generators.manual_seed(combine_seeds(config.seed, self.number, step, setup.processes.rank))
        with explain_out_of_memory(setup.labels, config, setup.view.size, setup.device, setup.precision):
            inputs = prepare_input(move_to_device(batch, self._to_class), config, setup.view.size, self._generators)
            result = train_step(learner, inputs, setup.processes.sum)
        self.tally.voxels += result.voxels
        self.record_pending()
        positions = self.positions[step * config.batch : (step + 1) * config.batch]
        self._pending = begin_record(positions, result, setup.processes)

    def record_pending(self) -> None:
        """Record the loss of the last step, and the time of all steps so far, which has no time of validation."""
        if self._pending is None:
            return
        self.tally.record(self._pending, self._training.losses, self._training.setup.pool)
        self._pending, self.tally.seconds = None, self.seconds()


def epoch_metrics(training: Training, number: int, tally: Tally, by_case: Mapping[str, Overlaps]) -> EpochMetrics:
    """Return the metrics of an epoch from the counts of training and the overlaps of the validation cases."""
    setup = training.setup
    trained = region_overlaps(setup.processes.sum(tally.voxels), setup.labels)
    dices = global_dice(by_case, setup.labels)
    mean = mean_without_nan(list(dices.values()))
    return EpochMetrics(
        epoch=number,
        loss=sum(tally.losses) / max(tally.step, 1),
        learning_rate=training.learner.optimizer.param_groups[0]["lr"],
        slices_per_second=tally.step * setup.config.batch / tally.seconds,
        wait_share=tally.waited / tally.seconds,
        regions={
            name: RegionDice(
                train=none_if_nan(trained[name].dice),
                validation=none_if_nan(dice),
                validation_per_case=none_if_nan(
                    mean_without_nan([overlaps[name].dice for overlaps in by_case.values()])
                ),
            )
            for name, dice in dices.items()
        },
        validation_dice=0.0 if math.isnan(mean) else mean,
    )


def combine_seeds(*numbers: int) -> int:
    """Return one seed of 64 bits for several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
