"""The thresholds of a classifier's file that an export replaces."""

from dataclasses import dataclass, field
from pathlib import Path

from slicemill.common.errors import InputError
from slicemill.common.files import read_file
from slicemill.store.crop_card import (
    CropCalibration,
    CropCard,
    CropTuning,
    Finder,
    MalignancyCalibration,
    decode_crop_metadata,
)
from slicemill.store.model_card import METADATA_KEY
from slicemill.store.nodules_file import BUNDLE_SUFFIX, read_bundle


@dataclass(frozen=True, kw_only=True)
class EarlierThresholds:
    """The thresholds that a new file takes over, with the calibration that they are for."""

    thresholds: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)
    tuned: CropTuning | None = None
    calibration: CropCalibration | None = None
    malignancy_calibration: MalignancyCalibration | None = None


def read_earlier_card(path: Path) -> CropCard | None:
    """Return the metadata of the classifier in a file, also of one of both models; None if it has none."""
    import onnx

    if not path.exists():
        return None
    try:
        content = read_bundle(path).classifier if path.suffix == BUNDLE_SUFFIX else read_file(path)
    except InputError:  # damaged, and replaced
        return None
    try:
        entries = onnx.load_model_from_string(content).metadata_props
    except Exception:  # noqa: BLE001 - protobuf's error has no types; no model has no thresholds
        return None
    text = next((entry.value for entry in entries if entry.key == METADATA_KEY), "{}")
    try:
        return decode_crop_metadata(text, str(path))
    except InputError:  # a model of another kind
        return None


def keep_thresholds(earlier: CropCard | None, weights_sha256: str, finder: Finder) -> EarlierThresholds:
    """Return the thresholds of the earlier file if they hold for the new one: its weights and candidates are the same.

    An earlier file that does not say what found its candidates may be of any.
    """
    if earlier is None or earlier.weights_sha256 != weights_sha256 or not earlier.finder.may_be(finder):
        return EarlierThresholds()
    return EarlierThresholds(
        thresholds=earlier.thresholds,
        sensitivity=earlier.sensitivity,
        tuned=earlier.tuned,
        calibration=earlier.calibration,
        malignancy_calibration=earlier.malignancy_calibration,
    )


def describe_thresholds(path: Path, earlier: CropCard | None, card: CropCard) -> str:
    """Return a line about the thresholds of a new file."""
    advice = f"choose them with `slicemill tune {path} STORE --split RUN/split.json`"
    if card.thresholds:
        return "thresholds: those of the replaced file, which had the same weights"
    if earlier is not None and earlier.thresholds:
        return f"thresholds: none; those of the replaced file were of other weights or candidates; {advice}"
    return f"thresholds: none; {advice}"
