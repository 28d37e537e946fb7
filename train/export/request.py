"""Options of the command `export` and of `slicemill.export_model`."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from slicemill.common.errors import ModelError, UsageError
from slicemill.store.model_card import ModelCard, Parity
from slicemill.train.export.model_file import FLAVORS, check, export


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Which network to write, and how."""

    run: Path
    """Folder of a training run."""
    model: Path
    """ONNX file to write."""
    store: Path | None = None
    """Store with the slices for the parity check; None takes that of the training run."""
    min_lesion_ml: float = 0.0
    """Tumors smaller than this, ml, are removed after inference; written to the model's metadata."""
    fp16: bool = False
    """Whether to write NAME.fp16.onnx too, for GPUs."""
    bytes_in: bool = False
    """Whether to write NAME.bytes.fp16.onnx too, for TensorRT, which does not support int16."""
    probability: bool = False
    """Whether the model outputs the probability of each class; inference gets slower."""
    size: tuple[int, int] | None = None
    """Height and width of the input slices, pixels; None takes those of the training slices."""

    def __post_init__(self) -> None:
        """Check the name of the file and the smallest lesion.

        Raises
        ------
        UsageError
            They are not possible.
        """
        if self.model.suffix != ".onnx":
            raise UsageError(f"{self.model}: the name of a model file must end in .onnx.")
        if not 0 <= self.min_lesion_ml < math.inf:
            raise UsageError(f"--min-lesion-ml {self.min_lesion_ml}: must be a volume in ml, 0 or more.")

    def write(self) -> dict[Path, ModelCard]:
        """Write the files and return the metadata of each; see `slicemill.train.export.model_file.export`.

        Raises
        ------
        ModelError
            The run trained a classifier, which has no labels.
        """
        from slicemill.train.crops.folder import is_crop_run

        if is_crop_run(self.run):
            raise ModelError(
                "is the run of a classifier; export it with the command `slicemill export`.", where=self.run
            )
        chosen = [FLAVORS[0], *([FLAVORS[1]] if self.fp16 else []), *([FLAVORS[2]] if self.bytes_in else [])]
        return export(
            self.run,
            self.model,
            flavors=[replace(flavor, probability=self.probability) for flavor in chosen],
            store_path=self.store,
            min_lesion_ml=self.min_lesion_ml,
            size=self.size,
        )

    def check(self) -> dict[Path, Parity]:
        """Compare existing files with the network; see `slicemill.train.export.model_file.check`."""
        return check(self.run, self.model, store_path=self.store)
