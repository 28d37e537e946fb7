"""Train a classifier of candidates on the crops of a slice store: nodule or not, then malignant or not.

1. Samples follow from the points and candidates of the store (`samples`); the split is by patient, and stored.
2. Crops are cut once, with a margin, and changed at random in each step (`augment`).
3. After each epoch the validation crops are scored. The weights with the best AUC are kept; of malignancy, with the
   best AUC among nodules of like size, if there are pairs enough. What an untrained network answers follows the size,
   which tells much already.
4. Weights, optimizer and progress are in one file, written atomically after each epoch. After a kill, the same command
   repeats the epoch that was not finished. Every draw follows from seed, epoch and place in the epoch, so the result is
   that of an uninterrupted run, bit for bit on one machine.
5. Malignancy starts from a copy of a run of nodule or not, of which all layers learn; the original stays as it was.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slicemill.common.documents import from_json, to_document
from slicemill.common.errors import ConfigError, ModelError
from slicemill.common.files import Location, write_csv
from slicemill.common.progress import progress
from slicemill.store.reader import open_store
from slicemill.store.split import read_split
from slicemill.store.tables import points_sha256
from slicemill.train.config import Config
from slicemill.train.crops.augment import augment_crop, cut_middle
from slicemill.train.crops.folder import (
    CROPS,
    METRICS,
    MODEL,
    SPLIT,
    CropData,
    CropRunModel,
    check_base_split,
    check_started,
    choose_crop_split,
    find_samples,
    hash_base,
    load_base,
    open_crops,
    remove_crop_run,
    to_tensor,
    write_run,
)
from slicemill.train.crops.metrics import CropEpoch, measure_epoch, measure_sizes
from slicemill.train.crops.network import CropNetwork, average_mirrored, split_views
from slicemill.train.crops.samples import draw_epoch, join_samples
from slicemill.train.crops.settings import CropConfig
from slicemill.train.network.muon import Muon
from slicemill.train.network.step import MAX_GRADIENT, learning_rate
from slicemill.train.network.unet import normalize
from slicemill.train.run.checkpoint import (
    BEST,
    LAST,
    load_checkpoint,
    read_checkpoint_text,
    save_checkpoint,
    save_weights,
)
from slicemill.train.run.claim import claim_to_train, is_empty
from slicemill.train.run.device import choose_device, use_cores
from slicemill.train.run.epoch import combine_seeds
from slicemill.train.run.interrupt import catch_stop_signals

SMOOTHING = 0.05
"""Label smoothing: the classes are trained as 0.025 and 0.975 (Szegedy et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class CropState:
    """The progress of a run, as a checkpoint has it."""

    epoch: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    """Highest AUC on validation (`CropTraining.rate`); -1 before the first epoch ends."""
    best_epoch: int = 0
    history: tuple[CropEpoch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CropTraining:
    """Everything that an epoch needs."""

    config: CropConfig
    malignancy: bool
    data: CropData
    network: CropNetwork
    optimizer: torch.optim.Optimizer
    device: torch.device
    sizes: npt.NDArray[np.float64]
    """float64[n], mm: sizes of the validation samples."""

    def logits(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return logits float[b] of the question that is trained; views float32[b, 24, 24, 24], HU."""
        low, high = self.config.window_low, self.config.window_high
        answer = self.network.learning(*(normalize(view, low, high).to(self.device) for view in (fine, coarse)))
        return cast("Tensor", answer if self.malignancy else answer[0])

    def rate(self, metrics: CropEpoch) -> float:
        """Return the AUC by which the best epoch is chosen."""
        alike = metrics.validation_auc_alike
        return alike if self.malignancy and alike is not None else metrics.validation_auc


def train_crops(
    store_path: Location,
    run: Path,
    config: CropConfig,
    *,
    split_file: Path | None = None,
    base: Path | None = None,
    overwrite: bool = False,
    log: Callable[[str], None],
) -> CropState:
    """Train a classifier, or continue an earlier call with the same arguments that was stopped.

    Parameters
    ----------
    split_file
        Split to use instead of a random one; that of `base` by default.
    base
        Run of nodule or not, on top of which malignancy is trained; None trains nodule or not.
    overwrite
        Remove an earlier run in the folder and start again.
    log
        Called with lines of text.

    Raises
    ------
    ConfigError
        The run folder belongs to other settings or another store, or another training uses it. Or training cases of
        `base` are in the validation or test part.
    StoreError
        The store has no points of one of the classes.
    """
    if torch.distributed.is_torchelastic_launched():
        raise ConfigError("--crops trains in one process; start it without torchrun.")
    open_store(store_path)  # raises before the folder is made
    if base is not None and base.resolve() == run.resolve():
        raise ConfigError("--from is the run that is to be written; pass another folder.", where=run)
    with ExitStack() as stack:
        stack.enter_context(claim_to_train(run))
        if overwrite:
            remove_crop_run(run)
        training = prepare_crops(store_path, run, config, split_file, base)
        stack.enter_context(use_cores(training.device))
        return _train_remaining_epochs(training, run, log)


def prepare_crops(
    store_path: Location, run: Path, config: CropConfig, split_file: Path | None, base: Path | None
) -> CropTraining:
    """Open the store, choose the split and the samples, cut the crops, and write the documents of the run."""
    store = open_store(store_path)
    device = choose_device(config.device)
    model = CropRunModel(
        malignancy=base is not None,
        store=str(store_path),
        store_sha256=points_sha256(store),
        base_sha256=hash_base(base),
    )
    if not is_empty(run) and (run / MODEL).exists():
        check_started(run, config, model)
        if split_file is not None and read_split(split_file, store.case_ids) != read_split(run / SPLIT, store.case_ids):
            raise ConfigError("the run started with another split. Use another folder, or --overwrite.", where=run)
        split = read_split(run / SPLIT, store.case_ids)
    else:
        if any(run.glob("*.toml")) or (run / CROPS).exists():
            raise ConfigError("contains other files of a run. Use another folder.", where=run)
        inherited = None if base is None else base / SPLIT
        split = choose_crop_split(store, split_file or inherited, config)
    if base is not None:
        check_base_split(base, split, store)
    parts = [find_samples(store, part, config, malignancy=model.malignancy) for part in (split.train, split.validation)]
    write_run(run, config, split, model, (parts[0], parts[1]))
    data = CropData(train=parts[0], validation=parts[1], crops=open_crops(run / CROPS, store, join_samples(parts)))
    torch.manual_seed(config.seed)
    network = (CropNetwork() if base is None else load_base(base, malignancy=True)).to(device)
    # 80 instead of 66 crops a second on a core
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return CropTraining(
        config=config,
        malignancy=model.malignancy,
        data=data,
        network=network,
        optimizer=Muon(network.learning.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay),
        device=device,
        sizes=measure_sizes(parts[1].used, [*data.crops[len(parts[0].used) :]]),
    )


def _train_remaining_epochs(training: CropTraining, run: Path, log: Callable[[str], None]) -> CropState:
    config, parts = training.config, {"network": training.network}
    state = CropState()
    if (run / LAST).exists():
        state = read_crop_state(run)
        load_checkpoint(run, parts, training.optimizer)
        if state.epoch == state.best_epoch:
            save_weights(run / BEST, training.network)  # a kill may have happened between the two writes
    for line in describe_start(training, state):
        log(line)
    if is_finished(state, config):
        return state
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run), purge_step=state.epoch + 1) as board, catch_stop_signals() as stop:
        while not is_finished(state, config):
            start = time.perf_counter()
            metrics = train_crop_epoch(training, state, stop.is_set)
            score = training.rate(metrics)
            better = score > state.best_score
            state = replace(
                state,
                epoch=metrics.epoch,
                seconds=state.seconds + time.perf_counter() - start,
                best_score=score if better else state.best_score,
                best_epoch=metrics.epoch if better else state.best_epoch,
                history=(*state.history, metrics),
            )
            save_checkpoint(run, to_document(state), parts, training.optimizer)
            if better:
                save_weights(run / BEST, training.network)
            write_csv(run / METRICS, [asdict(one) for one in state.history])
            for name, value in asdict(metrics).items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, metrics.epoch)
            log(summary_line(metrics, best=better))
    log(
        f"best: epoch {state.best_epoch} of {state.epoch}, {name_score(state, malignancy=training.malignancy)} "
        f"{state.best_score:.4f} on validation; next: export {run}"
    )
    return state


def read_crop_state(run: Path) -> CropState:
    """Read the progress of a run from its last checkpoint.

    Raises
    ------
    ModelError
        There is no checkpoint, or it is damaged.
    """
    return from_json(CropState, read_checkpoint_text(run), str(run / LAST), error=ModelError)


def name_score(state: CropState, *, malignancy: bool) -> str:
    """Return what `CropTraining.rate` gives in a run."""
    is_alike = malignancy and bool(state.history) and state.history[-1].validation_auc_alike is not None
    return "AUC among like sizes" if is_alike else "AUC"


def is_finished(state: CropState, config: CropConfig) -> bool:
    """Return whether a run has reached its last epoch or its time limit."""
    return state.epoch >= config.epochs or bool(config.max_minutes and state.seconds >= 60 * config.max_minutes)


def train_crop_epoch(training: CropTraining, state: CropState, stop: Callable[[], bool]) -> CropEpoch:
    """Train one epoch and score the validation crops.

    Raises
    ------
    KeyboardInterrupt
        A stop was requested; the next run repeats the epoch.
    ConfigError
        The loss is not finite.
    """
    config, samples, number = training.config, training.data.train.used, state.epoch + 1
    drawn = draw_epoch(samples, config.batch, np.random.default_rng((config.seed, number)))
    rates = Config(learning_rate=config.learning_rate)
    losses: list[float] = []
    training.network.learning.train()
    start = time.perf_counter()
    with progress(f"epoch {number}", drawn.size, "crops") as advance:
        for step, chosen in enumerate(drawn):
            if stop():
                raise KeyboardInterrupt
            done = (state.epoch + step / len(drawn)) / config.epochs
            if config.max_minutes:
                spent = state.seconds + time.perf_counter() - start
                done = max(done, min(1.0, spent / (60 * config.max_minutes)))
            for group in training.optimizer.param_groups:
                group["lr"] = learning_rate(rates, done)
            torch.manual_seed(combine_seeds(config.seed, number, step))  # of dropout
            losses.append(_take_step(training, chosen.tolist(), (number, step)))
            advance(len(chosen), f"loss {losses[-1]:.3f}")
        speed = drawn.size / (time.perf_counter() - start)
        probability = score_crops(training)
    rate = float(training.optimizer.param_groups[0]["lr"])
    return measure_epoch(
        (number, float(np.mean(losses)), rate, speed), training.data.validation.used, probability, training.sizes
    )


def _take_step(training: CropTraining, chosen: Sequence[int], place: tuple[int, int]) -> float:
    """Take one step on the crops `chosen` of the training part, and return its loss."""
    config, samples = training.config, training.data.train.used
    views = [
        augment_crop(to_tensor(training.data.crops[index]), config, combine_seeds(config.seed, *place, row))
        for row, index in enumerate(chosen)
    ]
    fine, coarse = map(torch.stack, zip(*views, strict=True))
    truth = torch.tensor([float(samples[index].positive) for index in chosen], device=training.device)
    target = truth * (1 - SMOOTHING) + SMOOTHING / 2
    loss = nn.functional.binary_cross_entropy_with_logits(training.logits(fine, coarse), target)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ConfigError(f"epoch {place[0]}, step {place[1] + 1}: the loss is {value}. Lower learning_rate.")
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(training.network.learning.parameters(), MAX_GRADIENT)
    training.optimizer.step()
    return value


@torch.no_grad()
def score_crops(training: CropTraining) -> npt.NDArray[np.float64]:
    """Return float64[n]: the probability of the positive class of each validation crop, as inference computes it."""
    config, data = training.config, training.data
    training.network.eval()
    first, count = len(data.train.used), len(data.validation.used)
    parts = []
    for start in range(0, count, config.batch):
        rows = range(first + start, first + min(start + config.batch, count))
        crops = torch.stack([cut_middle(to_tensor(data.crops[row])) for row in rows])
        logits = average_mirrored(training.logits, *split_views(crops))
        parts.append(torch.sigmoid(logits).cpu().numpy().astype(np.float64))
    return np.concatenate(parts)


def describe_start(training: CropTraining, state: CropState) -> list[str]:
    """Return log lines about samples, network and starting point."""
    data = training.data
    weights = sum(parameter.numel() for parameter in training.network.learning.parameters())
    names = ("malignant", "benign") if training.malignancy else ("nodules", "others")
    lines = [f"continuing after epoch {state.epoch} ({state.seconds / 60:.1f} minutes so far)"] if state.epoch else []
    for part, samples in (("train", data.train), ("validation", data.validation)):
        counts = f"{len(samples.of(positive=True)):,} {names[0]}, {len(samples.of(positive=False)):,} {names[1]}"
        lines.append(f"{part}: {counts}; {len(samples.left_out):,} left out (left_out.csv)")
        if samples.surplus:
            lines[-1] += f"; {samples.surplus:,} of the {names[1]} not used (negatives = {training.config.negatives})"
    return [*lines, f"{weights / 1e6:.2f} M weights, batch {training.config.batch}, on {training.device}"]


def summary_line(metrics: CropEpoch, *, best: bool) -> str:
    """Return the log line of an epoch."""
    one = metrics

    def show(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return (
        f"epoch {one.epoch:3d}  loss {one.loss:.3f}  validation: loss {one.validation_loss:.3f}, correct "
        f"{one.validation_positive_correct}/{one.validation_positive_total} positive, "
        f"{one.validation_negative_correct}/{one.validation_negative_total} negative, precision "
        f"{show(one.validation_precision)}, recall {show(one.validation_recall)}, F1 {show(one.validation_f1)}, AUC "
        f"{one.validation_auc:.4f} (size alone {one.validation_auc_size:.4f}, like sizes "
        f"{show(one.validation_auc_alike)}){' *' if best else '  '}  "
        f"{one.crops_per_second:.0f} crops/s"
    )
