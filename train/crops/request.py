"""Options of `slicemill train --crops`, and what they are checked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import UsageError
from slicemill.common.files import Location

SLICE_OPTIONS = "it is an option for slices, and does not apply to --crops. Remove it."


@dataclass(frozen=True, kw_only=True)
class CropRequest:
    """Which classifier to train."""

    store: Location
    run: Path
    config: Path | None = None
    """Settings as TOML (`slicemill.train.crops.settings.CropConfig`)."""
    split: Path | None = None
    malignancy: bool = False
    base: Path | None = None
    """Run of nodule or not, with which a training of malignancy starts."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check that malignancy has a base, and nothing else has one.

        Raises
        ------
        UsageError
            One of --malignancy and --from is missing.
        """
        if self.malignancy != (self.base is not None):
            raise UsageError(
                "--malignancy: needs --from RUN, a run of `slicemill train --crops` that tells nodules from others."
                if self.malignancy
                else "--from: applies to --crops --malignancy."
            )

    def train(self, settings: Mapping[str, object], log: Callable[[str], None]) -> None:
        """Train with the settings that are not None, which replace those of the TOML."""
        from slicemill.train.crops.loop import train_crops
        from slicemill.train.crops.settings import CropConfig, read_crop_config

        config = (read_crop_config(self.config) if self.config else CropConfig()).replace(**settings)
        train_crops(
            self.store,
            self.run,
            config,
            split_file=self.split,
            base=self.base,
            overwrite=self.overwrite,
            log=log,
        )


def refuse_slice_options(options: Mapping[str, object]) -> None:
    """Refuse options of the training on slices.

    Raises
    ------
    UsageError
        One of them is not None.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')}: {SLICE_OPTIONS}")
