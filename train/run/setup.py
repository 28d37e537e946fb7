"""The setup of a run, before its first step: store, labels, split, size of the slices, device."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slicemill.common.documents import read_document, to_document
from slicemill.common.errors import ConfigError, InputError, ModelError, StoreError
from slicemill.common.files import Location, write_bytes, write_json
from slicemill.ct.labels import IGNORE, Labels
from slicemill.store.cache import SliceCache
from slicemill.store.reader import Case, Store, open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import store_sha256
from slicemill.train.config import Config, read_config, to_toml
from slicemill.train.data.dataset import Batches, SliceRegion, compute_zoom
from slicemill.train.data.sampling import Pool, make_pool
from slicemill.train.network.processes import ALONE, Processes, local_batch
from slicemill.train.run.checkpoint import BEST, LAST
from slicemill.train.run.claim import is_empty
from slicemill.train.run.device import choose_device, choose_precision
from slicemill.train.run.memory import AUTO, fitting_batch
from slicemill.train.split import split_store

MAX_STORED_SIDE = 1 << 16
"""Sanity limit of the sides in ``model.json``. Model files have a lower limit; see `export --size`."""
CONFIG, SPLIT, MODEL, METRICS, CURVES = "config.toml", "split.json", "model.json", "metrics.csv", "curves.png"
ENVIRONMENT, CASES, WORST_CASES, BEST_CASES, REPORT = (
    "environment.json", "cases.csv", "worst.png", "best.png", "report.html"
)  # fmt: skip
FILES = (CONFIG, SPLIT, MODEL, METRICS, CURVES, ENVIRONMENT, CASES, WORST_CASES, BEST_CASES, REPORT, BEST, LAST)
"""All files of a run folder, except TensorBoard's events."""


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """The content of ``model.json``: labels of the network, and the store that it was trained on."""

    labels: dict[str, int]
    """Name -> value."""
    organ: str | None = None
    """Name of the organ label."""
    tumor: str | None = None
    """Name of the tumor label."""
    size: tuple[int, int]
    """y, x of full slices in the network's pixels."""
    store: str
    """Path or URL of the store."""
    store_sha256: str
    """Hash of the store's cases."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything an epoch needs that does not change from epoch to epoch."""

    store: Store
    config: Config
    labels: Labels
    """The labels of the network: those of the store without the ignored one."""
    ignored: int | None
    """Label value whose pixels are excluded; None if there is none."""
    split: Split
    pool: Pool
    """Slices of the training cases."""
    size: tuple[int, int]
    """y, x of full slices in the network's pixels."""
    view: SliceRegion
    """The region of each slice that is read for training."""
    device: torch.device
    batches: Batches
    """The loader."""
    precision: torch.dtype
    """float32, or the lower precision of the network's mixed precision."""
    processes: Processes


def prepare(
    store_path: Location,
    run: Path,
    config: Config,
    split_file: Path | None,
    cache: SliceCache | None = None,
    processes: Processes = ALONE,
) -> Setup:
    """Open the store, choose split, size and batch, and write ``config.toml``, ``split.json`` and ``model.json``.

    Raises
    ------
    ConfigError
        The run folder belongs to other settings or another store, or a setting is not possible with this store.
    StoreError
        The store is not usable for training.
    """
    store = open_store(store_path, cache)
    labels, ignored = trained_labels(store, config)
    device = choose_device(config.device, processes)
    started = (run / CONFIG).exists() and any((run / name).exists() for name in (LAST, BEST))
    processes.barrier()  # all processes have checked before the first one writes
    if started:
        config = _check_run(run, config, store)
    split = choose_split(store, run / SPLIT if started else None, split_file, config)
    cases = _read_cases(store, split)
    size = slice_size(cases, config)
    view = training_region(cases, size, config)
    precision = choose_precision(config.precision, device)
    if config.batch == AUTO:
        fitting = processes.gather(fitting_batch(labels, config, view.size, device, precision), device)
        config = config.replace(batch=int(min(fitting)) * processes.count)
    batch = local_batch(config.batch, config.norm, processes, device)
    setup = Setup(
        store=store,
        config=config,
        labels=labels,
        ignored=ignored,
        split=split,
        pool=make_pool(store, split.train, labels, config),
        size=size,
        view=view,
        device=device,
        batches=Batches(store, view, batch, config.loader_threads, pinned=device.type == "cuda"),
        precision=precision,
        processes=processes,
    )
    if processes.first:
        _write_run(run, setup, store_path)
    return setup


def _read_cases(store: Store, split: Split) -> list[Case]:
    """Return the cases of training and validation, and refuse those without a mask."""
    cases = [store[case_id] for case_id in (*split.train, *split.validation)]
    unmasked = [case.info.case_id for case in cases if case.label is None]
    if unmasked:
        raise StoreError(
            f"{store.root}: the split has cases without a mask in train or validation: {', '.join(unmasked[:5])}."
        )
    return cases


def _write_run(run: Path, setup: Setup, store_path: Location) -> None:
    write_split(run / SPLIT, setup.split)
    write_bytes(run / CONFIG, to_toml(setup.config).encode())
    model = RunModel(
        labels=dict(setup.labels.values),
        organ=setup.labels.organ,
        tumor=setup.labels.tumor,
        size=setup.size,
        store=str(store_path),
        store_sha256=store_sha256(setup.store),
    )
    write_json(run / MODEL, to_document(model))


def trained_labels(store: Store, config: Config) -> tuple[Labels, int | None]:
    """Return the labels of the network, and the value of the label that is ignored: the setting, else IGNORE."""
    labels = common_labels(store)
    ignored = config.ignore or (IGNORE if IGNORE in labels.values else "")
    return (labels.without(ignored), labels.values[ignored]) if ignored else (labels, None)


def training_region(cases: Sequence[Case], size: tuple[int, int], config: Config) -> SliceRegion:
    """Return the region of each slice to read: full slices of `size`, or crops.

    If slices are resampled, it is large enough for the smallest pixels of all cases.

    Raises
    ------
    ConfigError
        The slices are too small for the depth of the network.
    """
    if config.crop:
        size = (min(size[0], config.crop), min(size[1], config.crop))
    if min(size) < 2 * config.size_multiple:
        raise ConfigError(
            f"slices of {size[0]}x{size[1]} are too small for depth = {config.depth}; set a smaller depth."
        )
    zooms = [compute_zoom(case.info.spacing_mm, config.network_spacing_mm) for case in cases]
    stored = (
        math.ceil(size[0] / min(zoom[0] for zoom in zooms)),
        math.ceil(size[1] / min(zoom[1] for zoom in zooms)),
    )
    return SliceRegion(
        size=size,
        context=config.context,
        context_spacing_mm=config.window_spacing_mm,
        reach=config.oblique,
        spacing_mm=config.network_spacing_mm,
        stored=stored if config.spacing_mm else None,
    )


def choose_split(store: Store, started_with: Path | None, requested: Path | None, config: Config) -> Split:
    """Return the split of a run: the one that it started with, else the requested one, else a new one.

    Raises
    ------
    ConfigError
        The run started with another split than the requested one.
    """
    chosen = read_split(requested, store.case_ids) if requested is not None else None
    if started_with is not None:
        earlier = read_split(started_with, store.case_ids)
        if chosen is not None and chosen != earlier:
            raise ConfigError(
                f"{requested}: the run started with another split ({started_with}). Use another folder, or --overwrite."
            )
        return earlier
    if chosen is not None:
        return chosen
    return split_store(store, validation=config.validation, test=config.test, seed=config.seed)


def remove_run(run: Path) -> None:
    """Remove the files of an earlier run from its folder; other files stay.

    Raises
    ------
    ConfigError
        The folder is not a run folder.
    """
    if not run.exists() or is_empty(run):
        return
    if not (run / CONFIG).exists():
        raise ConfigError(f"{run}: is not the folder of a run, so --overwrite does not remove it.")
    files = [path for path in run.iterdir() if path.name in FILES or path.name.startswith("events.out.tfevents")]
    for path in sorted(files, key=lambda path: path.name == CONFIG):  # CONFIG last: it marks the folder as a run's
        path.unlink(missing_ok=True)


def _check_run(run: Path, config: Config, store: Store) -> Config:
    """Return the settings that a run continues with.

    Raises
    ------
    ConfigError
        The run started with other settings, or on another store.
    """
    before = read_config(run / CONFIG)
    if config.batch == AUTO:
        config = config.replace(batch=before.batch)
    if before != config:
        names = [
            field.name
            for field in dataclasses.fields(config)
            if getattr(before, field.name) != getattr(config, field.name)
        ]
        differing = "; ".join(f"{name} {getattr(before, name)} -> {getattr(config, name)}" for name in names)
        raise ConfigError(
            f"{run}: contains a run with other settings ({differing}). "
            "Use the same settings, another folder, or --overwrite."
        )
    if read_run_model(run).store_sha256 != store_sha256(store):
        raise ConfigError(
            f"{run}: the cases of {store.root} have changed since the run started. "
            "Restore the store, use another folder, or --overwrite."
        )
    return config


def read_run_model(run: Path) -> RunModel:
    """Read ``model.json``.

    Raises
    ------
    ModelError
        The file is damaged.
    """
    path = run / MODEL
    try:
        model = read_document(RunModel, path)
    except InputError as error:
        raise ModelError(f"{error} The file is damaged; train again with --overwrite.") from error
    if not all(1 <= side <= MAX_STORED_SIDE for side in model.size):
        raise ModelError(
            f"{path}: size = {model.size}: sides must be between 1 and {MAX_STORED_SIDE}; train again with --overwrite."
        )
    return model


def read_run_document(run: Path) -> dict[str, Any]:
    """Return ``model.json`` as plain values, checked by `read_run_model`."""
    return to_document(read_run_model(run))


def common_labels(store: Store) -> Labels:
    """Return the labels that all cases with a mask share.

    Raises
    ------
    StoreError
        No case has a mask, or two cases have different labels.
    """
    by_case = {case.info.case_id: case.info.labels for case in store.values() if case.info.labels}
    if not by_case:
        raise StoreError(
            f"{store.root}: no case has a mask; training needs references. Ingest images together with masks."
        )
    first_id, first = next(iter(by_case.items()))
    for case_id, labels in by_case.items():
        if labels != first:
            raise StoreError(
                f"{store.root}: {first_id} and {case_id} have different labels ({first} and {labels}); "
                "ingest with one --labels."
            )
    return first


def slice_size(cases: Sequence[Case], config: Config) -> tuple[int, int]:
    """Return y, x of full slices in the network's pixels: the requested size, else that of the largest slices."""
    if config.size:
        return config.size, config.size
    sizes = [network_size(case, config) for case in cases]
    return max(y for y, _ in sizes), max(x for _, x in sizes)


def network_size(case: Case, config: Config) -> tuple[int, int]:
    """Return y, x of a case's full slices in the network's pixels, rounded up to a multiple of `size_multiple`."""
    step = config.size_multiple
    zoom = compute_zoom(case.info.spacing_mm, config.network_spacing_mm)
    _, ny, nx = case.image.shape
    return math.ceil(ny * zoom[0] / step - 1e-6) * step, math.ceil(nx * zoom[1] / step - 1e-6) * step
