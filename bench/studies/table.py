"""What a study compares: named variants of the training settings, from one TOML file.

::

    labels = "tumor=1"            # names of the collection's label values, where nothing else says them
    folds = 4                     # each patient is in the test part of one of them
    seeds = [0]
    epochs = 12                   # the same number of steps for every variant, however busy the machine is
    steps = 25                    # an epoch
    min_lesion_ml = 0.5           # of `slicemill export`
    tune = true                   # `slicemill tune` on the validation part of each fold

    [settings]                    # of `slicemill train --config`, shared by all variants
    window_low = -100.0

    [variants.default]            # the first one is what the others are compared with
    [variants.one-slice]          # a variant is what it changes
    context = 1
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicemill.common.errors import ConfigError
from slicemill.train.config import Config

PARTS = ("validation", "test")
"""Parts of a fold that are scored: recipes are chosen by the first."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
KEYS = {"labels": str, "folds": int, "seeds": list, "epochs": int, "steps": int, "settings": dict, "variants": dict,
        "phantom_size": int, "min_lesion_ml": float, "tune": bool}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Table:
    """Variants of a recipe, and how often each is trained."""

    variants: Mapping[str, Mapping[str, Any]]
    """Name -> settings that differ from the shared ones; the first is the reference."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that all share."""
    labels: str | None = None
    """Names of the label values, like tumor=1."""
    folds: int = 4
    seeds: tuple[int, ...] = (0,)
    epochs: int = 12
    steps: int = 25
    """Batches an epoch."""
    min_lesion_ml: float = 0.0
    """Tumors smaller than this are removed after inference, as `slicemill export --min-lesion-ml` has it."""
    tune: bool = False
    """Whether post-processing is chosen on the validation part of each fold, as `slicemill tune` does it."""
    phantom_size: int = 128
    """Pixels along the side of a phantom's slices, where phantoms are asked for."""

    def __post_init__(self) -> None:
        """Check what cannot work, the settings of every variant too."""
        if not self.variants:
            raise ConfigError("a study needs at least one variant; write [variants.default] into its table.")
        for name in self.variants:
            if not NAME.fullmatch(name):
                raise ConfigError(f"variant {name!r}: a name is up to 40 of a-z, 0-9 and -, as it names files.")
        for name, value, least in (("folds", self.folds, 2), ("epochs", self.epochs, 1), ("steps", self.steps, 1)):
            if value < least:
                raise ConfigError(f"{name} = {value}: must be at least {least}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: name at least one, and each once.")
        for name in self.variants:
            for seed in self.seeds:
                if self.config(name, seed).batch == 0:
                    raise ConfigError(
                        f"variant {name}: batch = 0 takes what a GPU's memory allows; a study needs a number."
                    )

    def config(self, variant: str, seed: int) -> Config:
        """Return the settings of a training run.

        Raises
        ------
        ConfigError
            A setting does not exist or cannot work; the message names the variant.
        """
        own = {"epochs": self.epochs, "steps": self.steps, "seed": seed}
        given = {**self.settings, **self.variants[variant]}
        if fixed := sorted(own.keys() & given.keys()):
            raise ConfigError(
                f"variant {variant}: {fixed[0]} is the study's own and the same for all; set it above [settings]."
            )
        try:
            return Config().changed(**given, **own)
        except ConfigError as error:
            raise ConfigError(f"variant {variant}: {error}") from None


def read_table(path: Path) -> Table:
    """Read a table.

    Raises
    ------
    ConfigError
        It cannot be read, or holds what a table does not have.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error
    for name, value in values.items():
        if name not in KEYS:
            raise ConfigError(f"{path}: {name} is nothing that a table has; it has {', '.join(KEYS)}.")
        if type(value) is not KEYS[name]:
            raise ConfigError(f"{path}: {name} = {value!r}: must be {KEYS[name].__name__}.")
    for name, value in values.get("variants", {}).items():
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: variants.{name} = {value!r}: must be a table of settings.")
    if any(type(seed) is not int for seed in values.get("seeds", [])):
        raise ConfigError(f"{path}: seeds = {values['seeds']!r}: must be a list of whole numbers.")
    known = {name: value for name, value in values.items() if name not in ("seeds", "settings", "variants")}
    try:
        return Table(
            **known,
            settings=values.get("settings", {}),
            variants=values.get("variants", {}),
            seeds=tuple(values.get("seeds", (0,))),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
