"""A training step compared with the bare forward and backward pass of its network, and the cost of the rest.

Bottleneck: the convolutions. Every contender has batches of one size. A complete step streams them from the store,
windows, augments, computes the loss, backpropagates, clips, updates weights and their average, and counts voxels.
Command: `slicemill bench train`.
"""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from msgspec import structs
from torch.utils.flop_counter import FlopCounterMode

from slicemill.bench.harness.clock import Work, ratio, show_progress, time_rounds
from slicemill.bench.harness.headline import Record, check, headline, with_amount
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import NetworkSize, TrainRecord
from slicemill.store.reader import Store
from slicemill.train.config import Config
from slicemill.train.data.dataset import Batches
from slicemill.train.data.generators import make_generators
from slicemill.train.data.sampling import SlicePosition
from slicemill.train.network.step import (
    Learner,
    class_lookup,
    make_learner,
    mixed_precision,
    move_to_device,
    prepare_input,
    train_step,
)
from slicemill.train.run.device import choose_device, choose_precision, search_algorithms, use_cores
from slicemill.train.run.setup import network_size, training_region

STEPS = {"cpu": 2, "cuda": 30}
"""Steps per round, by device."""
COMPLETE, PLAIN = "whole step from the store", "whole step without augmentation"
BARE = "bare forward and backward"


def run(folder: Path, subject: Subject, *, rounds: int, config: Config) -> Record:
    """Measure on one scan and return the record."""
    steps = Steps(subject.store(folder / "store"), subject, config)
    contenders = steps.contenders()
    gflop = gflop_a_slice(subject, config, steps)
    with (
        use_cores(steps.device),
        search_algorithms(steps.device),
        show_progress("training", len(contenders), rounds) as log,
    ):
        times = time_rounds(contenders, rounds=rounds, log=log)
    losses = [float(loss) for loss in steps.losses]
    check("every loss is a number", holds=bool(losses) and all(map(math.isfinite, losses)))
    amount, on_gpu = steps.count * config.batch, steps.device.type == "cuda"
    precision = str(steps.precision).removeprefix("torch.")
    comparison = headline(
        with_amount(times, amount),
        contender=COMPLETE,
        limit=BARE,
        bound="convolutions, forward and backward, on one batch in memory",
        peers={},
        verified="every loss is a number",
    )
    return TrainRecord(
        **origin(),
        subject=str(subject),
        clock="wall",
        page_cache="warm",
        unit=f"slices with {config.context - 1} neighbors, in batches of {config.batch}",
        network=NetworkSize(width=config.width, depth=config.depth, context=config.context, norm=config.norm),
        precision=precision,
        device=str(steps.device),
        results={name: timing.rate(amount) for name, timing in times.items()},
        of_bare={name: round(ratio(times[BARE], times[name]), 3) for name in (PLAIN, COMPLETE)},
        headline=structs.replace(
            comparison, gflop=round(gflop, 3), arithmetic=f"{precision}{', card' if on_gpu else ''}"
        ),
        waiting=round(median(steps.waited[-rounds:]), 4),
        peak_gpu_mib=round(torch.cuda.max_memory_allocated(steps.device) / 2**20) if on_gpu else None,
    ).as_json()


def gflop_a_slice(subject: Subject, config: Config, steps: "Steps") -> float:
    """Return the operations of the bare forward and backward pass of a slice, in 10**9.

    They are counted on a network that is not compiled: torch compiles nothing that first runs while they are counted.
    """
    learner = make_learner(subject.labels, config.replace(compile=False), steps.device, steps.precision)
    with FlopCounterMode(display=False) as counter:
        steps.pass_once(learner)
    return float(counter.get_total_flops()) / config.batch / 1e9


class Steps:
    """The contenders: rounds of STEPS steps each, and what complete steps recorded."""

    def __init__(self, store: Store, subject: Subject, config: Config) -> None:
        case = store[CASE_ID]
        self.config = config
        self.device = choose_device(config.device)
        self.count = STEPS[self.device.type]
        self.precision = choose_precision(config.precision, self.device)
        self.losses: list[torch.Tensor] = []
        self.waited: list[float] = []  # share of each complete round that was spent waiting for the loader
        self._learner = make_learner(subject.labels, config, self.device, self.precision)
        view = training_region([case], network_size(case, config), config)
        self._size = view.size
        self._batches = Batches(store, view, config.batch, pinned=self.device.type == "cuda")
        self._positions = [SlicePosition(CASE_ID, z * 7 % len(case.image)) for z in range(self.count * config.batch)]
        self._to_class = class_lookup(subject.labels, self.device)
        self._generators = make_generators(self.device).manual_seed(0)
        batch = torch.randn(config.batch, config.context, *view.size, device=self.device)
        self._batch = batch.contiguous(memory_format=torch.channels_last)
        self._gradient = torch.randn(config.batch, len(subject.labels.values) + 1, *view.size, device=self.device)

    def contenders(self) -> dict[str, Work]:
        """Return the contenders by name."""
        return {
            BARE: self.run_bare,
            PLAIN: partial(self.run_complete, replace(self.config, augment=0.0)),
            COMPLETE: lambda: self.waited.append(self.run_complete(self.config)),
        }

    def run_bare(self) -> None:
        """Do the forward and backward pass on one batch in memory."""
        for _ in range(self.count):
            self.pass_once(self._learner)
        self._synchronize()

    def pass_once(self, learner: Learner) -> None:
        """Do one forward and backward pass of a network on the batch in memory."""
        with mixed_precision(self.device, self.precision):
            logits = learner.forward(self._batch)[0]
        logits.backward(self._gradient.to(logits.dtype))  # type: ignore[no-untyped-call]
        learner.optimizer.zero_grad(set_to_none=True)

    def run_complete(self, settings: Config) -> float:
        """Do complete steps with some settings; return the share of the time that was spent waiting for the loader."""
        self._learner.network.train()
        start, waiting = time.perf_counter(), 0.0
        with self._batches.iterate(self._positions, (0, 0)) as stream:
            for number in range(self.count):
                before = time.perf_counter()
                batch = next(stream)
                if number:  # the first batch is left out: an epoch waits for it once, but every round does
                    waiting += time.perf_counter() - before
                inputs = prepare_input(move_to_device(batch, self._to_class), settings, self._size, self._generators)
                self.losses.append(train_step(self._learner, inputs)[0])
        self._synchronize()
        return waiting / (time.perf_counter() - start)

    def _synchronize(self) -> None:
        """Wait until the GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
