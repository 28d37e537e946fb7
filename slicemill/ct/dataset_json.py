"""Reads ``dataset.json``, the description of a collection by Decathlon and nnU-Net.

Labels are name to value (nnU-Net 2) or value to name (Decathlon); values may be quoted. nnU-Net has two more entries:

- A region is a name for several values. Its mask holds plain values, so regions that nest are stored as plain labels:
  each value gets the name of the smallest region that has it.
- The label ``ignore`` marks voxels that are not annotated (`slicemill.ct.labels.IGNORE`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from slicemill.common.errors import LabelError
from slicemill.common.files import Location, parse_json, read_file
from slicemill.ct.labels import Labels, format_labels, make_labels

NAME = "dataset.json"
BACKGROUND = "background"
MAX_BYTES = 64 << 20
"""Limit of the file's size; Decathlon's list every scan."""


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """The parts of a ``dataset.json`` that are used."""

    labels: Labels | None = None
    """None without labels."""
    channels: tuple[str, ...] = ()
    """Names of the channels of a scan (``channel_names`` or ``modality``), in order; empty if not stated."""
    notes: tuple[str, ...] = ()
    """What a user should know about the labels."""


def read_dataset_description(path: Location, *, with_labels: bool = True) -> DatasetDescription:
    """Read a ``dataset.json``. Its labels are not read if the user passes other ones.

    Raises
    ------
    LabelError
        It cannot be read, or its labels cannot be stored. The message names the entry.
    """
    try:
        document = parse_json(read_file(path, MAX_BYTES).decode("utf-8-sig"), object_pairs_hook=_unique)
        if not isinstance(document, dict):
            raise TypeError("it must be a JSON object")
        values, notes = _plain_labels(document.get("labels", {}) if with_labels else {})
        labels = make_labels(values) if values else None
        channels = document.get("channel_names", document.get("modality", {}))
        names = tuple(str(channels[key]) for key in sorted(channels, key=int)) if isinstance(channels, dict) else ()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LabelError(
            f"its labels cannot be read ({str(error).rstrip('.')}); correct it, or pass --labels.", where=path
        ) from error
    return DatasetDescription(labels=labels, channels=names, notes=tuple(f"{path}: {note}" for note in notes))


def read_dataset_json(path: Location) -> Labels | None:
    """Read the labels of a ``dataset.json``; None if it has none. Errors as `read_dataset_description`."""
    return read_dataset_description(path).labels


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object, after a check that no key occurs twice."""
    document = dict(pairs)
    if len(document) != len(pairs):
        twice = next(key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return document


def _plain_labels(table: object) -> tuple[dict[str, int], list[str]]:
    """Return name -> value without background, and notes."""
    if not isinstance(table, dict):
        raise TypeError(f"labels must be an object; they are {table!r}")
    by_value = bool(table) and all(_is_number(key) and isinstance(value, str) for key, value in table.items())
    if by_value:  # Decathlon; {"1": "2"} would be read in the same way
        table = {str(value): key for key, value in table.items()} if _distinct(table.values()) else _two_names(table)
    regions = {str(name): _values(name, value) for name, value in table.items()}
    regions = {name: values - {0} for name, values in regions.items() if values != {0}}
    if BACKGROUND in regions:
        raise ValueError(f"{BACKGROUND!r} must have the value 0; it has {sorted(regions[BACKGROUND])}")
    return _take_apart(regions)


def _distinct(values: object) -> bool:
    listed = list(values)  # type: ignore[call-overload]
    return len(set(listed)) == len(listed)


def _two_names(table: Mapping[str, object]) -> dict[str, object]:
    raise ValueError(f"two values share one name: {table!r}")


def _is_number(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal()
    )


def _values(name: object, value: object) -> frozenset[int]:
    """Return the values of an entry: one, or those of a region."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(map(_is_number, listed)):
        raise ValueError(f"{name!r}: {value!r} is not a label value, nor a list of them")
    return frozenset(int(str(one)) for one in listed)


def _take_apart(regions: Mapping[str, frozenset[int]]) -> tuple[dict[str, int], list[str]]:
    """Return name -> value for regions that nest; single values are regions of one."""
    for name, values in regions.items():
        for other, others in regions.items():
            if values & others and not (values <= others or others <= values):
                raise ValueError(f"the regions {name!r} and {other!r} overlap without one containing the other")
    found: dict[str, int] = {}
    unions = []
    for name, values in regions.items():
        inner = [others for other, others in regions.items() if other != name and others <= values]
        if any(others == values for others in inner):
            raise ValueError(f"two names share the values {sorted(values)}: {name!r} is one of them")
        rest = values - frozenset().union(*inner)
        if len(rest) > 1:
            raise ValueError(
                f"the region {name!r} has several values that have no name of their own: {sorted(rest)}; "
                "pass --labels NAME=VALUE,... with a name for each value"
            )
        if rest:
            found[name] = next(iter(rest))
        else:
            unions.append(name)
    several = [name for name, values in regions.items() if len(values) > 1]
    if not several:
        return found, []
    note = f"regions are stored as plain labels, without the regions inside them: {format_labels(found)}"
    dropped = f"; {', '.join(unions)} only joins others and gets no label" if unions else ""
    return found, [note + dropped]
