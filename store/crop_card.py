"""Metadata of a model of kind `crops`, which judges candidates, contract version 1.

Such a model takes cubes around points (`slicemill.ct.crops`) instead of slices. Its metadata are one JSON object under
the same key of the ONNX file as those of a segmentation model (`slicemill.store.model_card`), whose metadata have no
`kind`. Each kind has a contract version of its own.

The graph has the input ``crop`` int16[n, 48, 48, 48], HU, axes z, y, x of LPS+, and the outputs ``nodule`` float32[n]
and optionally ``malignancy`` float32[n], probabilities. Window and normalization are inside the graph.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import InputError, ModelError
from slicemill.common.files import parse_json
from slicemill.ct.crops import CROP_MM, SPACING_MM
from slicemill.ct.window import Window

KIND = "crops"
CROP_CONTRACT = 1
INPUT, NODULE, MALIGNANCY = "crop", "nodule", "malignancy"
"""Names of the graph's input and outputs."""
Probability = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class CropParity(TypedDict):
    """Result of comparing onnxruntime's probabilities with torch's."""

    crops: int
    max_probability_difference: float
    limit: float


class CropTraining(TypedDict, total=False):
    """Summary of the training."""

    epochs: int
    minutes: float
    best_epoch: int
    validation: dict[str, float]


class CropTuning(TypedDict):
    """The cases that thresholds were chosen on."""

    cases: int
    part: Literal["validation", "all"]
    """The validation part of a split, or all cases of a store."""
    nodules: int


class ReliabilityBin(TypedDict):
    """A point of a reliability curve."""

    mean_probability: Probability
    share_of_nodules: Probability
    candidates: Annotated[int, Meta(ge=1)]


class CropCalibration(TypedDict):
    """How the output `nodule` becomes a calibrated probability (`slicemill.infer.calibration`)."""

    temperature: Annotated[float, Meta(gt=0)]
    shift: float
    segmentation_weight: NotRequired[Annotated[float, Meta(ge=0)]]
    """Weight of the log odds of the segmentation's mean probability; 0 if absent."""
    in_nodules: int
    """Candidates in nodules that it was fitted to."""
    elsewhere: int
    """The others."""
    ece_before: Probability
    """Expected calibration error on these candidates without it."""
    ece_after: Probability
    reliability_before: list[ReliabilityBin]
    reliability_after: list[ReliabilityBin]


class MalignancyCalibration(TypedDict):
    """How output and diameter become the malignancy of a candidate (`slicemill.infer.malignancy`)."""

    weight: Annotated[float, Meta(ge=0)]
    """Of the log odds of the output."""
    diameter_weight: float
    """Of the natural logarithm of the diameter / 10 mm."""
    shift: float
    malignant: int
    """Malignant nodules that it was fitted to."""
    benign: int
    """The others."""
    auc_output: Probability
    """AUC of the output alone on these nodules."""
    auc_diameter: Probability
    auc_both: Probability


@dataclass(frozen=True, kw_only=True)
class Finder:
    """What finds the candidates of a classifier."""

    sha256: str | None = None
    """`CropCard.segmentation_sha256`."""
    mirror: bool | None = None
    """`CropCard.mirror`."""

    def may_be(self, other: "Finder") -> bool:
        """Return whether nothing that is known of this one differs from another.

        >>> Finder().may_be(Finder(mirror=True)), Finder(mirror=False).may_be(Finder(mirror=True))
        (True, False)
        """
        return self.sha256 in (None, other.sha256) and self.mirror in (None, other.mirror)


UNKNOWN = Finder()


@dataclass(frozen=True, kw_only=True)
class CropCard:
    """The metadata of a model of kind `crops`, in the order of the keys in the file."""

    kind: Literal["crops"] = "crops"
    contract: int = CROP_CONTRACT
    crop_mm: float = CROP_MM
    """Side of the cube, mm."""
    spacing_mm: float = SPACING_MM
    """Distance of its samples, mm."""
    window_hu: tuple[float, float]
    """HU range to which the graph clips its input."""
    thresholds: dict[str, Probability] = field(default_factory=dict)
    """Threshold of the probability of a nodule by false alarms a scan on validation, like ``{"1": 0.83, "4": 0.61}``;
    empty if unknown. With a calibration, it is one of calibrated probabilities."""
    sensitivity: dict[str, Probability] = field(default_factory=dict)
    """Share of the nodules that reach each of `thresholds` on these cases; empty if unknown."""
    tuned: CropTuning | None = None
    """What `thresholds` were chosen on; None without thresholds."""
    calibration: CropCalibration | None = None
    """Calibration of the probability; None if it is that of the output."""
    malignancy_calibration: MalignancyCalibration | None = None
    """How malignancy follows from output and diameter; None if it is the output."""
    segmentation_sha256: Sha256 | None = None
    """Hash of the segmentation model whose candidates it was trained on; None for candidates of a table."""
    mirror: bool | None = None
    """Whether they are those of `infer --mirror`, which a run with this classifier then does; None if unknown."""
    parity: CropParity | None = None
    training: CropTraining | None = None
    store_sha256: str | None = None
    license: str | None = None
    weights_sha256: str | None = None
    versions: dict[str, str] | None = None

    @property
    def finder(self) -> Finder:
        """Return what finds its candidates."""
        return Finder(sha256=self.segmentation_sha256, mirror=self.mirror)

    def as_json(self) -> dict[str, Any]:
        """Return the metadata as plain JSON values; what is unknown is left out."""
        return {key: value for key, value in to_document(self).items() if value is not None}


def decode_crop_metadata(text: str, where: str) -> CropCard:
    """Parse and check the metadata of a model of kind `crops`.

    Parameters
    ----------
    text : str
        JSON.
    where : str
        The file, for messages.

    Raises
    ------
    ModelError
        The model is of another kind or contract version, or its metadata are invalid.
    """
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ModelError(f"its slicemill metadata are not JSON ({error}); export it again.", where=where) from error
    if not isinstance(document, dict) or not is_crop_metadata(document):
        raise ModelError(
            "segments slices; a classifier of candidates is needed, a model of kind crops. Write one with `slicemill "
            "train --crops` and `slicemill export`.",
            where=where,
        )
    if document.get("contract") != CROP_CONTRACT:
        raise ModelError(
            f"has contract {document.get('contract')} of kind crops; this version of slicemill supports "
            f"{CROP_CONTRACT}. Export it again.",
            where=where,
        )
    card = from_document(CropCard, document, f"{where}: its slicemill metadata are damaged", error=ModelError)
    if (card.crop_mm, card.spacing_mm) != (CROP_MM, SPACING_MM):
        raise ModelError(
            f"takes crops of {card.crop_mm:g} mm with samples every {card.spacing_mm:g} mm; this version of slicemill "
            f"supports {CROP_MM:g} and {SPACING_MM:g} mm. Export it again.",
            where=where,
        )
    try:
        Window(*card.window_hu)
    except InputError as error:
        raise ModelError(str(error), where=where) from error
    if not all(map(math.isfinite, _numbers(card))):
        raise ModelError("calibration: its numbers must be finite. Choose them again.", where=where)
    unusable = [key for key in card.thresholds if not _is_rate(key)]
    if unusable:
        raise ModelError(f"thresholds: {unusable[0]!r} is not a number of false alarms a scan.", where=where)
    return card


def is_crop_metadata(document: object) -> bool:
    """Return whether decoded metadata are those of a model of kind `crops`."""
    return isinstance(document, dict) and document.get("kind") == KIND


def describe_malignancy(one: MalignancyCalibration | None) -> str:
    """Return how malignancy follows from output and diameter, and the AUCs on the nodules of the fit, as a line."""
    if one is None:
        return "the network's output, without the diameter"
    weights = f"weight of the output {one['weight']:.3g}, of the diameter {one['diameter_weight']:.3g}"
    areas = f"{one['auc_output']:.3f} by the output, {one['auc_diameter']:.3f} by the diameter"
    nodules = f"{one['malignant']} malignant and {one['benign']} benign nodules"
    return f"{weights}, shift {one['shift']:.3g}; AUC {areas}, {one['auc_both']:.3f} by both, on {nodules}"


def _numbers(card: CropCard) -> list[float]:
    """Return the numbers by which probabilities are calculated."""
    one, other = card.calibration, card.malignancy_calibration
    return [
        *((one["temperature"], one["shift"], one.get("segmentation_weight", 0.0)) if one else ()),
        *((other["weight"], other["diameter_weight"], other["shift"]) if other else ()),
    ]


def _is_rate(text: str) -> bool:
    """Return whether text is a number of false alarms a scan.

    >>> _is_rate("0.125"), _is_rate("nan"), _is_rate("many")
    (True, False, False)
    """
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
