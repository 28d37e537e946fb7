"""The settings of `slicemill train --crops`: one frozen record, written to and read from TOML."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from slicemill.common.documents import from_document, from_toml
from slicemill.common.errors import ConfigError, InputError, UsageError
from slicemill.common.files import read_text
from slicemill.ct.window import Window

RANGES: dict[str, tuple[float, float]] = {
    "batch": (2, 4096),
    "epochs": (1, 100_000),
    "negatives": (1, 1000),
    "shift_mm": (0, 3),
    "rotation_degrees": (0, 45),
    "scale": (0, 0.1),
    "noise_hu": (0, 200),
    "offset_hu": (0, 200),
    "max_minutes": (0, 1e6),
    "weight_decay": (0, 10),
    "test": (0, 1),
    "seed": (0, 2**62),
}
"""Lowest and highest value of a setting. A crop is stored with a margin for this shift and scale."""


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Settings of the training of a classifier of candidates. The defaults suit nodules in the lung."""

    window_low: float = -1000.0
    """HU shown to the network as its lowest value."""
    window_high: float = 400.0
    """HU shown to the network as its highest value."""
    batch: int = 32
    """Crops per step, half of them of each class."""
    epochs: int = 100
    """Number of epochs; in each, about every positive crop is drawn once."""
    max_minutes: float = 0.0
    """Time limit of training in minutes; 0 means no limit."""
    learning_rate: float = 0.001
    """Highest learning rate: of Muon for convolutions, of AdamW for the rest."""
    weight_decay: float = 0.01
    """Weight decay, as a share of the learning rate."""
    negatives: int = 10
    """Negative crops that are kept for each positive one, at random; each crop takes 0.4 MB of the run folder."""
    shift_mm: float = 3.0
    """Largest shift along each axis: the error with which a segmentation places a candidate."""
    rotation_degrees: float = 20.0
    """Largest rotation, about any axis."""
    scale: float = 0.1
    """Largest change of size, as a share."""
    noise_hu: float = 25.0
    """Largest standard deviation of the noise."""
    offset_hu: float = 20.0
    """Largest HU that are added to a crop."""
    validation: float = 0.15
    """Share of the patients for validation, which chooses the best checkpoint."""
    test: float = 0.2
    """Share of the patients that training never sees."""
    seed: int = 0
    """Seed of the split, the sampling and the weights."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises
        ------
        ConfigError
            The message names the setting, its value and the rule.
        """
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} = {value}: must be between {low:g} and {high:g}.")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate = {self.learning_rate}: must be above 0.")
        if not (self.validation > 0 and self.validation + self.test < 1):
            raise UsageError(
                f"validation = {self.validation}, test = {self.test}: validation must be above 0, their sum below 1."
            )
        Window(self.window_low, self.window_high)

    def replace(self, **values: Any) -> "CropConfig":
        """Return a copy with the values that are not None.

        Raises
        ------
        ConfigError
            A name is not a setting, or a value has the wrong type or breaks a rule.
        """
        types = get_type_hints(CropConfig)
        requested = {name: value for name, value in values.items() if value is not None}
        for name in requested:
            if name not in types:
                raise UsageError(f"{name}: is not a setting of --crops; the settings are {', '.join(types)}.")
        return dataclasses.replace(
            self,
            **{
                name: from_document(types[name], value, f"{name} = {value!r}", error=UsageError)
                for name, value in requested.items()
            },
        )


def read_crop_config(path: Path) -> CropConfig:
    """Read settings from TOML. A setting that the file does not name keeps its default.

    Raises
    ------
    ConfigError
        The file cannot be read, or a name or a value in it is wrong.
    """
    try:
        values = from_toml(dict[str, Any], read_text(path), str(path), error=ConfigError)
    except InputError as error:
        raise ConfigError(error.reason, where=path) from error
    try:
        return CropConfig().replace(**values)
    except ConfigError as error:
        raise ConfigError(str(error), where=path) from error
