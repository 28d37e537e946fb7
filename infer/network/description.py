"""The TOML next to a foreign network, which describes its input and output.

labels = {liver = 1, tumor = 2}   # classes 1, 2, ... in order of value; class 0 is background
window_hu = [-200, 300]           # HU are clipped to it, then (HU - mean) / std
mean = 50.0
std = 250.0
output = "logits"                 # [b, class, y, x]; or "label": [b, y, x] or [b, 1, y, x], values of the labels
size = [512, 512]                 # needed where the file leaves height and width open
context = 3                       # channels: slices from the one below to the one above; 1 where absent
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from msgspec import Meta

from slicemill.common.documents import from_document, from_toml
from slicemill.common.errors import InputError, ModelError
from slicemill.common.files import read_text
from slicemill.ct.labels import Labels, make_labels
from slicemill.store.model_card import CONTEXTS, MAX_MM, parse_postprocess_rules

MAX_HU, MIN_STD = 1e6, 1e-6
"""Limits, HU; values beyond them make slices 0, inf or nan in float32."""
Hu = Annotated[int, Meta(ge=-int(MAX_HU), le=int(MAX_HU))] | Annotated[float, Meta(ge=-MAX_HU, le=MAX_HU)]
Deviation = Annotated[int, Meta(ge=1, le=int(MAX_HU))] | Annotated[float, Meta(ge=MIN_STD, le=MAX_HU)]
Pixels = Annotated[int, Meta(ge=1)]
Millimeters = Annotated[int, Meta(ge=1, le=int(MAX_MM))] | Annotated[float, Meta(gt=0, le=MAX_MM)]
OutputKind = Literal["logits", "label"]
CHOICES = {"output": get_args(OutputKind), "context": CONTEXTS}


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """Settings of the TOML. Numbers keep their type, because the hash of the wrapped model depends on it."""

    labels: dict[str, int]
    window_hu: tuple[Hu, Hu]
    mean: Hu
    """HU."""
    std: Deviation
    """HU."""
    output: OutputKind
    size: tuple[Pixels, Pixels] | None = None
    """Height and width, where the file leaves them open."""
    context: int = 1
    context_spacing_mm: Millimeters | None = None
    spacing_mm: Millimeters | None = None
    organ: str | None = None
    tumor: str | None = None
    input_name: str | None = None
    output_name: str | None = None
    """Output to use, where the network has several; by default the first."""
    postprocess: dict[str, bool | int | float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the order of the window's limits."""
        if self.window_hu[0] >= self.window_hu[1]:
            raise ModelError(f"window_hu = {list(self.window_hu)}: expected two numbers of HU, the lower first")


def description_path(model: Path) -> Path | None:
    """Return the TOML with a model's name in its folder, or None."""
    path = model.with_suffix(".toml")
    return path if path.is_file() and path != model else None


def read_description(path: Path) -> tuple[NetworkDescription, Labels]:
    """Read the TOML and its labels.

    Raises
    ------
    ModelError
        It cannot be read as TOML, or a setting is unknown, missing or does not fit.
    """
    where = f"{path}: does not describe the network (for an example, see the documentation, A model of someone else)"
    try:
        text = read_text(path)
    except InputError as error:
        raise ModelError(error.reason, where=where) from error
    document = from_toml(dict[str, object], text, where, error=ModelError)
    known = NetworkDescription.__dataclass_fields__
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise ModelError(f"{path}: {unknown[0]} is not a setting; choose from {', '.join(known)}.")
    for name, choices in CHOICES.items():
        if name in document and document[name] not in choices:
            raise ModelError(f"{path}: {name} = {document[name]!r}: choose one of {', '.join(map(str, choices))}.")
    description = from_document(NetworkDescription, document, where, error=ModelError)
    try:
        parse_postprocess_rules(description.postprocess)
        return description, make_labels(description.labels, description.organ, description.tumor)
    except InputError as error:
        raise ModelError(f"{path}: {error}") from error
