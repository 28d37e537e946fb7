"""Which label a segment of a SEG, or a structure of an RTSTRUCT, is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slicemill.common.errors import LabelError
from slicemill.ct.formats.dicom_objects.segments import WITHOUT_TUMORS
from slicemill.ct.labels import Labels, format_labels

MAX_VALUE = 255
SHOWN = 6


@dataclass(frozen=True, slots=True)
class NamedPart:
    """A segment or structure."""

    number: int
    name: str


@dataclass(frozen=True, kw_only=True)
class PartValues:
    """The label values of the parts of a mask."""

    value_of: Mapping[int, int]
    """Number of a part -> value of its label; parts without a label lack."""
    warnings: tuple[str, ...] = ()


def match_labels(parts: Sequence[NamedPart], labels: Labels | None, where: object) -> PartValues:
    """Return the label value of each part: by its name, or by its number if no name is a label's.

    A part ``tumor 2`` is one of the label ``tumor``, and ``liver without tumors`` is ``liver``. Without labels, values
    are the numbers. A part that no label names is left out, with a warning.

    Raises
    ------
    LabelError
        A label has no part, or a number is no label value.

    >>> both = [NamedPart(1, "Tumor 1"), NamedPart(2, "Tumor 2"), NamedPart(3, "Liver")]
    >>> dict(match_labels(both, Labels({"liver": 1, "tumor": 2}), "a.dcm").value_of)
    {1: 2, 2: 2, 3: 1}
    """
    if labels is None:
        _check_numbers(parts, where)
        return PartValues(value_of={part.number: part.number for part in parts})
    known = {normalize(name): value for name, value in labels.values.items()}
    value_of = {part.number: value for part in parts if (value := _find(part.name, known)) is not None}
    warnings = []
    if not value_of:
        numbers = set(labels.values.values())
        value_of = {part.number: part.number for part in parts if part.number in numbers}
        if value_of:
            pairs = ", ".join(f"{number} is {_name_of(number, labels)}" for number in value_of)
            warnings.append(f"no part of the segmentation has the name of a label; taken by number: {pairs}")
    lacking = [name for name, value in labels.values.items() if value not in value_of.values()]
    if lacking:
        raise LabelError(
            f"each label needs a segment or structure of its name; there is none for {', '.join(lacking)}, but "
            f"{_list([part.name for part in parts])}. Pass --labels with these names; they are "
            f"{format_labels(labels.values)}.",
            where=where,
        )
    others = [str(part.number) for part in parts if part.number not in value_of]
    if others:  # without their names, which are free text of a hospital
        warnings.append(f"parts of the segmentation without a label were left out: number {_list(others)}")
    return PartValues(value_of=value_of, warnings=tuple(warnings))


def normalize(name: str) -> str:
    """Return a name without case, separators and the remark about tumors.

    >>> normalize("Liver_without tumors"), normalize("left  Kidney")
    ('liver', 'left kidney')
    """
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip())).removesuffix(WITHOUT_TUMORS).strip()


def _find(name: str, known: Mapping[str, int]) -> int | None:
    plain = normalize(name)
    return known.get(plain, known.get(re.sub(r" \d+$", "", plain)))


def _name_of(number: int, labels: Labels) -> str:
    return next(name for name, value in labels.values.items() if value == number)


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"


def _check_numbers(parts: Sequence[NamedPart], where: object) -> None:
    high = [part.number for part in parts if not 1 <= part.number <= MAX_VALUE]
    if high:
        raise LabelError(f"numbers of segments must be 1 to {MAX_VALUE}; one is {high[0]}. Pass --labels.", where=where)
