"""Options of the command `export` for a run that trained a classifier."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import ModelError, UsageError
from slicemill.common.files import sha256_of_file
from slicemill.store.crop_card import UNKNOWN, CropCard, CropParity, Finder
from slicemill.store.model_card import METADATA_KEY, decode_metadata
from slicemill.store.nodules_file import BUNDLE_SUFFIX, write_bundle


@dataclass(frozen=True, kw_only=True)
class CropExportRequest:
    """Which classifier to write, and how."""

    run: Path
    """Folder of a run of `slicemill train --crops`."""
    model: Path
    """ONNX file to write, or a file NAME.nodules of both models."""
    store: Path | None = None
    """Store for the crops of the parity check, if the run's were deleted; None takes that of the run."""
    segmentation: Path | None = None
    """Segmentation model whose candidates the classifier was trained on."""
    mirror: bool = False
    """Whether they are those of `infer --mirror`."""

    def __post_init__(self) -> None:
        """Check the name of the file.

        Raises
        ------
        UsageError
            It has another ending, or the segmentation model is missing: for a file of both, or to mirror.
        """
        if self.model.suffix not in (".onnx", BUNDLE_SUFFIX):
            raise UsageError(f"{self.model}: the name of a classifier must end in .onnx or {BUNDLE_SUFFIX}.")
        if self.model.suffix == BUNDLE_SUFFIX and self.segmentation is None:
            raise UsageError(f"{self.model}: holds two models; pass --segmentation SEG.onnx, too.")
        if self.mirror and self.segmentation is None:
            raise UsageError("--mirror: says how a segmentation finds candidates; pass --segmentation SEG.onnx, too.")

    def write(self, log: Callable[[str], None]) -> CropCard:
        """Write the file, say what became of its thresholds, and return the metadata of the classifier."""
        from slicemill.train.export.earlier import describe_thresholds, read_earlier_card

        earlier = read_earlier_card(self.model)
        card = self._write(earlier)
        log(describe_thresholds(self.model, earlier, card))
        return card

    def _write(self, earlier: CropCard | None) -> CropCard:
        from slicemill.train.export.crop_model import export_crops

        segmentation = self.segmentation
        finder = UNKNOWN if segmentation is None else check_segmentation(segmentation, mirror=self.mirror)

        def export_to(path: Path) -> CropCard:
            return export_crops(self.run, path, store_path=self.store, finder=finder, earlier=earlier)

        if segmentation is None or self.model.suffix == ".onnx":
            return export_to(self.model)
        with tempfile.TemporaryDirectory() as folder:
            classifier = Path(folder) / "classifier.onnx"
            card = export_to(classifier)
            write_bundle(self.model, segmentation, classifier)
        return card

    def check(self) -> CropParity:
        """Compare an existing file with the network.

        Raises
        ------
        UsageError
            The file holds two models.
        """
        from slicemill.train.export.crop_model import check_crops

        if self.model.suffix == BUNDLE_SUFFIX:
            raise UsageError(f"{self.model}: --check compares the ONNX file of a classifier; unzip it first.")
        return check_crops(self.run, self.model, store_path=self.store)

    def describe(self, parity: CropParity | None) -> str:
        """Return a line about the file and its parity."""
        line = f"{self.model}: {self.model.stat().st_size / 1e6:.1f} MB"
        if parity is None:
            return line
        return (
            f"{line}; probabilities of {parity['crops']} crops differ by at most "
            f"{parity['max_probability_difference']:.2g} (limit {parity['limit']:g})"
        )


def check_segmentation(path: Path, *, mirror: bool) -> Finder:
    """Return what finds the candidates: a segmentation model, perhaps of mirrored slices, too.

    Raises
    ------
    ModelError
        The file is not one, or outputs no probabilities to average over mirror images.
    """
    from slicemill.train.export.onnx_graph import load_checked_onnx

    try:
        model = load_checked_onnx(path)
    except Exception as error:
        raise ModelError(f"is not an ONNX model ({error}).", where=path) from error
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise ModelError("has no slicemill metadata; pass a model of `slicemill export`.", where=path)
    decode_metadata(text, str(path))
    if mirror and "probability" not in {output.name for output in model.graph.output}:
        raise ModelError(
            "outputs no probabilities, which --mirror averages; export it again with --probability.", where=path
        )
    return Finder(sha256=sha256_of_file(path), mirror=mirror)
