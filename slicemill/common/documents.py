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


def from_document(kind: type[T], document: object, where: str, *, error: type[InputError] = InputError) -> T:
    """Convert plain JSON values to a typed record.

    Lists become tuples where `kind` has tuples, and integers become floats. Unknown keys are ignored.

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

    Raises
    ------
    InputError
        A value is missing or has another type. The message names the file, the position in the document, and the rule.

    >>> from_document(dict[str, int], {"liver": 1.5}, "model.onnx")
    Traceback (most recent call last):
    ...
    slicemill.common.errors.InputError: model.onnx: Expected `int`, got `float` - at `$[...]`.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as problem:
        raise error(f"{str(problem).rstrip('.')}.", where=where) from problem


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
    # msgspec sets no attribute for a default that the document left out, and would then leave the field out again
    fields = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    return dict(msgspec.to_builtins(fields, enc_hook=_plain))


def from_toml(kind: type[T], text: str, where: str, *, error: type[InputError] = InputError) -> T:
    """Parse TOML as a typed record.

    Raises
    ------
    InputError
        The text is not TOML, or `from_document` refuses it.
    """
    import tomllib

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"cannot be read as TOML ({problem}).", where=where) from problem
    return from_document(kind, document, where, error=error)


def _plain(value: Any) -> object:
    """Convert numpy scalars and arrays, and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
