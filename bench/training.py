"""A training step beside the bare forward and backward of its network, and what the rest of it costs.

What bounds it: the convolutions. Every contender sees batches of one size; the whole step streams them from the store,
windows, augments, judges, backpropagates, clips, updates weights and their average, and counts voxels.
"""

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.clock import interleaved, ratio
from bench.ingest import LITS, SIZE
from ingest.convert import convert_case
from ingest.discover import CaseFiles
from store.labels import LITS_LABELS
from store.machine import card
from store.phantom import PhantomSpec, make_phantom, write_nifti
from store.progress import progress
from store.reader import open_store
from store.writer import prepare_store
from train.config import Config
from train.dataset import Batches
from train.sampling import Place
from train.setup import choose_device, choose_precision, training_view
from train.step import class_of_value, make_learner, network_input, on_device, one_step, running_in

Record = dict[str, Any]
STEPS = {"cpu": 2, "cuda": 30}
"""Steps a round."""
WHOLE = "whole step from the store"


def run(folder: Path, *, slices: int, rounds: int, config: Config) -> Record:
    """Measure on one phantom and return the record."""
    phantom = make_phantom(PhantomSpec(seed=1, shape=(slices, SIZE, SIZE)))
    image, mask = folder / "volume-1.nii", folder / "segmentation-1.nii"
    write_nifti(image, phantom.image, phantom.spacing_mm)
    write_nifti(mask, phantom.label, phantom.spacing_mm)
    prepare_store(folder / "store")
    files = CaseFiles(case_id="volume-1", patient_id="volume-1", image=image, mask=mask, root=folder)
    convert_case(files, LITS, folder / "store")
    contenders, waited, device, precision = steps(folder / "store", config)
    with progress("training", (rounds + 1) * len(contenders), "rounds") as advance:
        times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name))
    bare = times["bare forward and backward"]
    return {
        "benchmark": "train",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": f"slices of {SIZE}x{SIZE} with {config.context - 1} neighbors, in batches of {config.batch}",
        "clock": "wall",
        "page_cache": "warm",
        "network": {"width": config.width, "depth": config.depth, "context": config.context, "norm": config.norm},
        "precision": str(precision).removeprefix("torch."),
        "device": str(device),
        "results": {name: timing.as_json(STEPS[device.type] * config.batch) for name, timing in times.items()},
        "of the bare forward and backward": {
            name: round(ratio(bare, timing), 3) for name, timing in times.items() if timing is not bare
        },
        "share of time spent waiting for the loader": round(median(waited[-rounds:]), 4),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None,
        "machine": card(),
    }


def steps(path: Path, config: Config) -> tuple[dict[str, Callable[[], object]], list[float], torch.device, torch.dtype]:
    """Return the contenders, each of so many STEPS, where whole steps put down how they waited, the device and the precision."""
    store = open_store(path)
    device = choose_device(config.device)
    count = STEPS[device.type]
    precision = choose_precision(config.precision, device)
    learner = make_learner(LITS_LABELS, config, device, precision)
    view = training_view([store["volume-1"]], (SIZE, SIZE), config)
    batches = Batches(store, view, config.batch, pinned=device.type == "cuda")
    places = [Place("volume-1", z * 7 % len(store["volume-1"].image)) for z in range(count * config.batch)]
    to_class = class_of_value(LITS_LABELS, device)
    generator = torch.Generator(device=device).manual_seed(0)
    fixed = torch.randn(config.batch, config.context, *view.size, device=device)
    fixed = fixed.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(config.batch, len(LITS_LABELS.values) + 1, *view.size, device=device)

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
                    one_step(learner, given)
            finished()
            if settings is config:
                waited.append(waiting / (time.perf_counter() - start))

        return work

    contenders: dict[str, Callable[[], object]] = {
        "bare forward and backward": bare,
        "whole step without augmentation": whole(replace(config, augment=0.0)),
        WHOLE: whole(config),
    }
    return contenders, waited, device, precision
