"""Result of a run: one variant that was trained on one fold with one seed. It is a JSON file, written last."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicemill.common.errors import ConfigError
from slicemill.common.files import to_json

QUALITY_RUN = "quality run"
"""Kind of the result of a slicemill training."""


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """One variant, trained on one fold with one seed."""

    variant: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder and of its result."""
        return f"{self.variant}_fold-{self.fold}_seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.variant}, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Inputs of a run. A finished result is reused only if its inputs are the same."""

    collection: str
    settings: Mapping[str, Any]
    """All settings of the training, as JSON has them."""
    export: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Any] = field(default_factory=lambda: {"tuned": False})
    """Whether post-processing was tuned; missing in results of earlier versions, which did not tune."""
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Case ids of each part of the fold."""


def plain_json(values: object) -> Any:
    """Return values as a JSON file would hold them."""
    return json.loads(to_json(values))


@dataclass(frozen=True, kw_only=True)
class RegionVolumes:
    """Overlap of one region in one case."""

    dice: float | None
    """Dice; None if neither mask has the region."""
    reference_ml: float
    predicted_ml: float
    overlap_ml: float


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """Scores of one case."""

    case_id: str
    patient_id: str
    part: str
    """Part of the fold: validation or test."""
    regions: Mapping[str, RegionVolumes]
    lesions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Band of volume -> reference lesions found, and all; missing in early results, empty without a tumor label."""


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """Summary of a slicemill training."""

    epochs: int
    best_epoch: int
    """The epoch that was kept."""
    minutes: float
    slices_per_second: float
    """Mean over epochs."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    benchmark: str
    date: str


@dataclass(frozen=True, kw_only=True)
class _Result(RunInputs, FoldRun, _Kind):
    @property
    def run(self) -> FoldRun:
        """Return the run of this result."""
        return FoldRun(variant=self.variant, fold=self.fold, seed=self.seed)

    @property
    def inputs(self) -> RunInputs:
        """Return the inputs of the run."""
        return RunInputs(
            collection=self.collection, settings=self.settings, export=self.export, tune=self.tune, split=self.split
        )


@dataclass(frozen=True, kw_only=True)
class RunResult(_Result):
    """Result of a slicemill training."""

    training: TrainingSummary
    minutes: float
    """Time of all commands, minutes."""
    cases: tuple[ScoredCase, ...]
    """Scores of the validation and test cases."""
    machine: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class NnunetResult(_Result):
    """Result of a training of nnU-Net."""

    training: Mapping[str, Any]
    """Report of the training, as ``nnunet/peer.py`` reports it."""
    cases: tuple[ScoredCase, ...]
    """Scores of the test cases."""
    machine: Mapping[str, Any]


Result = RunResult | NnunetResult


@dataclass(frozen=True, kw_only=True)
class ExperimentFolder:
    """Paths of an experiment."""

    out: Path
    data: Path
    """The collection, whose scans `infer` reads."""

    @property
    def store(self) -> Path:
        """Return the slice store."""
        return self.out / "store"

    def split_file(self, fold: int) -> Path:
        """Return the file of a fold."""
        return self.out / "folds" / f"fold-{fold}.json"

    def run_folder(self, run: FoldRun) -> Path:
        """Return the folder that a run works in."""
        return self.out / "runs" / run.name

    def result_file(self, run: FoldRun) -> Path:
        """Return the result of a run. If it exists, the run is finished."""
        return self.out / "results" / f"{run.name}.json"


def check_same_inputs(path: Path, before: RunInputs, now: RunInputs) -> None:
    """Refuse a finished result that was made from other inputs. A setting that only one of the two has is ignored.

    Raises
    ------
    ConfigError
        The inputs differ.
    """
    differing = []
    for part in ("settings", "export", "tune", "split"):
        old, new = getattr(before, part), getattr(now, part)
        names = [name for name in old.keys() & new.keys() if old[name] != new[name]]
        differing += [
            f"the cases of {name}" if part == "split" else f"{name} {old[name]} -> {new[name]}" for name in names
        ]
    if before.collection != now.collection:
        differing.append(f"collection {before.collection} -> {now.collection}")
    if differing:
        raise ConfigError(
            f"{path}: was made with other inputs ({'; '.join(sorted(differing))}). "
            "Use another --out, or remove the file to do the run again."
        )
