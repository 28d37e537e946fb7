"""What a run is, before its first step: store, labels, split, size of the slices, device."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slicemill.common.errors import ConfigError, ModelError, StoreError, UsageError
from slicemill.common.files import Location, read_json, write_bytes, write_json
from slicemill.ct.labels import Labels
from slicemill.store.cache import SliceCache
from slicemill.store.reader import Case, Store, open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import read_table, store_sha256
from slicemill.train.config import Config, read_config, to_toml
from slicemill.train.data.dataset import Batches, View, zoom_of
from slicemill.train.data.sampling import Pool
from slicemill.train.network.processes import ALONE, Processes, share_of
from slicemill.train.run.checkpoint import BEST, LAST
from slicemill.train.run.memory import AUTO, fitting_batch
from slicemill.train.split import make_split

MAX_SIDE = 1 << 16
"""Pixels of a slice's side that a run may name."""
CONFIG, SPLIT, MODEL, METRICS, CURVES = "config.toml", "split.json", "model.json", "metrics.csv", "curves.png"
ENVIRONMENT, CASES, WORST_CASES, BEST_CASES, REPORT = (
    "environment.json", "cases.csv", "worst.png", "best.png", "report.html"
)  # fmt: skip
FILES = (CONFIG, SPLIT, MODEL, METRICS, CURVES, ENVIRONMENT, CASES, WORST_CASES, BEST_CASES, REPORT, BEST, LAST)
"""All that a run leaves in its folder, but for TensorBoard's events."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that an epoch needs and that stays the same from epoch to epoch."""

    store: Store
    config: Config
    labels: Labels
    """What the network tells apart: the store's labels without the ignored one."""
    ignored: int | None
    """Label value whose pixels count for nothing."""
    split: Split
    pool: Pool
    """Slices of the training cases."""
    size: tuple[int, int]
    """y, x of whole slices in the network's pixels."""
    view: View
    """What the network is trained on."""
    device: torch.device
    batches: Batches
    """The loader; its ring is made once a run."""
    precision: torch.dtype
    """float32, or what the network runs in where that is enough."""
    processes: Processes


def prepare(
    store_path: Location,
    run: Path,
    config: Config,
    split_file: Path | None,
    cache: SliceCache | None = None,
    processes: Processes = ALONE,
) -> Setup:
    """Open the store, settle split, size and batch, and write down what the run is."""
    store = open_store(store_path, cache)
    stored_labels = common_labels(store)
    labels, ignored = (
        (stored_labels.without(config.ignore), stored_labels.values[config.ignore])
        if config.ignore
        else (stored_labels, None)
    )
    device = choose_device(config.device, processes)
    started = (run / CONFIG).exists() and (run / LAST).exists()
    processes.wait()  # until all have looked, before the first writes
    if started:
        config = _check_run(run, config, store)
    split = settle_split(store, run / SPLIT if started else None, split_file, config)
    unmasked = [case_id for case_id in (*split.train, *split.validation) if store[case_id].label is None]
    if unmasked:
        raise StoreError(f"{store_path}: the split trains on cases without a mask: {', '.join(unmasked[:5])}.")
    chosen = set(split.train)
    slices, lesions = (
        [row for row in read_table(store_path, name) if row["case_id"] in chosen] for name in ("slices", "lesions")
    )
    if {row["case_id"] for row in slices} != chosen:
        raise StoreError(
            f"{store_path}: its slice table lacks slices of the training cases; run `slicemill store reindex {store_path}`."
        )
    cases = [store[case_id] for case_id in (*split.train, *split.validation)]
    size = slice_size(cases, config)
    view = training_view(cases, size, config)
    if min(view.size) < 2 ** (config.depth + 1):
        raise ConfigError(
            f"slices of {view.size[0]}x{view.size[1]} are too small for depth = {config.depth}; set a smaller one."
        )
    precision = choose_precision(config.precision, device)
    if config.batch == AUTO:
        fitting = processes.each(fitting_batch(labels, config, view.size, device, precision), device)
        config = config.changed(batch=int(min(fitting)) * processes.count)
    share = share_of(config.batch, config.norm, processes, device)
    setup = Setup(
        store=store,
        config=config,
        labels=labels,
        ignored=ignored,
        split=split,
        pool=Pool(slices, lesions, labels, config),
        size=size,
        view=view,
        device=device,
        batches=Batches(store, view, share, config.loader_threads, pinned=device.type == "cuda"),
        precision=precision,
        processes=processes,
    )
    if processes.first:
        write_split(run / SPLIT, split)
        write_bytes(run / CONFIG, to_toml(config).encode())
        write_json(
            run / MODEL,
            {**labels.as_json(), "size": size, "store": str(store_path), "store_sha256": store_sha256(store)},
        )
    return setup


def training_view(cases: Sequence[Case], size: tuple[int, int], config: Config) -> View:
    """Return what is cut out of slices: whole ones of `size`, or crops; wide enough for every pixel size where they are resampled."""
    if config.crop:
        size = (min(size[0], config.crop), min(size[1], config.crop))
    zooms = [zoom_of(case.info.spacing_mm, config.wanted_spacing_mm) for case in cases]
    stored = (
        math.ceil(size[0] / min(zoom[0] for zoom in zooms)),
        math.ceil(size[1] / min(zoom[1] for zoom in zooms)),
    )
    return View(
        size=size,
        context=config.context,
        context_spacing_mm=config.window_spacing_mm,
        reach=config.oblique,
        spacing_mm=config.wanted_spacing_mm,
        stored=stored if config.spacing_mm else None,
    )


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
    ours = [path for path in run.iterdir() if path.name in FILES or path.name.startswith("events.out.tfevents")]
    for path in sorted(ours, key=lambda path: path.name == CONFIG):  # last: without it, the folder is none of a run
        path.unlink(missing_ok=True)


def _check_run(run: Path, config: Config, store: Store) -> Config:
    """Return the settings that a run goes on with.

    Raises
    ------
    ConfigError
        It was begun with other settings, or on another store.
    """
    before = read_config(run / CONFIG)
    if config.batch == AUTO:
        config = config.changed(batch=before.batch)
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
    if run_document(run)["store_sha256"] != store_sha256(store):
        raise ConfigError(
            f"{run}: was begun on other cases than {store.root} holds now. Use the store as it was, another folder, or --overwrite."
        )
    return config


def run_document(run: Path) -> dict[str, Any]:
    """Return what a run wrote down about its store: labels, size y, x of whole slices, store and its hash.

    Raises
    ------
    ModelError
        It is damaged.
    """
    path = run / MODEL
    try:
        document = read_json(path)
        height, width = document["size"]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
            raise ValueError(f"size {height} x {width}")
        if not all(isinstance(document[name], str) for name in ("store", "store_sha256")):
            raise TypeError("store and store_sha256 must be strings")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: is not what a run writes ({error}); train anew with --overwrite.") from error
    return dict(document)


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


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """Return the device; auto is CUDA where there is one, and each process of a machine has its own.

    Raises
    ------
    UsageError
        There are no devices of that name.
    ConfigError
        The device asked for is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.count > 1:
        name = f"cuda:{processes.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name}: there are none of that name. Choose auto, cpu, cuda or cuda:N.") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name}: cannot be used here ({str(error).splitlines()[0]}). Choose cpu, or auto."
        ) from error
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes.count))
    return device


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return what the network runs in: what is asked for, and by default bf16 where the hardware multiplies it."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type != "cpu":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(capable.get("amx_bf16") or capable.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32


def slice_size(cases: Sequence[Case], config: Config) -> tuple[int, int]:
    """Return the size y, x of whole slices in the network's pixels: the one asked for, else the largest, made a multiple."""
    if config.size:
        return config.size, config.size
    sizes = [network_size(case, config) for case in cases]
    return max(y for y, _ in sizes), max(x for _, x in sizes)


def network_size(case: Case, config: Config) -> tuple[int, int]:
    """Return the size y, x of a case's whole slices in the network's pixels, made a multiple of what its levels halve."""
    step = 2**config.depth
    zoom = zoom_of(case.info.spacing_mm, config.wanted_spacing_mm)
    _, ny, nx = case.image.shape
    return math.ceil(ny * zoom[0] / step - 1e-6) * step, math.ceil(nx * zoom[1] / step - 1e-6) * step
