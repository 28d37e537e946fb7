"""Records of benchmarks: frozen dataclasses whose fields, in their order, are the keys of the JSON."""

from dataclasses import fields
from typing import TYPE_CHECKING

from slicemill.bench.harness.headline import Record
from slicemill.common.documents import to_document

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def to_record(record: "DataclassInstance") -> Record:
    """Convert a benchmark's record to JSON values.

    Metadata of a field may change its JSON: ``key`` is a key that is no Python name, and ``optional`` leaves the key out if the
    value is None.

    >>> from dataclasses import field, make_dataclass
    >>> kind = make_dataclass("Kind", [("a", int), ("b", float, field(metadata={"key": "b over a"}))])
    >>> to_record(kind(1, 2.0))
    {'a': 1, 'b over a': 2.0}
    """
    document = to_document(record)
    return {
        one.metadata.get("key", one.name): document[one.name]
        for one in fields(record)
        if not (document[one.name] is None and one.metadata.get("optional"))
    }
