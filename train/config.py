"""The settings of a training run: one frozen record, written to and read from TOML."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from slicemill.common.documents import from_document, from_toml
from slicemill.common.errors import ConfigError, InputError, UsageError
from slicemill.common.files import read_text
from slicemill.ct.window import Window
from slicemill.store.model_card import CONTEXTS, MAX_MM, MAX_SIDE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

KINDS = ("mirror", "move", "elastic", "noise", "blur", "contrast", "gamma", "lowres")
"""Kinds of augmentation, in the order in which they are applied; see `slicemill.train.data.augment`."""
MAX_BATCH = 4096
RANGES: dict[str, tuple[float, float]] = {
    "depth": (1, 6),
    "context_spacing_mm": (0, MAX_MM),
    "spacing_mm": (0, 10),
    "width": (1, 512),
    "stem": (1, 2),
    "loader_threads": (0, 256),
    "oblique": (0, 8),
    "lesion_balance": (0, 1),
    "augment": (0, 1),
    "mining": (0, 20),
}
"""Lowest and highest value of a setting."""
NOT_NEGATIVE = (
    "steps",
    "max_minutes",
    "save_minutes",
    "patience",
    "weight_decay",
    "tumor_share",
    "organ_share",
    "hard_share",
    "test",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run. The defaults suit CTs of one organ with tumors."""

    context: int = 3
    """Slices in the network's input: 1, 3, 5 or 7; the middle one is labeled."""
    context_spacing_mm: float = 0.0
    """Distance between the slices of the input, mm; 0 uses adjacent slices."""
    size: int = 0
    """Side in pixels that every slice is padded or cropped to; 0 uses the size of the largest slice of the store."""
    crop: int = 0
    """Side in pixels of training crops; 0 trains on full slices. Validation always uses full slices."""
    spacing_mm: float = 0.0
    """In-plane pixel size that slices are resampled to, and back at inference, mm; 0 keeps that of the scan."""
    width: int = 16
    """Channels of the first level; each level down doubles them."""
    depth: int = 4
    """Levels below the first; slices must be a multiple of 2**depth, or of 2 * 2**depth with a stem of 2."""
    stem: int = 1
    """Side of the squares of pixels that the first layer joins, 1 or 2; 2 takes a quarter of the time, and labels less
    sharply."""
    window_low: float = -200.0
    """Lower end of the network's HU window."""
    window_high: float = 300.0
    """Upper end of the network's HU window."""
    batch: int = 16
    """Slices per step, over all processes; 0 (auto) measures how many fit into the GPU's memory."""
    epochs: int = 40
    """Number of epochs."""
    steps: int = 0
    """Batches per epoch; 0 makes an epoch as long as the number of training slices."""
    max_minutes: float = 0.0
    """Time limit in minutes; the learning rate falls to zero in time. 0 means no limit."""
    save_minutes: float = 5.0
    """Minutes between checkpoints within an epoch: a kill loses at most this. Each epoch ends with a checkpoint."""
    patience: int = 0
    """Stop after this many epochs without a better validation Dice; 0 never stops early."""
    optimizer: Literal["muon", "adamw", "sgd"] = "muon"
    """Muon, which learned more on phantoms in the same time (`slicemill.train.network.muon`), AdamW, or SGD with
    Nesterov momentum of 0.99 as in nnU-Net (whose learning_rate is 1e-2)."""
    decay: Literal["cosine", "poly"] = "cosine"
    """Decay of the learning rate: cosine, or poly: (1 - done) ** 0.9."""
    norm: Literal["batch", "instance"] = "batch"
    """Batch norm is free after export (it folds into the convolutions); instance norm suits small batches."""
    deep_supervision: bool = False
    """Also train the decoder's coarser levels, as nnU-Net does; the exported network is the same."""
    learning_rate: float = 2e-3
    """Highest learning rate."""
    weight_decay: float = 1e-2
    """Weight decay of the optimizer."""
    averaging: float = 0.99
    """Decay per step of the running average of the weights, which is validated and exported; 0 turns it off."""
    tumor_share: float = 0.5
    """Share of the training slices that contain tumor."""
    organ_share: float = 0.3
    """Share of the training slices with other labels but no tumor; the rest is drawn from all slices."""
    hard_share: float = 0.0
    """Share of the training slices drawn in proportion to their last training loss."""
    mining: int = 0
    """How often in a run, at equal distances, whole training scans are segmented; hard slices are from then on those
    with false tumor pixels, drawn by their number. 0 never does."""
    lesion_balance: float = 0.5
    """0 gives each slice with tumor the same weight, so large lesions dominate; 1 gives each lesion the same weight."""
    tumor_weight: float = 1.0
    """Weight of the tumor in Dice and cross-entropy; every other class weighs 1."""
    ignore: str = ""
    """Name of a label whose pixels are excluded from training and scores (not annotated, uncertain). If empty, a label
    called ``ignore`` is."""
    oblique: int = 0
    """Slices above and below that a tilted plane may reach at the border of a slice; 0 turns tilting off."""
    augment: float = 0.4
    """Strength of the random changes, 0 to 1: scales their ranges and the share of slices that each one changes."""
    augmentations: tuple[str, ...] | str = " ".join(KINDS)
    """Kinds of random changes, as names; kept and written as one string with spaces. Read them from `kinds`."""
    validation: float = 0.15
    """Share of the patients for validation, which chooses the best checkpoint."""
    test: float = 0.2
    """Share of the patients that training never sees."""
    loader_threads: int = 0
    """Threads that decode slices ahead; 0 is one per core, or sixteen for a store in a bucket."""
    seed: int = 0
    """Seed of the split, the sampling and the weights."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """fp32, or mixed bf16 or fp16 (with a loss scaler); auto is bf16 on CUDA and CPUs with fast bf16, else fp32."""
    compile: bool = False
    """Use torch.compile: a minute or more to compile, then faster steps on most GPUs."""

    def __post_init__(self) -> None:
        """Check every setting, and combinations of settings.

        Raises
        ------
        ConfigError
            The message names the setting, its value and the rule.
        """
        if not isinstance(self.augmentations, str):
            object.__setattr__(self, "augmentations", " ".join(self.augmentations))
        for name, choices in CHOICES.items():
            self._require(getattr(self, name) in choices, name, f"must be {_join_choices(choices)}")
        for name, (low, high) in RANGES.items():
            self._require(low <= getattr(self, name) <= high, name, f"must be between {low:g} and {high:g}")
        for name in NOT_NEGATIVE:
            self._require(0 <= getattr(self, name) < math.inf, name, "must not be negative")
        self._check_values()
        self._check_combinations()
        Window(self.window_low, self.window_high)

    def _require(self, holds: bool, name: str, rule: str) -> None:  # noqa: FBT001 (what the rule evaluates to)
        if not holds:
            raise UsageError(f"{name} = {getattr(self, name)}: {rule}.")

    def _check_values(self) -> None:
        """Check the settings with other rules than choices and ranges."""
        auto = "or 0 (auto: as many as fit into a GPU's memory)"
        self._require(self.context in CONTEXTS, "context", f"must be {_join_choices(CONTEXTS)}")
        self._require(0 <= self.batch <= MAX_BATCH, "batch", f"must be between 1 and {MAX_BATCH}, {auto}")
        self._require(self.epochs >= 1, "epochs", "must be at least 1")
        self._require(0 < self.learning_rate < math.inf, "learning_rate", "must be above 0")
        self._require(0 <= self.averaging < 1, "averaging", "must be at least 0 and below 1")
        self._require(0 < self.tumor_weight <= 100, "tumor_weight", "must be above 0 and at most 100")
        self._require(0 <= self.seed < 2**63, "seed", "must not be negative, and must be below 2**63")
        self._require(set(self.kinds) <= set(KINDS), "augmentations", f"must be names of {', '.join(KINDS)}")
        self._require(self.validation > 0, "validation", "must be above 0")

    def _check_combinations(self) -> None:
        """Check the settings that depend on each other."""
        step, why = self.size_multiple, "2**depth" if self.stem == 1 else "stem * 2**depth"
        if not (0 <= self.size <= MAX_SIDE and self.size % step == 0):
            raise UsageError(f"size = {self.size}: must be a multiple of {step} ({why}) up to {MAX_SIDE}, or 0.")
        if self.crop and not (2 * step <= self.crop <= MAX_SIDE and self.crop % step == 0):
            raise UsageError(
                f"crop = {self.crop}: must be a multiple of {step} ({why}) from {2 * step} to {MAX_SIDE}, or 0."
            )
        if self.tumor_share + self.organ_share + self.hard_share > 1 + 1e-9:
            raise UsageError(
                f"tumor_share = {self.tumor_share}, organ_share = {self.organ_share}, "
                f"hard_share = {self.hard_share}: their sum must not exceed 1."
            )
        if self.mining and not self.hard_share:
            raise UsageError(f"mining = {self.mining}: needs a hard_share above 0, the share of the slices it finds.")
        if not self.validation + self.test < 1:
            raise UsageError(
                f"validation = {self.validation}, test = {self.test}: their sum must be below 1, so that "
                "patients are left to train on."
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of random changes that `augmentations` names."""
        return tuple(str(self.augmentations).split())

    @property
    def size_multiple(self) -> int:
        """Return the number that height and width of the network's slices are multiples of."""
        return self.stem << self.depth

    @property
    def window_spacing_mm(self) -> float | None:
        """Return the distance between input slices as in a model's metadata, mm; None for adjacent slices."""
        return self.context_spacing_mm or None

    @property
    def network_spacing_mm(self) -> float | None:
        """Return the in-plane pixel size as in a model's metadata, mm; None for that of the scan."""
        return self.spacing_mm or None

    def replace(self, **values: Any) -> "Config":
        """Return a copy with the values that are not None.

        Raises
        ------
        ConfigError
            A name is not a setting, or a value has the wrong type or breaks a rule.
        """
        requested = {name: value for name, value in values.items() if value is not None}
        for name in requested:
            if name not in SETTING_TYPES:
                raise UsageError(f"{name}: is not a setting; the settings are {', '.join(SETTING_TYPES)}.")
        return dataclasses.replace(
            self,
            **{
                name: value
                if name in CHOICES  # checked with the other rules, whose message names the choices
                else from_document(SETTING_TYPES[name], value, f"{name} = {value!r}", error=UsageError)
                for name, value in requested.items()
            },
        )


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "nodules": {
        "context": 7,
        "context_spacing_mm": 2.5,
        "spacing_mm": 0.75,
        "crop": 128,
        "window_low": -1000.0,
        "window_high": 400.0,
        "tumor_share": 0.4,
        "organ_share": 0.2,
        "hard_share": 0.2,
        "mining": 2,
        "lesion_balance": 1.0,
        "tumor_weight": 4.0,
    },
}
"""Settings that differ from the defaults, by recipe.

``nodules`` is for nodules in the lung, from points (`slicemill ingest --points`): the neighbors tell a nodule from a
vessel, and every nodule counts the same whatever its size. A fifth of the slices shows lung without nodules, a fifth
false alarms, and a fifth a crop from anywhere: without these, lungs had a Dice of 0.97 on crops and 0.5 on whole
slices. Crops of 128 pixels are 96 mm, three times the largest nodules. In 1,200 steps on synthetic chests, weights of 1
and of 8 learned about alike; 4 lies between, and was not compared."""

SETTING_TYPES: dict[str, Any] = get_type_hints(Config)
CHOICES = {name: get_args(kind) for name, kind in SETTING_TYPES.items() if get_origin(kind) is Literal}
"""The allowed values of the settings that have a closed choice."""


def make_config(recipe: str | None = None) -> Config:
    """Return the settings of a recipe, by default the defaults.

    Raises
    ------
    UsageError
        There is no such recipe.
    """
    if recipe is None:
        return Config()
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe}: must be one of {', '.join(RECIPES)}.")
    return Config().replace(**RECIPES[recipe])


def read_config(path: Path, base: Config | None = None) -> Config:
    """Read settings from TOML. A setting that the file does not name is that of `base`, by default its default.

    Raises
    ------
    ConfigError
        The file cannot be read, or a name or a value in it is wrong.
    """
    try:
        text = read_text(path)
    except InputError as error:
        raise ConfigError(error.reason, where=path) from error
    values = from_toml(dict[str, Any], text, str(path), error=ConfigError)
    try:
        return (base or Config()).replace(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_toml(config: "DataclassInstance") -> str:
    """Return settings, a record of texts and numbers, as TOML; `read_config` reads those of a `Config` back."""
    lines = []
    for name, value in dataclasses.asdict(config).items():
        is_json = isinstance(value, str | bool)  # TOML writes strings and truth values as JSON does
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False) if is_json else repr(value)}")
    return "\n".join(lines) + "\n"


def _join_choices(choices: Sequence[object]) -> str:
    """Return choices as words.

    >>> _join_choices((1, 3, 5))
    '1, 3 or 5'
    """
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}"
