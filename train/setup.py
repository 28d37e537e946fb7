"""What a run is, before its first step: store, labels, split, size of the slices, device."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from store.cache import SliceCache
from store.errors import ConfigError, StoreError
from store.files import Place, write_bytes, write_json
from store.labels import Labels
from store.manifest import read_table, store_sha256
from store.reader import Case, Store, open_store
from train.checkpoint import BEST, LAST
from train.config import Config, read_config, to_toml
from train.dataset import Batches
from train.split import Split, make_split, read_split, write_split

CONFIG, SPLIT, MODEL, METRICS, CURVES = "config.toml", "split.json", "model.json", "metrics.csv", "curves.png"
ENVIRONMENT, CASES, WORST_CASES, BEST_CASES, REPORT = (
    "environment.json", "cases.csv", "worst.png", "best.png", "report.html"
)  # fmt: skip
FILES = (CONFIG, SPLIT, MODEL, METRICS, CURVES, ENVIRONMENT, CASES, WORST_CASES, BEST_CASES, REPORT, BEST, LAST)
"""All that a run leaves in its folder, but for TensorBoard's events."""

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
    batches: Batches
    """The loader; its ring is made once a run."""
    bf16: bool
    """Whether the network runs in mixed precision."""


def prepare(
    store_path: Place, run: Path, config: Config, split_file: Path | None, cache: SliceCache | None = None
) -> Setup:
    """Open the store, settle split and size, and write down what the run is."""
    store = open_store(store_path, cache)
    labels = common_labels(store)
    device = choose_device(config.device)
    started = (run / CONFIG).exists() and (run / LAST).exists()
    if started:
        _check_run(run, config)
    split = settle_split(store, run / SPLIT if started else None, split_file, config)
    unmasked = [case_id for case_id in (*split.train, *split.validation) if store[case_id].label is None]
    if unmasked:
        raise StoreError(f"{store_path}: the split trains on cases without a mask: {', '.join(unmasked[:5])}.")
    rows = [row for row in read_table(store_path, "slices") if row["case_id"] in split.train]
    if not rows:
        raise StoreError(
            f"{store_path}: its slice table has no slice of the training cases; run `slicemill store reindex {store_path}`."
        )
    size = slice_size([store[case_id] for case_id in (*split.train, *split.validation)], config)
    setup = Setup(
        store=store,
        config=config,
        labels=labels,
        split=split,
        rows=rows,
        size=size,
        device=device,
        batches=Batches(store, size, (config.context, config.window_spacing_mm), config.batch, config.loader_threads),
        bf16=uses_bf16(config.precision, device),
    )
    write_split(run / SPLIT, split)
    write_bytes(run / CONFIG, to_toml(config).encode())
    write_json(
        run / MODEL, {**labels.as_json(), "size": size, "store": str(store_path), "store_sha256": store_sha256(store)}
    )
    return setup


def settle_split(store: Store, earlier: Path | None, given: Path | None, config: Config) -> Split:
    """Return the split of a run: the one that it was begun with, else the one given, else a fresh one.

    Raises
    ------
    ConfigError
        The run was begun with another split than the one given.
    """
    chosen = read_split(given, store.case_ids) if given is not None else None
    if earlier is not None:
        begun = read_split(earlier, store.case_ids)
        if chosen is not None and chosen != begun:
            raise ConfigError(
                f"{given}: the run was begun with another split ({earlier}). Use another folder, or --overwrite."
            )
        return begun
    if chosen is not None:
        return chosen
    return make_split(
        read_table(store.root, "manifest"), validation=config.validation, test=config.test, seed=config.seed
    )


def remove_run(run: Path) -> None:
    """Remove what an earlier run left in its folder, and nothing else.

    Raises
    ------
    ConfigError
        It is not the folder of a run.
    """
    if not run.exists():
        return
    if not (run / CONFIG).exists():
        raise ConfigError(f"{run}: is not the folder of a run; --overwrite does not remove it.")
    for path in run.iterdir():
        if path.name in FILES or path.name.startswith("events.out.tfevents"):
            path.unlink()


def _check_run(run: Path, config: Config) -> None:
    before = read_config(run / CONFIG)
    if before != config:
        names = [
            field.name
            for field in dataclasses.fields(config)
            if getattr(before, field.name) != getattr(config, field.name)
        ]
        differing = "; ".join(f"{name} {getattr(before, name)} -> {getattr(config, name)}" for name in names)
        raise ConfigError(
            f"{run}: holds a run of other settings ({differing}). Use the same settings, another folder, or --overwrite."
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
