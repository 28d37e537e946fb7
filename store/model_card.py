"""The model contract (version 1): what `train export` writes into a model's metadata and `infer` reads"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slicemill.common.errors import ModelError
from slicemill.ct.labels import Labels

CONTRACT = 1
CONTEXTS = (1, 3, 5, 7)
INPUTS: dict[str, str] = {"int16": "int16", "bytes": "uint8"}
"""Forms of the input ``image`` and their types."""
BYTES_SUFFIX = ".bytes.fp16.onnx"
"""What the name of the flavor for TensorRT ends in, beside the model's own file."""
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
"""What two flavors of one network say alike."""
MAX_SIDE = 4096
MAX_MM = 100.0
"""Slices, or pixels, that lie farther apart are no CT's."""


@dataclass(frozen=True, kw_only=True)
class PostprocessRules:
    """What a model's metadata ask to be done to its labels."""

    largest_organ: bool = False
    """Keep only the largest 26-connected component of the organ with its tumors."""
    fill_holes: bool = False
    """Background that organ and tumors enclose (6-connected, in the whole scan) becomes organ."""
    tumor_reach_mm: float | None = None
    """Tumor farther than this from every voxel of the organ becomes background; None leaves it."""
    min_lesion_ml: float = 0.0
    """Lesions smaller than this become organ (background where there is no organ label)."""
    min_lesion_probability: float = 0.0
    """The same for lesions whose mean probability of tumor is lower, where the model gives probabilities."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they stand in the metadata."""
        return {
            "largest_organ": self.largest_organ,
            "fill_holes": self.fill_holes,
            "tumor_reach_mm": self.tumor_reach_mm,
            "min_lesion_ml": self.min_lesion_ml,
            "min_lesion_probability": self.min_lesion_probability,
        }


def parse_postprocess_rules(document: object) -> PostprocessRules:
    """Read the rules of a model's metadata; what is absent is off.

    Raises
    ------
    ModelError
        There is a rule that this version does not know, or a value that cannot be.
    """
    if not isinstance(document, dict):
        raise ModelError(f"its postprocess must be a JSON object of rules; found {document!r}.")
    known = PostprocessRules().as_json()
    unknown = set(document) - set(known)
    if unknown:
        raise ModelError(
            f"its post-processing has rules that this version does not know ({', '.join(sorted(unknown))}); use a newer slicemill."
        )
    if any(not isinstance(document.get(name, False), bool) for name in ("largest_organ", "fill_holes")):
        raise ModelError(f"its post-processing {document} must say true or false for largest_organ and fill_holes.")
    rules = PostprocessRules(**document)
    reach = 0.0 if rules.tumor_reach_mm is None else rules.tumor_reach_mm
    numbers = (reach, rules.min_lesion_ml, rules.min_lesion_probability)
    if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
        raise ModelError(f"its post-processing {document} must hold numbers from 0 on.")
    return rules


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model file says of itself."""

    name: str
    sha256: str
    labels: Labels
    context: int
    """Slices that the network sees around the one that it labels."""
    context_spacing_mm: float | None
    """How far apart the slices of a window lie, in mm; None for slices beside each other."""
    spacing_mm: float | None
    """Size of the pixels that the network was trained at; None where it takes the scan's own."""
    size: tuple[int, int]
    """Height and width of the slices that go in."""
    input: Literal["int16", "bytes"]
    """Slices int16[n, H, W], or the same as pairs of bytes uint8[n, 1, H, W, 2], low byte first."""
    gives_tumor: bool
    """Whether the graph has the optional output ``tumor``."""
    probability_dtype: str | None
    """Type of the optional output ``probability``, float32 or float16; None where the graph has none."""
    one_slice: bool
    """Whether it takes one slice at a time only, as some networks of others do."""
    unknown: int | None
    """The value of ``label`` that stands for what is no label; None where the graph gives labels only."""
    rules: PostprocessRules
    """What is done to the labels of a whole scan."""
    metadata: dict[str, Any]

    @property
    def gives_probability(self) -> bool:
        """Return whether the graph has the optional output ``probability``."""
        return self.probability_dtype is not None


def network_name(path: Path) -> str:
    """Return what the names of a network's flavors begin with.

    >>> network_name(Path("liver.bytes.fp16.onnx")), network_name(Path("liver.onnx"))
    ('liver', 'liver')
    """
    return path.name.removesuffix(".onnx").removesuffix(".fp16").removesuffix(".bytes")
