"""Design of an experiment: variants of the training settings, read from one TOML file.

::

    labels = "tumor=1"            # names of the collection's label values, if its files do not name them
    folds = 4                     # each patient is in the test part of one of them
    seeds = [0]
    epochs = 12                   # the same number of steps for every variant, however busy the machine is
    steps = 25                    # an epoch
    minutes = 0.0                 # above 0: every training ends after so many minutes instead
    min_lesion_ml = 0.5           # of `slicemill export`
    tune = true                   # `slicemill tune` on the validation part of each fold

    [settings]                    # of `slicemill train --config`, shared by all variants
    window_low = -100.0

    [variants.default]            # the first one is the reference
    [variants.one-slice]          # a variant lists the settings that it changes
    context = 1
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicemill.common.documents import from_document, from_toml
from slicemill.common.errors import ConfigError
from slicemill.train.config import Config

MANY_EPOCHS = 100_000
"""Epochs of a training with a time limit, which ends it long before."""
VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class ExperimentDesign:
    """Variants of the settings, and how often each is trained."""

    labels: str | None = None
    """Names of the label values, like tumor=1."""
    folds: int = 4
    seeds: tuple[int, ...] = (0,)
    epochs: int = 12
    steps: int = 25
    """Batches of an epoch."""
    minutes: float = 0.0
    """Above 0: minutes of a training, instead of its number of epochs."""
    min_lesion_ml: float = 0.0
    """Smaller tumors are removed after inference, ml; see `slicemill export --min-lesion-ml`."""
    tune: bool = False
    """Whether `slicemill tune` chooses the post-processing on the validation part of each fold."""
    phantom_size: int = 128
    """Side of a phantom's slices, pixels."""
    phantom_small_tumors: bool = False
    """Whether half of the phantoms' tumors have a radius of 4 to 8 mm."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ from the shared ones, by variant. The first variant is the reference."""

    def __post_init__(self) -> None:
        """Check the values, and the settings of every variant."""
        if not self.variants:
            raise ConfigError("an experiment needs at least one variant; write [variants.default] into its table.")
        for name in self.variants:
            if not VARIANT_NAME.fullmatch(name):
                raise ConfigError(f"variant {name!r}: use up to 40 characters of a-z, 0-9 and -.")
        for name, value, least in (("folds", self.folds, 2), ("epochs", self.epochs, 1), ("steps", self.steps, 1)):
            if value < least:
                raise ConfigError(f"{name} = {value}: must be at least {least}.")
        if not 0 <= self.minutes < math.inf:
            raise ConfigError(f"minutes = {self.minutes}: must be 0 (no limit) or above.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: list at least one, each once.")
        for name in self.variants:
            if any(self.config(name, seed).batch == 0 for seed in self.seeds):
                raise ConfigError(
                    f"variant {name}: batch = 0 (chosen by GPU memory) is not allowed in an experiment; set a number."
                )

    @property
    def total_steps(self) -> int:
        """Return the training steps of a run, at most."""
        return (MANY_EPOCHS if self.minutes else self.epochs) * self.steps

    @property
    def length(self) -> str:
        """Return the length of a training in words."""
        return f"{self.minutes:g} minutes" if self.minutes else f"{self.total_steps:,} steps"

    def config(self, variant: str, seed: int) -> Config:
        """Return the settings of a training.

        Raises
        ------
        ConfigError
            A setting is unknown or invalid; the message names the variant.
        """
        common: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "seed": seed}
        if self.minutes:
            common |= {"epochs": MANY_EPOCHS, "max_minutes": self.minutes}
        settings = {**self.settings, **self.variants[variant]}
        if "max_minutes" in settings:
            raise ConfigError(f"variant {variant}: max_minutes is not for a design; set minutes above [settings].")
        if fixed := sorted(common.keys() & settings.keys()):
            raise ConfigError(f"variant {variant}: {fixed[0]} is the same for all variants; set it above [settings].")
        try:
            return Config().replace(**settings, **common)
        except ConfigError as error:
            raise ConfigError(f"variant {variant}: {error}") from None


def read_design(path: Path) -> ExperimentDesign:
    """Read a design.

    Raises
    ------
    ConfigError
        The file cannot be read, or has an unknown key or an invalid value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error
    document = from_toml(dict[str, Any], text, str(path), error=ConfigError)
    known = [entry.name for entry in dataclasses.fields(ExperimentDesign)]
    if unknown := [name for name in document if name not in known]:
        raise ConfigError(f"{path}: {unknown[0]} is not a key of a design; the keys are {', '.join(known)}.")
    return from_document(ExperimentDesign, document, str(path), error=ConfigError)
