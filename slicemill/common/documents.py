"""Typed documents: JSON and TOML from files become frozen dataclasses, and dataclasses become JSON.

msgspec does the work. It was chosen over pydantic because it adds a ninth of the time to the start of a command (40 ms
against 400; `slicemill bench documents`), and because its messages name the position in the document.
"""

import dataclasses
from typing import Any, TypeVar

import msgspec

from slicemill.common.errors import InputError
from slicemill.common.files import Location, parse_json_object, read_text

T = TypeVar("T")


def from_document(
    kind: type[T], document: object, where: str, *, error: type[InputError] = InputError, is_part: bool = False
) -> T:
    """Convert plain JSON values to a typed record.

    Lists become tuples where `kind` has tuples, and integers become floats. Unknown keys are refused, so that a
    misspelled setting, or one that a newer version wrote, is not passed over.

    Parameters
    ----------
    kind : type
        A frozen dataclass, or any type that msgspec supports.
    document : object
        Values as `json.loads` returns them.
    where : str
        The file, for the message.
    error : type
        The error to raise.
    is_part : bool
        Whether the document has other keys, which the record leaves out.

    Raises
    ------
    InputError
        A value is missing or has another type, or a key is unknown. The message names the file, the position
        in the document, and the rule.

    >>> from_document(dict[str, int], {"liver": 1.5}, "model.onnx")
    Traceback (most recent call last):
    ...
    slicemill.common.errors.InputError: model.onnx: Expected `int`, got `float` - at `$[...]`.
    """
    try:
        record = msgspec.convert(document, kind)
    except msgspec.ValidationError as problem:
        raise error(f"{str(problem).rstrip('.')}.", where=where) from problem
    if not is_part and (unknown := _find_unknown(document, to_plain(record), "")):
        rule = "correct or remove it, or use the version that wrote it"
        raise error(f"the key `{unknown}` is unknown; {rule}.", where=where)
    return record


def read_document(kind: type[T], path: Location, *, error: type[InputError] = InputError) -> T:
    """Read a JSON file as a typed record.

    Raises
    ------
    InputError
        The file cannot be read, is not a JSON object, or `from_document` refuses it.
    """
    try:
        text = read_text(path)
    except InputError as problem:
        raise error(problem.reason, where=problem.where or None) from problem
    return from_json(kind, text, path, error=error)


def from_json(kind: type[T], text: str | bytes, where: object, *, error: type[InputError] = InputError) -> T:
    """Parse a JSON object as a typed record; `where` is the file, for the message.

    Raises
    ------
    InputError
        The text is not a JSON object, or `from_document` refuses it.
    """
    try:
        document = parse_json_object(text, where)
    except InputError as problem:
        raise error(problem.reason, where=problem.where or None) from problem
    return from_document(kind, document, str(where), error=error)


def to_document(record: object) -> dict[str, Any]:
    """Convert a record to plain JSON values, keys in the order of its fields. Tuples stay tuples.

    >>> import dataclasses
    >>> Point = dataclasses.make_dataclass("Point", ["x", "y"])
    >>> to_document(Point(1, (2.0, None)))
    {'x': 1, 'y': (2.0, None)}
    """
    return dict(to_plain(record))


def from_toml(kind: type[T], text: str, where: str, *, error: type[InputError] = InputError) -> T:
    """Parse TOML as a typed record.

    Raises
    ------
    InputError
        The text is not TOML, or `from_document` refuses it.
    """
    import tomllib

    try:
        document = tomllib.loads(text.removeprefix("\ufeff"))  # editors on Windows write a byte order mark
    except (ValueError, RecursionError) as problem:
        raise error(f"cannot be read as TOML ({problem}).", where=where) from problem
    return from_document(kind, document, where, error=error)


def to_plain(record: object) -> Any:
    """Convert a record, or a list or mapping with records, to plain JSON values."""
    # msgspec sets no attribute for a default that the document left out, and would then leave the field out again
    fields = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    return msgspec.to_builtins(fields, enc_hook=_plain)


def _find_unknown(document: object, kept: object, position: str) -> str:
    """Return the first key of a document that its record did not keep, with its position; empty if there is none."""
    if isinstance(document, dict) and isinstance(kept, dict):
        for key, value in document.items():
            place = f"{position}.{key}" if position else str(key)
            if key not in kept:
                return place
            if unknown := _find_unknown(value, kept[key], place):
                return unknown
    elif isinstance(document, list | tuple) and isinstance(kept, list | tuple):
        for index, (value, other) in enumerate(zip(document, kept, strict=False)):
            is_nested = isinstance(value, dict | list | tuple)
            if is_nested and (unknown := _find_unknown(value, other, f"{position}[{index}]")):
                return unknown
    return ""


def _plain(value: Any) -> object:
    """Convert numpy scalars and arrays, and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
