"""Label values of a segmentation: their names, and which of them are organ and tumor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError, UsageError

TUMOR_WORDS = ("tumor", "tumour", "cancer", "lesion", "nodule", "metastasis", "metastases")


IGNORE = "ignore"
"""Name of the label of voxels that are not annotated, as in nnU-Net. Training and its scores leave them out."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Named label values of a segmentation; 0 is background and has no name."""

    values: Mapping[str, int]
    """Name to value, 1 to 255, in ascending order of value."""
    organ: str | None = None
    """Name of the label of the organ without its tumors, if there is one."""
    tumor: str | None = None
    """Name of the label of tumor, if there is one."""

    def __post_init__(self) -> None:
        """Check that values are distinct and in range, and that organ and tumor are among the names."""
        for name, value in self.values.items():
            if not 1 <= value <= 255:
                raise LabelError(f"label {name}={value}: a label value must be between 1 and 255.")
        if len(set(self.values.values())) != len(self.values):
            raise LabelError(f"labels {format_labels(self.values)}: two names share one value.")
        for role, chosen in (("organ", self.organ), ("tumor", self.tumor)):
            if chosen is not None and chosen not in self.values:
                raise LabelError(f"--{role} {chosen}: the labels are {format_labels(self.values)}; name one of them.")

    def table(self) -> npt.NDArray[np.uint8]:
        """Return the label value of each class, uint8[class]; class 0 is background."""
        return np.array([0, *self.values.values()], dtype=np.uint8)

    def organ_values(self) -> list[int]:
        """Return the values of the organ with its tumors; empty if no organ is named."""
        if self.organ is None:
            return []
        return [self.values[name] for name in (self.organ, self.tumor) if name is not None]

    def regions(self) -> dict[str, list[int]]:
        """Return the label values that are scored under each name: the organ includes its tumors.

        >>> LITS_LABELS.regions()
        {'liver': [1, 2], 'tumor': [2]}
        """
        return {name: self.organ_values() if name == self.organ else [value] for name, value in self.values.items()}

    def tumor_value(self) -> int | None:
        """Return the value of tumor, or None if no tumor is named."""
        return None if self.tumor is None else self.values[self.tumor]

    def file_names(self) -> dict[str, str]:
        """Return a file name part for each label; label names may contain characters that file names may not.

        A plain name is used as it is. In any other name, each run of special characters becomes ``_``, and the value is
        appended. All parts differ, even if case is ignored, and none is ``background``.

        >>> Labels({"liver": 1, "a/b": 2}).file_names()
        {'liver': 'liver', 'a/b': 'a_b_2'}
        """
        plain = {name: re.sub(r"[^\w.-]+", "_", name) for name in self.values}
        taken, chosen = {"background"}, {}
        for name in sorted(plain, key=lambda name: plain[name] != name):
            part = plain[name] if plain[name] == name else f"{plain[name]}_{self.values[name]}"
            while part.casefold() in taken:
                part += f"_{self.values[name]}"
            taken.add(part.casefold())
            chosen[name] = part
        return {name: chosen[name] for name in self.values}

    def without(self, name: str) -> "Labels":
        """Return the labels except one.

        Raises
        ------
        LabelError
            The label does not exist, or is the only one.
        """
        if name not in self.values or len(self.values) == 1:
            raise LabelError(f"ignore = {name}: must be one of several labels; they are {format_labels(self.values)}.")
        rest = {other: value for other, value in self.values.items() if other != name}
        organ, tumor = (None if role == name else role for role in (self.organ, self.tumor))
        return Labels(values=rest, organ=organ, tumor=tumor)

    def as_json(self) -> dict[str, object]:
        """Return the three fields as written to stores, models and reports."""
        return {"labels": dict(self.values), "organ": self.organ, "tumor": self.tumor}


def make_labels(values: Mapping[str, int], organ: str | None = None, tumor: str | None = None) -> Labels:
    """Return Labels in order of value.

    By default tumor is the label with a word of TUMOR_WORDS in its name, and organ the only other label except IGNORE.

    >>> make_labels({"tumor": 2, "liver": 1})
    Labels(values={'liver': 1, 'tumor': 2}, organ='liver', tumor='tumor')
    """
    ordered = dict(sorted(values.items(), key=lambda item: item[1]))
    if tumor is None:
        matches = [name for name in ordered if any(word in name.lower() for word in TUMOR_WORDS)]
        tumor = matches[0] if len(matches) == 1 else None
    others = [name for name in ordered if name not in (tumor, IGNORE)]
    if organ is None and tumor is not None and len(others) == 1:
        organ = others[0]
    return Labels(values=ordered, organ=organ, tumor=tumor)


LITS_LABELS = make_labels({"liver": 1, "tumor": 2})


def parse_labels(text: str, organ: str | None = None, tumor: str | None = None) -> Labels:
    """Parse the options of labels: ``liver=1,tumor=2``, and the names of organ and tumor.

    Raises
    ------
    UsageError
        The text is not a list of NAME=VALUE, or a name or value is not allowed.
    """
    values: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not number.isdecimal() or name in values:
            raise UsageError(f"--labels {text}: expected NAME=VALUE pairs like liver=1,tumor=2; {part!r} is not one.")
        values[name] = int(number)
    try:
        return make_labels(values, organ, tumor)
    except LabelError as error:
        raise UsageError(str(error)) from error


def choose_labels(
    passed: str | Mapping[str, int] | Labels | None,
    declared: Labels | None = None,
    organ: str | None = None,
    tumor: str | None = None,
) -> Labels | None:
    """Return the labels that a user passed, or else those that the files declare, with the names of organ and tumor.

    Raises
    ------
    UsageError
        The text that was passed is not a list of NAME=VALUE, or a name or value is not allowed.

    >>> choose_labels({"tumor": 1})
    Labels(values={'tumor': 1}, organ=None, tumor='tumor')
    """
    if isinstance(passed, Labels):
        return passed
    if isinstance(passed, str) and passed:
        return parse_labels(passed, organ, tumor)
    if passed:
        return make_labels(dict(passed), organ, tumor)
    if declared and (organ or tumor):
        return make_labels(declared.values, organ, tumor)
    return declared


def format_labels(values: Mapping[str, int]) -> str:
    """Return ``liver=1, tumor=2``."""
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "none"


def labels_from_json(document: Mapping[str, object]) -> Labels:
    """Parse the fields written by `Labels.as_json`."""
    values = document.get("labels")
    organ, tumor = document.get("organ"), document.get("tumor")
    if not isinstance(values, dict) or not all(isinstance(value, int) for value in values.values()):
        raise LabelError(f"labels must map names to values; they are {values!r}.")
    return Labels(
        values=dict(sorted(values.items(), key=lambda item: item[1])),
        organ=organ if isinstance(organ, str) else None,
        tumor=tumor if isinstance(tumor, str) else None,
    )
