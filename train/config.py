"""What a training run is asked to do: one frozen value, written to and read from TOML."""

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.common.errors import ConfigError, UsageError
from slicemill.ct.window import Window

KINDS = ("mirror", "move", "elastic", "noise", "blur", "contrast", "gamma", "lowres")
"""Kinds of random changes, in the order in which they come; see `slicemill.train.data.augment`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run; the defaults suit CTs of one organ with tumors."""

    context: int = 3
    """Slices that the network sees around the one it labels: 1, 3, 5 or 7."""
    context_spacing_mm: float = 0.0
    """Distance of the slices of a window in mm, whatever the scan's own; 0 takes those beside each other."""
    size: int = 0
    """Side in pixels that every slice is padded or cropped to; 0 takes the largest slice of the store."""
    crop: int = 0
    """Side in pixels of the parts of slices that are trained on; 0 trains on whole slices. Validation sees whole slices."""
    spacing_mm: float = 0.0
    """In-plane pixel size in mm that slices are resampled to on the device, and back at inference; 0 keeps the scan's own."""
    width: int = 16
    """Channels of the first level; each level down doubles them."""
    depth: int = 4
    """Levels below the first; slices must be a multiple of 2**depth."""
    window_low: float = -200.0
    window_high: float = 300.0
    """HU window that the network sees."""
    batch: int = 16
    """Slices a step, over all processes together; 0 (auto) measures how many a GPU's memory takes."""
    epochs: int = 40
    steps: int = 0
    """Batches an epoch; 0 covers as many slices as the training part has."""
    max_minutes: float = 0.0
    """End, with the learning rate brought down in time, after so many minutes; 0 is no limit."""
    save_minutes: float = 5.0
    """Minutes between checkpoints within an epoch: what a kill can cost. One is written after every epoch, too."""
    patience: int = 0
    """End after so many epochs without a better validation Dice; 0 goes on to the end."""
    optimizer: str = "adamw"
    """adamw, or sgd: with Nesterov momentum of 0.99, as nnU-Net has it (its learning_rate is 1e-2)."""
    decay: str = "cosine"
    """How the learning rate falls: cosine, or poly: (1 - done) ** 0.9."""
    norm: str = "batch"
    """batch, which costs nothing after export (it folds into the convolutions), or instance, for small batches."""
    deep_supervision: bool = False
    """Also judge the decoder's coarser levels in training, as nnU-Net does; the exported network is the same."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    averaging: float = 0.99
    """Decay per step of the running average of the weights, which is what is validated and exported; 0 takes the last weights."""
    tumor_share: float = 0.5
    """Share of the training slices that hold tumor."""
    organ_share: float = 0.3
    """Share of the training slices that hold other labels but no tumor; the rest comes from everywhere."""
    hard_share: float = 0.0
    """Share of the training slices drawn in proportion to their loss when they were last seen."""
    lesion_balance: float = 0.5
    """0 draws each slice with tumor alike, so that large lesions win; 1 draws each lesion alike."""
    tumor_weight: float = 1.0
    """Weight of the tumor in Dice and cross-entropy; every other class weighs 1."""
    ignore: str = ""
    """Name of a label whose pixels count for nothing, in training and in scores (not annotated, uncertain)."""
    oblique: int = 0
    """Slices that a tilted plane may reach above and below at the border of a slice; 0 keeps to the stored slices."""
    augment: float = 0.4
    """Strength of the random changes, 0 to 1: scales their ranges and the share of the slices that each is drawn for."""
    augmentations: str = " ".join(KINDS)
    """Kinds of random changes: names separated by spaces; see `slicemill.train.data.augment`."""
    validation: float = 0.15
    """Share of the patients kept for choosing the best checkpoint."""
    test: float = 0.2
    """Share of the patients that training never sees."""
    loader_threads: int = 0
    """Threads that decode ahead; 0 is one a core, or sixteen for a store in a bucket."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (mixed; fp16 with a loss scaler), or auto: bf16 on CUDA and on CPUs that multiply it, else fp32."""
    compile: bool = False
    """Run the network through torch.compile: a minute or more of waiting first, faster steps afterwards on most GPUs."""

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not 1 <= self.depth <= 6:
            raise UsageError(f"depth = {self.depth}: must lie in 1 to 6.")
        rules = (
            (self.context in (1, 3, 5, 7), "context", "must be 1, 3, 5 or 7"),
            (
                0 <= self.size <= 4096 and self.size % 2**self.depth == 0,
                "size",
                f"must be a multiple of {2**self.depth} up to 4096",
            ),
            (0 <= self.context_spacing_mm <= 100, "context_spacing_mm", "must lie in 0 to 100"),
            (
                self.crop == 0 or (2 ** (self.depth + 1) <= self.crop <= 4096 and self.crop % 2**self.depth == 0),
                "crop",
                f"must be a multiple of {2**self.depth} from {2 ** (self.depth + 1)} to 4096, or 0",
            ),
            (0 <= self.spacing_mm <= 10, "spacing_mm", "must lie in 0 to 10"),
            (1 <= self.width <= 512, "width", "must lie in 1 to 512"),
            (
                0 <= self.batch <= 4096,
                "batch",
                "must lie in 1 to 4096, or be 0 (auto: as many as a GPU's memory takes)",
            ),
            (self.epochs >= 1, "epochs", "must be at least 1"),
            (self.steps >= 0, "steps", "must not be negative"),
            (0 <= self.max_minutes < math.inf, "max_minutes", "must not be negative"),
            (0 < self.learning_rate < math.inf, "learning_rate", "must be above 0"),
            (0 <= self.weight_decay < math.inf, "weight_decay", "must not be negative"),
            (0 <= self.seed < 2**63, "seed", "must not be negative, and below 2**63"),
            (0 <= self.loader_threads <= 256, "loader_threads", "must lie in 0 to 256"),
            (self.precision in ("auto", "fp32", "bf16", "fp16"), "precision", "must be auto, fp32, bf16 or fp16"),
            (0 <= self.save_minutes < math.inf, "save_minutes", "must not be negative"),
            (set(self.kinds) <= set(KINDS), "augmentations", f"may name {', '.join(KINDS)}"),
            (0 <= self.oblique <= 8, "oblique", "must lie in 0 to 8"),
            (0 <= self.lesion_balance <= 1, "lesion_balance", "must lie in 0 to 1"),
            (0 < self.tumor_weight <= 100, "tumor_weight", "must lie above 0 and up to 100"),
            (self.patience >= 0, "patience", "must not be negative"),
            (self.optimizer in ("adamw", "sgd"), "optimizer", "must be adamw or sgd"),
            (self.decay in ("cosine", "poly"), "decay", "must be cosine or poly"),
            (self.norm in ("batch", "instance"), "norm", "must be batch or instance"),
            (0 <= self.averaging < 1, "averaging", "must lie in 0 to 1, 1 left out"),
            (0 <= self.augment <= 1, "augment", "must lie in 0 to 1"),
            (
                min(self.tumor_share, self.organ_share, self.hard_share) >= 0,
                "tumor_share",
                "organ_share and hard_share must not be negative",
            ),
            (
                self.tumor_share + self.organ_share + self.hard_share <= 1 + 1e-9,
                "tumor_share",
                "organ_share and hard_share must not exceed 1 together",
            ),
            (
                self.validation > 0 and self.test >= 0 and self.validation + self.test < 1,
                "validation",
                "and test must leave patients to train on",
            ),
        )
        for holds, name, rule in rules:
            if not holds:
                raise UsageError(f"{name} = {getattr(self, name)}: {rule}.")
        Window(self.window_low, self.window_high)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of random changes that `augmentations` names."""
        return tuple(self.augmentations.split())

    @property
    def window_spacing_mm(self) -> float | None:
        """Return the distance of a window's slices as it stands in a model: None for slices beside each other."""
        return self.context_spacing_mm or None

    @property
    def wanted_spacing_mm(self) -> float | None:
        """Return the in-plane pixel size as it stands in a model: None for the scan's own."""
        return self.spacing_mm or None

    def changed(self, **values: Any) -> "Config":
        """Return a copy with the values that are not None.

        Raises
        ------
        ConfigError
            A name is no setting, or a value is of the wrong type or cannot be.
        """
        fields: dict[str, type] = {field.name: type(field.default) for field in dataclasses.fields(self)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            if value is None:
                continue
            if name not in fields:
                raise UsageError(f"{name}: is no setting; the settings are {', '.join(fields)}.")
            if fields[name] is float and type(value) is int:
                value = float(value)  # noqa: PLW2901 (TOML writes 1 for 1.0)
            if type(value) is not fields[name]:
                raise UsageError(f"{name} = {value!r}: must be {fields[name].__name__}.")
            given[name] = value
        return dataclasses.replace(self, **given)


def read_config(path: Path) -> Config:
    """Read settings from TOML; what is not in it keeps its default.

    Raises
    ------
    ConfigError
        It cannot be read, or a name or a value in it cannot be.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error
    try:
        return Config().changed(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_toml(config: Config) -> str:
    """Return the settings as TOML, which `read_config` reads back."""
    lines = []
    for name, value in dataclasses.asdict(config).items():
        quoted = isinstance(value, str | bool)  # JSON's strings and truth values are TOML's, too
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False) if quoted else repr(value)}")
    return "\n".join(lines) + "\n"
