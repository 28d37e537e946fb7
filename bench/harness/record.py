"""Records of benchmarks: frozen dataclasses whose fields, in their order, are the keys of the JSON."""

from dataclasses import dataclass, field, fields

from slicemill.bench.harness.clock import now
from slicemill.bench.harness.headline import Record
from slicemill.common.documents import to_document
from slicemill.common.machine import machine_info


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """Fields of all records. A subclass sets `benchmark` to its name and adds the results.

    Metadata of a field may change its JSON: ``key`` is a JSON key that is not a Python name; ``optional`` omits the key
    if the value is None.
    """

    benchmark: str
    date: str = field(default_factory=now)

    def as_json(self) -> Record:
        """Return the JSON values, and the machine as the last key if no field has that name."""
        document: Record = {"machine": machine_info(), **to_document(self)}
        absent = {one.name for one in fields(self) if one.metadata.get("optional") and document[one.name] is None}
        return {key: document[name] for name, key in json_keys(type(self)).items() if name not in absent}


def json_keys(kind: type[BenchmarkRecord]) -> dict[str, str]:
    """Return the JSON key of each field, in order."""
    keys = {one.name: one.metadata.get("key", one.name) for one in fields(kind)}
    return keys | {"machine": "machine"}
