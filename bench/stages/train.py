"""A training step beside the bare forward and backward of its network, and what the rest of it costs.

What bounds it: the convolutions. Every contender sees batches of one size; the whole step streams them from the store,
windows, augments, judges, backpropagates, clips, updates weights and their average, and counts voxels.
"""

import datetime as dt
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from slicemill.bench.harness.clock import interleaved, ratio
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.bench.harness.subject import CASE_ID, Subject
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.store.reader import Store
from slicemill.train.config import Config
from slicemill.train.data.dataset import Batches
from slicemill.train.data.sampling import SlicePosition
from slicemill.train.network.step import class_of_value, make_learner, network_input, on_device, one_step, running_in
from slicemill.train.run.setup import choose_device, choose_precision, network_size, training_view

STEPS = {"cpu": 2, "cuda": 30}
"""Steps a round."""
WHOLE = "whole step from the store"


BARE = "bare forward and backward"


def run(folder: Path, subject: Subject, *, rounds: int, config: Config) -> Record:
    """Measure on one scan and return the record."""
    store = subject.store(folder / "store")
    losses: list[torch.Tensor] = []
    contenders, waited, device, precision = steps(store, subject, config, losses)
    with FlopCounterMode(display=False) as counter:
        contenders[BARE]()
    with progress("training", (rounds + 1) * len(contenders), "rounds") as advance:
        times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name))
    check("every loss is a number", holds=bool(losses) and all(math.isfinite(float(loss)) for loss in losses))
    bare, amount = times[BARE], STEPS[device.type] * config.batch
    told = headline(
        {name: Timed(timing=timing, amount=amount) for name, timing in times.items()},
        ours=WHOLE,
        limit=BARE,
        bound="convolutions, forward and backward, on one batch in memory",
        peers={},
        verified="every loss is a number",
    )
    work = {
        "gflop": round(counter.get_total_flops() / amount / 1e9, 3),
        "arithmetic": f"{str(precision).removeprefix('torch.')}{', card' if device.type == 'cuda' else ''}",
    }
    return {
        "benchmark": "train",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "unit": f"slices with {config.context - 1} neighbors, in batches of {config.batch}",
        "clock": "wall",
        "page_cache": "warm",
        "network": {"width": config.width, "depth": config.depth, "context": config.context, "norm": config.norm},
        "precision": str(precision).removeprefix("torch."),
        "device": str(device),
        "results": {name: timing.as_json(amount) for name, timing in times.items()},
        "of the bare forward and backward": {
            name: round(ratio(bare, timing), 3) for name, timing in times.items() if timing is not bare
        },
        "headline": told | work,
        "share of time spent waiting for the loader": round(median(waited[-rounds:]), 4),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None,
        "machine": machine_info(),
    }


def steps(
    store: Store, subject: Subject, config: Config, losses: list[torch.Tensor]
) -> tuple[dict[str, Callable[[], object]], list[float], torch.device, torch.dtype]:
    """Return the contenders, each of so many STEPS, where whole steps put down how they waited, the device and the precision."""
    labels = subject.labels
    device = choose_device(config.device)
    count = STEPS[device.type]
    precision = choose_precision(config.precision, device)
    learner = make_learner(labels, config, device, precision)
    view = training_view([store[CASE_ID]], network_size(store[CASE_ID], config), config)
    batches = Batches(store, view, config.batch, pinned=device.type == "cuda")
    places = [SlicePosition(CASE_ID, z * 7 % len(store[CASE_ID].image)) for z in range(count * config.batch)]
    to_class = class_of_value(labels, device)
    generator = torch.Generator(device=device).manual_seed(0)
    fixed = torch.randn(config.batch, config.context, *view.size, device=device)
    fixed = fixed.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(config.batch, len(labels.values) + 1, *view.size, device=device)

    waited: list[float] = []

    def finished() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def bare() -> None:
        for _ in range(count):
            with running_in(device, precision):
                logits = learner.forward(fixed)[0]
            logits.backward(gradient.to(logits.dtype))  # type: ignore[no-untyped-call]
            learner.optimizer.zero_grad(set_to_none=True)
        finished()

    def whole(settings: Config) -> Callable[[], None]:
        def work() -> None:
            learner.network.train()
            start, waiting = time.perf_counter(), 0.0
            with batches.over(places, (0, 0)) as stream:
                for number in range(count):
                    asked = time.perf_counter()
                    batch = next(stream)
                    waiting += (
                        (time.perf_counter() - asked) if number else 0.0
                    )  # an epoch has one first batch, a round too
                    given = network_input(on_device(batch, to_class), settings, view.size, generator)
                    losses.append(one_step(learner, given)[0])
            finished()
            if settings is config:
                waited.append(waiting / (time.perf_counter() - start))

        return work

    contenders: dict[str, Callable[[], object]] = {
        BARE: bare,
        "whole step without augmentation": whole(replace(config, augment=0.0)),
        WHOLE: whole(config),
    }
    return contenders, waited, device, precision
