"""`slicemill info`: what a file or folder is, on one screen: a scan, a model, or a training run.

Only headers and metadata are read, without onnxruntime and torch. Stores are described by `slicemill.store.info`, and
training runs by `slicemill.train.info`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slicemill.common.errors import ConfigError, ModelError
from slicemill.common.files import Location, parse_json, read_file
from slicemill.ct.formats.dicom.lookup import holds_series
from slicemill.ct.formats.names import SHOWN_SUFFIXES, is_scan_name
from slicemill.ct.formats.open import is_dicom, mark_files, open_source
from slicemill.ct.labels import format_labels
from slicemill.ct.naming import find_files, parse_name
from slicemill.infer.network.description import description_path, read_description
from slicemill.infer.runtime.onnx_file import read_metadata
from slicemill.store.crop_card import CropCard, decode_crop_metadata, describe_malignancy, is_crop_metadata
from slicemill.store.info import format_line
from slicemill.store.model_card import METADATA_KEY, ModelCard, decode_metadata
from slicemill.store.training_scans import TRAINING_SCANS_KEY, TrainingScans, decode_training_scans, summarize_scans
from slicemill.train.info import (
    CropRunSummary,
    RunSummary,
    describe_crop_run,
    describe_run,
    is_run,
    summarize_run,
)

DICE, DICE_PER_CASE = "validation_dice_", "validation_dice_per_case_"
"""Columns of the metrics, before the region's name."""


@dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """A scan or a mask; all sizes are in the order z, y, x."""

    kind: Literal["scan"] = "scan"
    path: str
    format: str
    name_suggests: str
    """``image`` or ``mask``, by the file's name."""
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    axes: str
    """Directions of the file's axes, like LPS."""
    dtype: str
    slope: float | None
    """HU or label value = voxel * slope + intercept; None if each plane has its own."""
    intercept: float | None
    bytes: int
    """Size of its files, as stored."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """An ONNX file."""

    kind: Literal["model"] = "model"
    path: str
    bytes: int
    card: ModelCard | CropCard | None
    """slicemill's metadata, of a segmentation model or of a classifier; None for a network from elsewhere."""
    training_scans: TrainingScans | None
    """What the scans of its training were like; None if the file does not say it."""
    description: str | None
    """The TOML that describes a network from elsewhere; None if there is none."""
    description_labels: dict[str, int] | None
    """The labels that the TOML names."""


Summary = ScanSummary | ModelSummary | RunSummary | CropRunSummary


def summarize(path: Location) -> Summary:
    """Return what a file or a folder is.

    Raises
    ------
    InputError
        There is no such file, it is damaged, or it is none of the known kinds.
    """
    if path.is_file():
        if is_scan_name(path.name) or is_dicom(path):
            return summarize_scan(path)
        if path.name.endswith(".onnx") and isinstance(path, Path):
            return summarize_model(path)
        raise ConfigError(f"is neither a scan ({SHOWN_SUFFIXES}, DICOM) nor an ONNX model (.onnx).", where=path)
    if not path.is_dir():
        raise ConfigError("there is no such file or folder.", where=path)
    if isinstance(path, Path) and is_run(path):
        return summarize_run(path)
    if holds_series(path):
        return summarize_scan(path)
    scans = find_files(path)
    shown = f"It has {len(scans):,} scans and masks; `slicemill ingest {path} --dry-run` shows its cases."
    advice = shown if scans else ""
    raise ConfigError(f"is neither a slice store nor the folder of a training run. {advice}".rstrip(), where=path)


def summarize_scan(path: Location) -> ScanSummary:
    """Return what a scan's header says.

    Raises
    ------
    ScanError
        The file is damaged, or cannot be a CT.
    """
    source = open_source(path, hashed=False)
    source.close()
    grid = source.grid
    slope, inter = source.scaling
    nz, ny, nx = grid.stored_shape
    z, y, x = (float(mm) for mm in grid.spacing_mm)
    return ScanSummary(
        path=str(path),
        format=source.format,
        name_suggests=parse_name(path.name).role,
        shape=(nz, ny, nx),
        spacing_mm=(z, y, x),
        size_mm=(nz * z, ny * y, nx * x),
        axes=grid.axcodes,
        dtype=str(source.dtype),
        slope=slope if isinstance(slope, float) else None,
        intercept=inter if isinstance(inter, float) else None,
        bytes=sum(mark_files(path)[::2]),
        warnings=source.warnings,
    )


def summarize_model(path: Path) -> ModelSummary:
    """Return the metadata of an ONNX file.

    Raises
    ------
    ModelError
        The file is not protobuf, or its metadata are damaged.
    """
    content = read_file(path)
    try:
        text, scans = (read_metadata(content, key) for key in (METADATA_KEY, TRAINING_SCANS_KEY))
    except ValueError as error:
        raise ModelError(f"is not an ONNX model ({error}).", where=path) from error
    described = None if text is not None else description_path(path)
    return ModelSummary(
        path=str(path),
        bytes=len(content),
        card=None if text is None else decode_card(text, str(path)),
        training_scans=decode_training_scans(scans, str(path)),
        description=None if described is None else str(described),
        description_labels=None if described is None else dict(read_description(described)[1].values),
    )


def decode_card(text: str, where: str) -> ModelCard | CropCard:
    """Parse the metadata of a model of either kind.

    Raises
    ------
    ModelError
        They are damaged, or of a contract that this version does not support.
    """
    try:
        is_crops = is_crop_metadata(parse_json(text))
    except ValueError:  # the decoder explains it
        is_crops = False
    return decode_crop_metadata(text, where) if is_crops else decode_metadata(text, where)


def describe(summary: Summary) -> list[str]:
    """Return the lines of `slicemill info`."""
    if isinstance(summary, ScanSummary):
        return describe_scan(summary)
    if isinstance(summary, CropRunSummary):
        return describe_crop_run(summary)
    return describe_model(summary) if isinstance(summary, ModelSummary) else describe_run(summary)


def describe_scan(scan: ScanSummary) -> list[str]:
    """Return the lines about a scan."""
    nz, ny, nx = scan.shape
    z, y, x = scan.spacing_mm
    return [
        format_line("scan", scan.path),
        format_line("format", f"{scan.format}, {scan.bytes / 1e6:,.1f} MB; its name is that of {_article(scan)}"),
        format_line("slices", f"{nz:,} of {ny} x {nx} pixels (z, y, x)"),
        format_line("spacing", f"{z:.4g} x {y:.4g} x {x:.4g} mm"),
        format_line("size", " x ".join(f"{mm:,.0f}" for mm in scan.size_mm) + " mm"),
        format_line("axes", f"{scan.axes} in the file"),
        format_line("voxels", f"{scan.dtype}, {_describe_scaling(scan)}"),
        *(format_line("warning", warning) for warning in scan.warnings),
    ]


def _describe_scaling(scan: ScanSummary) -> str:
    if scan.slope is None or scan.intercept is None:
        return "each slice has its own slope and intercept"
    return f"value = voxel * {scan.slope:g} + {scan.intercept:g}"


def _article(scan: ScanSummary) -> str:
    return "a segmentation" if scan.name_suggests == "mask" else "an image"


def describe_model(model: ModelSummary) -> list[str]:
    """Return the lines about a model."""
    lines = [format_line("model", f"{model.path}, {model.bytes / 1e6:,.1f} MB")]
    card = model.card
    if card is None:
        lines.append(format_line("origin", "a network without slicemill's metadata"))
        if model.description is None:
            wanted = Path(model.path).with_suffix(".toml").name
            return [*lines, format_line("", f"infer needs {wanted} beside it (documentation, A model of someone else)")]
        labels = format_labels(model.description_labels or {})
        return [*lines, format_line("described", model.description), format_line("labels", labels)]
    if isinstance(card, CropCard):
        return [*lines, *describe_classifier(card)]
    spacing = "the scan's pixels" if card.spacing_mm is None else f"pixels of {card.spacing_mm:g} mm"
    between = "adjacent" if card.context_spacing_mm is None else f"{card.context_spacing_mm:g} mm apart"
    window = "-" if card.window_hu is None else "{:g} to {:g} HU".format(*card.window_hu)
    rules = ", ".join(f"{name} {value}" for name, value in card.rules.as_json().items() if value)
    lines += [
        format_line("contract", f"{card.contract}; input {card.input}, {card.precision}"),
        format_line("labels", f"{format_labels(card.labels)}; organ {card.organ or '-'}, tumor {card.tumor or '-'}"),
        format_line("input", f"{card.context} slices ({between}), {spacing}, window {window}"),
        format_line("rules", rules or "no post-processing"),
    ]
    if card.training:
        dice = {
            name.removeprefix(DICE): value
            for name, value in card.training.get("validation", {}).items()
            if name.startswith(DICE) and not name.startswith(DICE_PER_CASE)
        }
        scores = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
        epochs = card.training.get("epochs")
        lines.append(format_line("training", f"{epochs} epochs; validation Dice: {scores or '-'}"))
    if model.training_scans is not None:
        lines.append(format_line("trained on", summarize_scans(model.training_scans)))
    return lines


def _describe_calibration(card: CropCard) -> str:
    one = card.calibration
    if one is None:
        return "none: probabilities are the network's output"
    return (
        f"temperature {one['temperature']:.3g}, shift {one['shift']:.3g}, weight of the segmentation "
        f"{one.get('segmentation_weight', 0.0):.3g}; expected calibration error "
        f"{one['ece_before']:.3f} before, {one['ece_after']:.3f} after, on "
        f"{one['in_nodules'] + one['elsewhere']} candidates"
    )


def describe_classifier(card: CropCard) -> list[str]:
    """Return the lines about a model of kind `crops`."""
    window = "{:g} to {:g} HU".format(*card.window_hu)
    chosen = ", ".join(f"{value:.3f} for {rate} false alarms a scan" for rate, value in card.thresholds.items())
    lines = [
        format_line("kind", f"crops: judges candidates; contract {card.contract}"),
        format_line("input", f"cubes of {card.crop_mm:g} mm, samples every {card.spacing_mm:g} mm, window {window}"),
        format_line("thresholds", chosen or "none chosen"),
        format_line("calibration", _describe_calibration(card)),
        *(format_line("malignancy", describe_malignancy(one)) for one in [card.malignancy_calibration] if one),
        format_line(
            "candidates",
            f"of the segmentation {card.segmentation_sha256 or 'that is not recorded'}"
            f"{', mirrored slices' if card.mirror else ''}",
        ),
    ]
    if card.training:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in card.training.get("validation", {}).items())
        lines.append(format_line("training", f"{card.training.get('epochs')} epochs; validation: {scores or '-'}"))
    return lines
