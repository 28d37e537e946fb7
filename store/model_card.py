"""Model metadata, contract version 1: written into the ONNX file by `export`, and read by `infer`.

The metadata are one JSON object under the key ``slicemill`` of the ONNX file. `ModelCard` is that object. `ModelInfo`
adds properties of an opened file: name, hash, and the sizes and outputs of its graph.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict, get_args

from msgspec import Meta

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import InputError, ModelError
from slicemill.common.files import parse_json
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.store.crop_card import is_crop_metadata
from slicemill.store.nodules_file import BUNDLE_SUFFIX
from slicemill.store.training_scans import TrainingScans

CONTRACT = 1
METADATA_KEY = "slicemill"
CONTEXTS = (1, 3, 5, 7)
MAX_SIDE = 4096
"""Largest height and width of a network's slices, pixels."""
MAX_MM = 100.0
"""Largest pixel size and slice spacing, mm. CT scans have smaller ones."""
InputForm = Literal["int16", "bytes"]
"""Form of the input ``image``: int16[n, H, W], or the same voxels as bytes, uint8[n, 1, H, W, 2], low byte first."""
INPUT_TYPES: dict[InputForm, str] = {"int16": "int16", "bytes": "uint8"}
Precision = Literal["fp32", "fp16"]
SUFFIXES: dict[tuple[InputForm, Precision], str] = {
    ("int16", "fp32"): ".onnx",
    ("int16", "fp16"): ".fp16.onnx",
    ("bytes", "fp16"): ".bytes.fp16.onnx",
    ("bytes", "fp32"): ".bytes.onnx",
}
"""File name endings of the flavors of one network."""
TENSORRT_SUFFIX = SUFFIXES["bytes", "fp16"]
SHARED_KEYS = (
    "labels",
    "window_hu",
    "context",
    "context_spacing_mm",
    "spacing_mm",
    "postprocess",
    "training",
    "store_sha256",
)
"""Metadata that all flavors of one network share."""
NULLS = ("organ", "tumor", "context_spacing_mm", "spacing_mm")
"""Metadata that are written as null when they have no value; all others are left out."""
Millimeters = Annotated[float, Meta(gt=0, le=MAX_MM)]
NotNegative = Annotated[float, Meta(ge=0, le=1e12)]
Weight = Annotated[float, Meta(ge=-1e12, le=1e12)]


@dataclass(frozen=True, kw_only=True)
class LesionRule:
    """A fitted rule: lesions with a score below `least_score` become organ.

    The score is 1 / (1 + exp(-s)), where s is the intercept plus the sum of each feature times its weight. The features
    are defined in `slicemill.infer.lesion_features`.
    """

    FEATURES: ClassVar = (
        "log_volume_ml", "mean_probability", "peak_probability", "hu_over_organ", "depth_mm", "filled",
    )  # fmt: skip

    intercept: Weight
    log_volume_ml: Weight
    """Weight of the natural logarithm of the volume in ml. All further fields but `least_score` are weights, too."""
    mean_probability: Weight
    peak_probability: Weight
    hu_over_organ: Weight
    depth_mm: Weight
    filled: Weight
    least_score: NotNegative

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the weights in the order of FEATURES."""
        return tuple(getattr(self, name) for name in self.FEATURES)


@dataclass(frozen=True, kw_only=True)
class PostprocessRules:
    """Postprocessing rules for the labels of a complete scan."""

    largest_organ: bool = False
    """Keep only the largest 26-connected component of the organ with its tumors."""
    fill_holes: bool = False
    """Background that organ and tumors enclose (6-connected, in 3-D) becomes organ."""
    tumor_reach_mm: NotNegative | None = None
    """Tumor farther than this from every voxel of the organ becomes background, mm; None disables the rule."""
    min_lesion_ml: NotNegative = 0.0
    """Lesions smaller than this become organ (background where there is no organ label), ml."""
    min_lesion_probability: NotNegative = 0.0
    """Lesions with a lower mean tumor probability become organ, if the model outputs probabilities."""
    min_lesion_peak: NotNegative = 0.0
    """Lesions with a lower largest tumor probability become organ, if the model outputs probabilities."""
    lesion_rule: LesionRule | None = None
    """Fitted rule about lesions; None disables it."""

    def as_json(self) -> dict[str, Any]:
        """Return the rules as plain JSON values.

        Rules that version 0.1 did not know are left out where they are disabled, so that it reads the file.
        """
        later = {"min_lesion_peak": 0.0, "lesion_rule": None}
        return {name: value for name, value in to_document(self).items() if name not in later or value != later[name]}


def parse_postprocess_rules(document: object) -> PostprocessRules:
    """Parse the post-processing rules of a model's metadata; missing rules are disabled.

    Raises
    ------
    ModelError
        A rule is unknown to this version, or a value is invalid.
    """
    known = PostprocessRules.__dataclass_fields__
    unknown = sorted(set(document) - set(known)) if isinstance(document, dict) else []
    if unknown:
        raise ModelError(
            f"its post-processing has rules that this version does not know ({', '.join(unknown)}); "
            "use a newer slicemill."
        )
    return from_document(PostprocessRules, document, "its post-processing rules are invalid", error=ModelError)


class Parity(TypedDict, total=False):
    """Result of comparing onnxruntime's labels with torch's."""

    slices: int
    pixels: int
    labels_differing: int
    """Pixels with another label, ties excluded."""
    ties: int
    """Pixels with another label whose two largest logits differ only by rounding."""
    max_probability_difference: float
    limit: float
    """Share of pixels that may differ."""


class TrainingSummary(TypedDict, total=False):
    """Summary of the training."""

    epochs: int
    minutes: float
    best_epoch: int
    validation: dict[str, float]


class TuningScores(TypedDict):
    """Mean Dice over the cases of `slicemill tune`; None if no case has a value."""

    organ_dice: float | None
    tumor_dice: float | None


class TuningSummary(TypedDict):
    """Number of cases of `slicemill tune`, and scores before and after the choice of post-processing."""

    cases: int
    before: TuningScores
    chosen: TuningScores


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The metadata of a model file.

    The order of the fields is the order of the keys in the file. Fields with the default None are not required to run
    the model.
    """

    contract: int = CONTRACT
    labels: dict[str, int]
    """Label names and values."""
    organ: str | None = None
    tumor: str | None = None
    window_hu: tuple[float, float] | None = None
    """HU range to which the graph clips its input."""
    context: int
    """Slices that the network sees, the labelled one in the middle: one of `CONTEXTS`."""
    context_spacing_mm: Millimeters | None = None
    """Spacing of the context slices, mm; None means adjacent slices."""
    spacing_mm: Millimeters | None = None
    """Pixel size that slices are resampled to, mm; None keeps the pixels of the scan."""
    size_multiple: int | None = None
    """Height and width of the slices are multiples of this."""
    input: InputForm
    precision: Precision | None = None
    postprocess: dict[str, Any]
    """Post-processing rules as written in the file; `rules` parses them."""
    parity: Parity | None = None
    training: TrainingSummary | None = None
    store_sha256: str | None = None
    """Hash of the slice store that the network was trained on."""
    license: str | None = None
    weights_sha256: str | None = None
    versions: dict[str, str] | None = None
    """Packages that wrote the file, and their versions."""
    foreign: dict[str, Any] | None = None
    """Settings of the TOML, for a network that slicemill did not train."""
    unknown: int | None = None
    """Value of the output ``label`` that marks a value without a label; None if the graph outputs labels only."""
    one_slice: bool | None = None
    """Whether the network takes one slice at a time only."""
    tuned: TuningSummary | None = None

    @cached_property
    def rules(self) -> PostprocessRules:
        """Return the post-processing rules."""
        return parse_postprocess_rules(self.postprocess)

    @cached_property
    def label_set(self) -> Labels:
        """Return the labels in order of value, with organ and tumor."""
        return labels_from_json({"labels": self.labels, "organ": self.organ, "tumor": self.tumor})

    def as_json(self) -> dict[str, Any]:
        """Return the metadata as plain JSON values, in the order of the file."""
        return {key: value for key, value in to_document(self).items() if value is not None or key in NULLS}


def decode_metadata(text: str, where: str) -> ModelCard:
    """Parse and check the metadata of a model file.

    Parameters
    ----------
    text : str
        JSON.
    where : str
        The file, for messages.

    Raises
    ------
    ModelError
        The metadata have another contract version, or are invalid. The message names the file, the key and the rule.
    """
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ModelError(f"its slicemill metadata are not JSON ({error}); export it again.", where=where) from error
    if is_crop_metadata(document):
        raise ModelError(
            "is of kind crops: it judges candidates and does not segment. Pass a segmentation model first, and this "
            "one as --classifier.",
            where=where,
        )
    contract, form = (document.get(key) if isinstance(document, dict) else None for key in ("contract", "input"))
    if contract != CONTRACT or form not in get_args(InputForm):
        raise ModelError(
            f"has contract {contract}, input {form}; this version of slicemill supports contract {CONTRACT}, "
            f"input {' or '.join(INPUT_TYPES)}. Export it again.",
            where=where,
        )
    problem = f"{where}: its slicemill metadata are incomplete or damaged; export it again"
    decoded = from_document(ModelCard, document, problem, error=ModelError)
    try:
        parse_postprocess_rules(decoded.postprocess)
        values = decoded.label_set.table()
    except InputError as error:
        raise ModelError(str(error), where=where) from error
    if decoded.unknown is not None and decoded.unknown in values:
        raise ModelError(
            f"the value of `unknown` is {decoded.unknown}, which is also the value of a label.", where=where
        )
    return decoded


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """An opened model file: its metadata, and properties of the file and of its graph."""

    name: str
    """File name."""
    sha256: str
    """Hash of the file; for a foreign network, of the model that wraps it."""
    card: ModelCard
    size: tuple[int, int]
    """Height and width of the network's slices, pixels."""
    gives_tumor: bool
    """Whether the graph has the optional output ``tumor``."""
    probability_dtype: str | None
    """Type of the optional output ``probability``, float32 or float16; None if the graph has no such output."""
    training_scans: TrainingScans | None = None
    """What the training scans were like; None if the file does not say it."""

    @property
    def labels(self) -> Labels:
        """Return the labels in order of value, with organ and tumor."""
        return self.card.label_set

    @property
    def rules(self) -> PostprocessRules:
        """Return the post-processing rules."""
        return self.card.rules

    @property
    def context(self) -> int:
        """Return the number of slices that the network sees."""
        return self.card.context

    @property
    def context_spacing_mm(self) -> float | None:
        """Return the spacing of the context slices, mm; None means adjacent slices."""
        return self.card.context_spacing_mm

    @property
    def spacing_mm(self) -> float | None:
        """Return the pixel size that slices are resampled to, mm; None keeps the pixels of the scan."""
        return self.card.spacing_mm

    @property
    def input(self) -> InputForm:
        """Return the form of the graph's input ``image``."""
        return self.card.input

    @property
    def one_slice(self) -> bool:
        """Return whether the network takes one slice at a time only."""
        return self.card.one_slice is True

    @property
    def unknown(self) -> int | None:
        """Return the value of ``label`` that marks a value without a label; None if the graph outputs labels only."""
        return self.card.unknown

    @property
    def gives_probability(self) -> bool:
        """Return whether the graph has the optional output ``probability``."""
        return self.probability_dtype is not None


def network_name(path: Path) -> str:
    """Return the part of the file name that all flavors of a network share.

    >>> network_name(Path("liver.bytes.fp16.onnx")), network_name(Path("liver.onnx"))
    ('liver', 'liver')
    """
    return path.name.removesuffix(BUNDLE_SUFFIX).removesuffix(".onnx").removesuffix(".fp16").removesuffix(".bytes")
