"""The run folder of a classifier: its documents, its samples and its crops.

::

    RUN/config.toml  split.json  model.json  samples.csv  left_out.csv  crops.npy  best.safetensors  last.safetensors
        metrics.csv  events.*

``crops.npy`` has every sample's crop with a margin, int16[n, 60, 60, 60], HU, cut once from the store. It is needed
while the run trains, and may be deleted afterwards.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from slicemill.common.documents import read_document, to_document
from slicemill.common.errors import ConfigError, InputError, ModelError, StoreError
from slicemill.common.files import atomic_write, sha256_of_file, write_bytes, write_csv, write_json
from slicemill.common.progress import progress
from slicemill.ct.crops import cut_crop
from slicemill.store.reader import Case, Store, open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import make_manifest_row, points_sha256
from slicemill.train.config import to_toml
from slicemill.train.crops.augment import STORED_SIDE
from slicemill.train.crops.network import CropNetwork
from slicemill.train.crops.samples import (
    LeftOutSample,
    Samples,
    are_rated,
    find_malignancy_samples,
    find_nodule_samples,
    join_samples,
    keep_negatives,
)
from slicemill.train.crops.settings import CropConfig, read_crop_config
from slicemill.train.run.checkpoint import BEST, LAST, load_weights
from slicemill.train.run.claim import is_empty
from slicemill.train.split import split_store

CONFIG, SPLIT, MODEL, METRICS = "config.toml", "split.json", "model.json", "metrics.csv"
SAMPLES, LEFT_OUT, CROPS = "samples.csv", "left_out.csv", "crops.npy"
FILES = (CONFIG, SPLIT, MODEL, METRICS, SAMPLES, LEFT_OUT, CROPS, BEST, LAST)
NEEDED = ((True, "nodule"), (False, "candidate that is no nodule"))
MALIGNANT = ((True, "malignant nodule"), (False, "benign nodule"))
"""The classes that a training needs."""
CropArray = npt.NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class CropRunModel:
    """The content of ``model.json``."""

    kind: Literal["crops"] = "crops"
    malignancy: bool
    """Whether the run trains malignancy on top of another run's network."""
    store: str
    """Path or URL of the store."""
    store_sha256: str
    """Hash of the store's cases and their points."""
    base_sha256: str | None = None
    """Hash of the weights that a training of malignancy started with."""


@dataclass(frozen=True, kw_only=True)
class CropData:
    """The samples of a run and their crops."""

    train: Samples
    validation: Samples
    crops: CropArray
    """int16[n, 60, 60, 60], HU, mapped from the file: crops of `train`, then of `validation`."""


def read_crop_run(run: Path) -> CropRunModel:
    """Read ``model.json`` of the run of a classifier.

    Raises
    ------
    ModelError
        The file is damaged, or the run is of another kind.
    """
    try:
        return read_document(CropRunModel, run / MODEL)
    except InputError as error:
        if is_crop_run(run):
            raise ModelError(f"{error} The file is damaged; train again with --overwrite.") from error
        raise ModelError(
            "is not the run of a classifier; make one with `slicemill train --crops`.", where=run
        ) from error


def is_crop_run(run: Path) -> bool:
    """Return whether a folder is the run of a classifier."""
    try:
        return read_document(dict[str, Any], run / MODEL).get("kind") == "crops"
    except InputError:
        return False


def load_base(run: Path, *, malignancy: bool) -> CropNetwork:
    """Return the best network of a run; with `malignancy`, the layers of malignancy start as a copy of the others but
    for the answer itself.

    Raises
    ------
    ModelError
        There is no trained network.
    """
    document = read_crop_run(run)
    if not (run / BEST).exists():
        raise ModelError(f"has no trained network ({BEST}); run `slicemill train --crops` first.", where=run)
    network = CropNetwork(malignancy=document.malignancy)
    load_weights(run / BEST, network)
    if not malignancy or document.malignancy:
        return network
    extended = CropNetwork(malignancy=True)
    malignant = extended.malignancy
    assert malignant is not None  # noqa: S101 (for mypy)
    for trunk, block in ((extended.trunk, extended.nodule), (malignant.trunk, malignant.block)):
        trunk.load_state_dict(network.trunk.state_dict())
        block.load_state_dict(network.nodule.state_dict())
    malignant.block.forget()
    return extended


def choose_crop_split(store: Store, requested: Path | None, config: CropConfig) -> Split:
    """Return the requested split, else the one that a segmentation of the store has with these shares and this seed.

    A classifier judges what a segmentation found. With other parts, its test cases may have trained the segmentation.

    Raises
    ------
    StoreError
        Fewer than three patients have points.
    """
    if requested is not None:
        return read_split(requested, store.case_ids)
    patients = {case.info.patient_id for case in store.values() if case.points is not None}
    if len(patients) < 3:
        raise StoreError(
            f"training needs at least 3 patients with points (train, validation, test); the store has {len(patients)}.",
            where=store.root,
        )
    return split_store(store, validation=config.validation, test=config.test, seed=config.seed)


def check_base_split(base: Path, split: Split, store: Store) -> None:
    """Check that no patient whom a run has learned from is in the validation or test part of a split.

    Equal patients, and scans of equal bytes or equal voxels, count as one patient. Test cases must not have chosen the
    base's checkpoint, either.

    Raises
    ------
    ConfigError
        One is, or the base is itself a run on top of another and has another split.
    StoreError
        The base's store is another one, and cannot be opened.
    """
    document = read_crop_run(base)
    other = store if document.store_sha256 == points_sha256(store) else open_store(document.store)
    before = read_split(base / SPLIT, other.case_ids)
    if document.malignancy and before != split:
        raise ConfigError(
            "has malignancy already, on top of a run whose training cases it does not know; leave out --split, so that "
            "its own split is used, or pass the run of nodule or not.",
            where=base,
        )
    for learned, judged, what in (
        (before.train, (*split.validation, *split.test), "trained"),
        (before.validation, split.test, "chose the checkpoint of"),
    ):
        known = {key for case_id in learned for key in _identity(other[case_id])}
        met = [case_id for case_id in judged if known.intersection(_identity(store[case_id]))]
        if met:
            raise ConfigError(
                f"{len(met)} cases of validation or test are of patients who {what} this run, such as {met[0]}. Leave "
                "out --split, so that the split of this run is used.",
                where=base,
            )


def _identity(case: Case) -> set[tuple[str, str]]:
    """Return what tells that two cases are of one patient."""
    row = make_manifest_row(case.info)
    keys = {"patient": row.patient_id, "bytes": row.source_sha256, "voxels": row.fingerprint}
    return {(name, value) for name, value in keys.items() if value is not None}


def find_samples(store: Store, case_ids: Sequence[str], config: CropConfig, *, malignancy: bool) -> Samples:
    """Return the samples of some cases, with at most `config.negatives` negatives for each positive.

    Raises
    ------
    StoreError
        One of the classes is missing.
    """
    cases = [case for case in (store[case_id] for case_id in case_ids) if case.points is not None]
    samples = (
        find_malignancy_samples(cases, ratings=are_rated(store.values()))
        if malignancy
        else join_samples([find_nodule_samples(case) for case in cases])
    )
    for positive, what in MALIGNANT if malignancy else NEEDED:
        if not samples.of(positive=positive):
            raise StoreError(
                f"{len(cases)} cases with points of the split have no {what}. Ingest the store with points "
                + ("that have malignancy." if malignancy else "and candidates (--points, --candidates)."),
                where=store.root,
            )
    return keep_negatives(samples, config.negatives, np.random.default_rng((config.seed, len(case_ids))))


def check_started(run: Path, config: CropConfig, model: CropRunModel) -> None:
    """Check that a run that has started has these settings and this store.

    Raises
    ------
    ConfigError
        It has others.
    """
    before = read_crop_config(run / CONFIG)
    names = [one.name for one in dataclasses.fields(config) if getattr(before, one.name) != getattr(config, one.name)]
    if names:
        differing = "; ".join(f"{name} {getattr(before, name)} -> {getattr(config, name)}" for name in names)
        raise ConfigError(
            f"contains a run with other settings ({differing}). Use the same settings, another folder, or --overwrite.",
            where=run,
        )
    earlier = read_crop_run(run)
    if earlier.malignancy != model.malignancy or earlier.base_sha256 != model.base_sha256:
        raise ConfigError(
            "contains a run of another kind, or one that started from other weights. Use another folder, or "
            "--overwrite.",
            where=run,
        )
    if earlier.store_sha256 != model.store_sha256:
        raise ConfigError(
            f"the cases or points of {model.store} have changed since the run started. Restore the store, use "
            "another folder, or --overwrite.",
            where=run,
        )


def remove_crop_run(run: Path) -> None:
    """Remove the files of an earlier run from its folder; other files stay.

    Raises
    ------
    ConfigError
        The folder is not the run of a classifier.
    """
    if not run.exists() or is_empty(run):
        return
    if not is_crop_run(run):
        raise ConfigError("is not the run of a classifier, so --overwrite does not remove it.", where=run)
    files = [path for path in run.iterdir() if path.name in FILES or path.name.startswith("events.out.tfevents")]
    for path in sorted(files, key=lambda path: path.name == MODEL):  # MODEL last: it marks the folder as a run's
        path.unlink(missing_ok=True)


def write_run(run: Path, config: CropConfig, split: Split, model: CropRunModel, data: tuple[Samples, Samples]) -> None:
    """Write the documents of a run and the tables of its samples."""
    write_json(run / MODEL, to_document(model))
    write_split(run / SPLIT, split)
    write_bytes(run / CONFIG, to_toml(config).encode())
    rows = [
        {
            "part": part,
            "case_id": one.case_id,
            **dict(zip(("x_mm", "y_mm", "z_mm"), one.xyz_mm, strict=True)),
            "class": int(one.positive),
            "diameter_mm": one.diameter_mm,
        }
        for part, samples in zip(("train", "validation"), data, strict=True)
        for one in samples.used
    ]
    write_csv(run / SAMPLES, rows)
    left_out: list[LeftOutSample] = [one for samples in data for one in samples.left_out]
    write_csv(run / LEFT_OUT, [to_document(one) for one in left_out], ("case_id", "what", "reason"))


def open_crops(path: Path, store: Store, samples: Samples) -> CropArray:
    """Map the crops of samples, cutting them first unless the file is complete: int16[n, 60, 60, 60], HU.

    One scan is in memory at a time.

    Raises
    ------
    ConfigError
        The file belongs to other samples.
    """
    shape = (len(samples.used), *[STORED_SIDE] * 3)
    if not path.exists():
        by_case: dict[str, list[int]] = {}
        for index, sample in enumerate(samples.used):
            by_case.setdefault(sample.case_id, []).append(index)
        with atomic_write(path) as aside, progress("cut crops", len(samples.used), "crops") as advance:
            file = np.lib.format.open_memmap(aside, mode="w+", dtype=np.int16, shape=shape)
            for case_id, indices in by_case.items():
                volume = store[case_id].image[:]
                for index in indices:
                    file[index] = cut_crop(volume, store[case_id].affine, samples.used[index].xyz_mm, STORED_SIDE)
                advance(len(indices), case_id)
            file.flush()
            del file
    try:
        crops: CropArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"is damaged ({error}); delete it, and run the command again.", where=path) from error
    if crops.shape != shape or crops.dtype != np.int16:
        raise ConfigError("has the crops of other samples; delete it, and the command cuts them again.", where=path)
    return crops


def hash_base(run: Path | None) -> str | None:
    """Return the hash of the best weights of a run; None without one."""
    if run is None:
        return None
    read_crop_run(run)
    if not (run / BEST).exists():
        raise ModelError(f"has no trained network ({BEST}); run `slicemill train --crops` first.", where=run)
    return sha256_of_file(run / BEST)


def to_tensor(crop: CropArray) -> torch.Tensor:
    """Return a crop of the mapped file as a tensor int16[60, 60, 60] of its own."""
    return torch.from_numpy(np.array(crop))
