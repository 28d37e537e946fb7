"""A slice store -> a trained U-Net, in a run folder that explains itself.

::

    RUN/config.toml  split.json  best.safetensors  last.safetensors  model.json  metrics.csv  curves.png  events.*

1. The split is made once, by patient, and written down.
2. An epoch: slices drawn by `sampling`, decoded ahead by `dataset`, normalized and augmented on the device.
3. After each epoch every slice of the validation cases is segmented whole; the best mean Dice keeps its weights.
4. Weights, optimizer and position are one file, written whole: the same command after a kill goes on from the last epoch.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from store.errors import ConfigError, StoreError
from store.files import write_bytes, write_csv, write_json
from store.framing import centered, fit, neighbors
from store.labels import Labels
from store.layout import AIR_HU
from store.manifest import read_table, store_sha256
from store.metrics import Overlap, mean_of, overlap
from store.progress import progress
from store.reader import Case, Store, open_store
from train.augment import augment
from train.checkpoint import BEST, LAST, State, load_progress, save_progress, save_weights
from train.config import Config, read_config, to_toml
from train.dataset import Batches
from train.losses import dice_and_cross_entropy
from train.sampling import epoch_places
from train.split import Split, make_split, read_split, write_split
from train.unet import UNet, normalize

WARM_UP = 0.05
"""Share of the run in which the learning rate rises."""
MAX_GRADIENT = 5.0
CONFIG, SPLIT, MODEL, METRICS, CURVES = "config.toml", "split.json", "model.json", "metrics.csv", "curves.png"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that an epoch needs and that stays the same from epoch to epoch."""

    store: Store
    config: Config
    labels: Labels
    split: Split
    rows: list[Row]
    """Slice table of the training cases."""
    size: tuple[int, int]
    device: torch.device
    bf16: bool
    """Whether the network runs in mixed precision."""


def train(
    store_path: Path, run: Path, config: Config, *, split_file: Path | None = None, tell: Callable[[str], None]
) -> State:
    """Train, or go on where an earlier call with the same arguments was stopped.

    Raises
    ------
    ConfigError
        The run folder belongs to other settings, or a setting cannot work here.
    StoreError
        The store has no masks or too few patients.
    """
    setup = prepare(store_path, run, config, split_file)
    torch.manual_seed(config.seed)
    network = build(setup.labels, config).to(setup.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state = load_progress(run, network, optimizer)
    if state.epoch:
        tell(f"going on after epoch {state.epoch} ({state.seconds / 60:.1f} minutes so far)")
    tell(
        f"{len(setup.split.train)} cases to train on, {len(setup.split.validation)} to choose the checkpoint, {len(setup.split.test)} never seen; "
        f"slices {setup.size[0]}x{setup.size[1]}, context {config.context}, "
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M weights, {'bf16' if setup.bf16 else 'fp32'} on {setup.device}"
    )
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run), purge_step=state.epoch + 1) as board:
        while not finished(state, config):
            row, seconds = one_epoch(setup, network, optimizer, state)
            best = row["validation_dice"] > state.best_score
            if best:
                save_weights(run / BEST, network)
            state = replace(
                state,
                epoch=row["epoch"],
                seconds=state.seconds + seconds,
                best_score=row["validation_dice"] if best else state.best_score,
                best_epoch=row["epoch"] if best else state.best_epoch,
                rows=[*state.rows, row],
            )
            save_progress(run, state, network, optimizer)
            write_csv(run / METRICS, state.rows)
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, row["epoch"])
            tell(summary_line(row, setup.labels, best=best))
    draw_curves(run / CURVES, state.rows, setup.labels)
    return state


def prepare(store_path: Path, run: Path, config: Config, split_file: Path | None) -> Setup:
    """Open the store, settle split and size, and write down what the run is."""
    store = open_store(store_path)
    labels = common_labels(store)
    device = choose_device(config.device)
    _check_run(run, config)
    split_path = run / SPLIT
    if not split_path.exists():
        if split_file is not None:
            split = read_split(split_file, store.case_ids)
        else:
            split = make_split(
                read_table(store_path, "manifest"), validation=config.validation, test=config.test, seed=config.seed
            )
        write_split(split_path, split)
    split = read_split(split_path, store.case_ids)
    unmasked = [case_id for case_id in (*split.train, *split.validation) if store[case_id].label is None]
    if unmasked:
        raise StoreError(f"{store_path}: the split trains on cases without a mask: {', '.join(unmasked[:5])}.")
    size = slice_size([store[case_id] for case_id in (*split.train, *split.validation)], config)
    known = set(split.train)
    setup = Setup(
        store=store,
        config=config,
        labels=labels,
        split=split,
        rows=[row for row in read_table(store_path, "slices") if row["case_id"] in known],
        size=size,
        device=device,
        bf16=uses_bf16(config.precision, device),
    )
    write_bytes(run / CONFIG, to_toml(config).encode())
    write_json(
        run / MODEL, {**labels.as_json(), "size": size, "store": str(store_path), "store_sha256": store_sha256(store)}
    )
    return setup


def _check_run(run: Path, config: Config) -> None:
    if (run / CONFIG).exists() and (run / LAST).exists():
        before = read_config(run / CONFIG)
        if before != config:
            differing = [
                f"{name} {getattr(before, name)} -> {getattr(config, name)}"
                for name in [field.name for field in dataclasses.fields(config)]
                if getattr(before, name) != getattr(config, name)
            ]
            raise ConfigError(
                f"{run}: holds a run of other settings ({'; '.join(differing)}). Use the same settings, another folder, or --overwrite."
            )


def common_labels(store: Store) -> Labels:
    """Return the labels that the cases with a mask share.

    Raises
    ------
    StoreError
        No case has a mask, or two differ in their labels.
    """
    found = {case.info.case_id: case.info.labels for case in store if case.info.labels}
    if not found:
        raise StoreError(
            f"{store.root}: no case has a mask; training needs references. Ingest images together with masks."
        )
    first_id, first = next(iter(found.items()))
    for case_id, labels in found.items():
        if labels != first:
            raise StoreError(
                f"{store.root}: {first_id} and {case_id} have different labels ({first} and {labels}); ingest with one --labels."
            )
    return first


def choose_device(name: str) -> torch.device:
    """Return the device; auto is CUDA where there is one.

    Raises
    ------
    ConfigError
        The device asked for is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name}: cannot be used here ({str(error).splitlines()[0]}). Choose cpu, or auto."
        ) from error
    if device.type == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to run in bf16: where asked for, and by default where the hardware multiplies it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capable.get("amx_bf16") or capable.get("avx512_bf16"))


def slice_size(cases: Sequence[Case], config: Config) -> tuple[int, int]:
    """Return the size y, x that slices are brought to: the one asked for, else the largest slice, made a multiple."""
    if config.size:
        return config.size, config.size
    step = 2**config.depth
    ny, nx = (max(case.image.shape[axis] for case in cases) for axis in (1, 2))
    return -(-ny // step) * step, -(-nx // step) * step


def build(labels: Labels, config: Config) -> UNet:
    """Return the network for these labels and settings, its weights laid out for the CPU's and GPU's convolutions."""
    network = UNet(channels=config.context, classes=len(labels.values) + 1, width=config.width, depth=config.depth)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def finished(state: State, config: Config) -> bool:
    """Return whether a run has reached its last epoch or its time."""
    return state.epoch >= config.epochs or bool(config.max_minutes and state.seconds >= 60 * config.max_minutes)


def learning_rate(config: Config, done: float) -> float:
    """Return the learning rate when a share `done` of the run is over: a short rise, then half a cosine to zero.

    >>> round(learning_rate(Config(learning_rate=1.0), 1.0), 6)
    0.0
    """
    if done < WARM_UP:
        return config.learning_rate * (0.1 + 0.9 * done / WARM_UP)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))


def one_epoch(setup: Setup, network: UNet, optimizer: torch.optim.Optimizer, state: State) -> tuple[Row, float]:
    """Train one epoch and validate; return its row of metrics and the seconds that it took."""
    config, epoch = setup.config, state.epoch + 1
    start = time.perf_counter()
    places = epoch_places(setup.rows, config, epoch)
    steps = len(places) // config.batch
    classes = setup.labels.table()
    generator = torch.Generator(device=setup.device).manual_seed(config.seed * 100_003 + epoch)
    losses: list[float] = []
    seen = {name: Overlap() for name in setup.labels.values}
    network.train()
    batches = Batches(setup.store, classes, setup.size, config.context, config.batch)
    with (
        progress(f"epoch {epoch}", len(places), "slices") as advance,
        batches.over(places, (config.seed, epoch)) as stream,
    ):
        for step, batch in enumerate(stream):
            spent = (
                (state.seconds + time.perf_counter() - start) / (60 * config.max_minutes) if config.max_minutes else 0.0
            )
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, max((state.epoch + step / steps) / config.epochs, spent))
            image = torch.from_numpy(batch.image).to(setup.device)
            label = torch.from_numpy(batch.label).to(setup.device).long()
            loss, predicted, truth = one_step(
                network, optimizer, normalized(image, label, config, generator), bf16=setup.bf16
            )
            if not math.isfinite(loss):
                raise ConfigError(
                    f"epoch {epoch}, step {step}: the loss is {loss}; slices {batch.places}. Lower learning_rate."
                )
            losses.append(loss)
            _count(seen, setup.labels, truth, predicted)
            advance(config.batch, f"loss {loss:.3f}")
        trained = time.perf_counter() - start
        advance(0, "validation")
    scores = validate(setup, network)
    row: Row = {
        "epoch": epoch,
        "loss": sum(losses) / max(len(losses), 1),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "slices_per_second": len(losses) * config.batch / trained,
        **{f"train_dice_{name}": _number(counts.dice) for name, counts in seen.items()},
        **{f"validation_dice_{name}": _number(score) for name, score in scores.items()},
        "validation_dice": 0.0 if math.isnan(mean_of(list(scores.values()))) else mean_of(list(scores.values())),
    }
    return row, time.perf_counter() - start


def normalized(image: Tensor, label: Tensor, config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch of HU as the network's input, augmented where asked for."""
    image = normalize(image, config.window_low, config.window_high)
    return augment(image, label, config.augment, generator) if config.augment else (image, label)


def one_step(
    network: UNet, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], *, bf16: bool
) -> tuple[float, Tensor, Tensor]:
    """Take one step; return the loss, the predicted and the true classes."""
    image, label = batch
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = network(image.contiguous(memory_format=torch.channels_last))
        loss = dice_and_cross_entropy(logits, label)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT)
    optimizer.step()
    return float(loss.detach()), logits.detach().argmax(dim=1), label


@torch.no_grad()
def validate(setup: Setup, network: UNet) -> dict[str, float]:
    """Return the global Dice of each region (`Labels.regions`) over every slice of the validation cases."""
    network.eval()
    totals = {name: Overlap() for name in setup.labels.values}
    classes = setup.labels.table()
    for case_id in setup.split.validation:
        case = setup.store[case_id]
        predicted = predict_case(case, network, setup)
        reference = case.label[:] if case.label is not None else np.zeros_like(predicted)
        for name, values in setup.labels.regions().items():
            totals[name] += overlap(np.isin(reference, values), np.isin(classes[predicted], values))
    return {name: counts.dice for name, counts in totals.items()}


def predict_case(case: Case, network: UNet, setup: Setup) -> npt.NDArray[np.uint8]:
    """Return the class index of every voxel of a case: uint8[z, y, x]; slices are padded whole, never cropped."""
    config = setup.config
    step = 2**config.depth
    nz, ny, nx = case.image.shape
    size = (-(-ny // step) * step, -(-nx // step) * step)
    corner = centered((ny, nx), size)
    volume = np.empty((nz, *size), dtype=np.int16)
    for z, section in enumerate(case.image):
        fit(section, corner, AIR_HU, volume[z])
    predicted = np.empty((nz, ny, nx), dtype=np.uint8)
    for first in range(0, nz, config.batch):
        chosen = range(first, min(first + config.batch, nz))
        windows = volume[[neighbors(z, nz, config.context) for z in chosen]]
        image = normalize(torch.from_numpy(windows).to(setup.device), config.window_low, config.window_high)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=setup.bf16):
            best = network(image.contiguous(memory_format=torch.channels_last)).argmax(dim=1)
        predicted[first : first + len(chosen)] = (
            best[:, -corner[0] : ny - corner[0], -corner[1] : nx - corner[1]].cpu().numpy()
        )
    return predicted


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


def draw_curves(path: Path, rows: Sequence[Row], labels: Labels) -> None:
    """Draw Dice over epochs, for training and validation, and the loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from store.files import written_whole

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
